"""What can go wrong for a user, each with the exit code that scripts rely on. One line each: what is wrong, what to do."""

import unicodedata


class Refusal(Exception):
    """Ends a run with one line on stderr and `code`; never a traceback."""

    code = 1


class BadInput(Refusal):
    """A configuration or a data file that cannot be used."""

    code = 2


class Diverged(Refusal):
    code = 4


class Collapsed(Diverged):
    """Every input gets one answer, or there is nothing to learn: going on would be in vain (trainer.on_collapse=stop)."""


class BadCheckpoint(Refusal):
    """A checkpoint, model folder or adapter that cannot be used."""

    code = 5


class StorageFull(Refusal):
    code = 6


class OutOfMemory(Refusal):
    code = 8


class RunBusy(Refusal):
    code = 9


class Unsafe(Refusal):
    """Something that would run code or read secrets because a file said so."""

    code = 10


class Preempted(Refusal):
    """Asked to stop; a good checkpoint is on disk and `resume=auto` continues from it."""

    code = 75


def printable(text: object, limit: int = 300) -> str:
    """`text` on one line, with control and direction characters shown instead of obeyed (a label may hold an escape sequence)."""
    shown = "".join(c if c == " " or unicodedata.category(c)[0] not in "CZ" else repr(c)[1:-1] for c in str(text))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def at(file: object, record: int | None = None, byte: int | None = None) -> str:
    """`file:record (byte o)`: the place an error speaks of. Records count from 1."""
    place = printable(file) + (f":{record}" if record is not None else "")
    return place + (f" (byte {byte})" if byte is not None else "")

"""Plain text: paragraphs between blank lines, or, in a file without blank lines, one text a line."""

from collections.abc import Iterator
from pathlib import Path

from sslcli.data.lines import Bad, Unreadable, chunks, lines

MAX_PARAGRAPH = 1_000_000  # characters; a longer one is cut at a line's end, nothing is lost


def records(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, str]] | Bad]:
    try:
        paragraphs = has_blank_lines(path)
    except Unreadable as error:
        yield error.bad
        return
    held: list[str] = []
    size = begins = 0
    for line in lines(path, encoding):
        if isinstance(line, Bad):
            yield line
            if line.fatal:
                return
            continue
        number, _, text = line
        blank = not text or text.isspace()
        if held and (blank or not paragraphs or size > MAX_PARAGRAPH):
            yield begins, {"text": "\n".join(held)}
            held, size = [], 0
        if not blank:
            begins = begins if held else number
            held.append(text)
            size += len(text)
    if held:
        yield begins, {"text": "\n".join(held)}


def has_blank_lines(path: Path) -> bool:
    start = next(iter(chunks(path)), b"")
    body = start.strip()
    return b"\n\n" in body or b"\r\n\r\n" in body or b"\n \n" in body

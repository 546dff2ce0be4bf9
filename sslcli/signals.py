"""Being asked to stop: by a scheduler, by a terminal."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

ASKED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextlib.contextmanager
def heard(note: Callable[[int, Any], None]) -> Iterator[None]:
    """Inside, `note` is told of a signal instead of the process ending."""
    before = {n: signal.signal(n, note) for n in ASKED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

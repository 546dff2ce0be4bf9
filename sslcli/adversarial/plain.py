from collections.abc import Callable, Iterator
from typing import ClassVar

from sslcli.core import Noise, Output


class Plain:
    """No adversary: the loss as it is."""

    room: ClassVar[str] = "adversarial"

    def __call__(self, forward: Callable[[], Output], noise: Noise) -> Iterator[Output]:
        yield forward()

from collections.abc import Callable, Iterator

from sslcli.core import Noise, Output


class Plain:
    """No adversary: the loss as it is."""

    def __call__(self, forward: Callable[[], Output], noise: Noise | None) -> Iterator[Output]:
        yield forward()

"""The fast gradient method (Miyato et al. 2017 for texts; with norm=linf the sign method of Goodfellow et al. 2015)."""

from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from pydantic import Field

from sslcli.core import Noise, Output


class FGM:
    """L(x) + L(x + r), r = radius * g / |g| with g the gradient of L at x."""

    def __init__(self, *, on: Literal["embedding", "input"], norm: Literal["l2", "linf"], radius: Annotated[float, Field(ge=0)]):
        self.on, self.norm, self.radius = on, norm, radius

    def __call__(self, forward: Callable[[], Output], noise: Noise) -> Iterator[Output]:
        yield forward()
        noise.point(self.radius)
        yield forward()

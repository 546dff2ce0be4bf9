"""Adversarial weight perturbation (Wu et al. 2020): flat minima instead of stable inputs."""

from collections.abc import Callable, Iterator
from typing import Annotated

from pydantic import Field

from sslcli.core import Noise, Output


class AWP:
    """L(w + v) alone, v = radius * |w| * g / |g| for each matrix w that is trained, g the gradient of L at w. The gradient at w + v then
    moves w."""

    on, norm = "weights", "l2"

    def __init__(self, *, radius: Annotated[float, Field(ge=0)]):
        self.radius = radius

    def __call__(self, forward: Callable[[], Output], noise: Noise) -> Iterator[Output]:
        noise.feel(forward().loss)
        noise.point(self.radius)
        yield forward()

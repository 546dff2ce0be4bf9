"""Projected gradient descent (Madry et al. 2018)."""

from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from pydantic import Field

from sslcli.core import Noise, Output


class PGD:
    """L(x + r) alone, r after `steps` steps of `step_size` uphill, each projected back into the ball. Begins at zero, so that the clean
    loss is known."""

    def __init__(
        self,
        *,
        on: Literal["embedding", "input"],
        norm: Literal["l2", "linf"],
        radius: Annotated[float, Field(ge=0)],
        steps: Annotated[int, Field(ge=1)],
        step_size: Annotated[float, Field(gt=0)],
    ):
        self.on, self.norm, self.radius, self.steps, self.step_size = on, norm, radius, steps, step_size

    def __call__(self, forward: Callable[[], Output], noise: Noise) -> Iterator[Output]:
        output = forward()
        for _ in range(self.steps):
            noise.feel(output.loss)
            noise.follow(self.step_size)
            noise.within(self.radius)
            output = forward()
        yield output

"""Free large-batch adversarial training (Zhu et al. 2020)."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from sslcli.core import Noise, Output


class FreeLB:
    """The mean loss of `steps` passes (K of the paper), each with the noise that the passes before it have driven uphill: every pass
    serves the noise and the weights. Begins at zero: the first pass is the clean one. Dropout is the same in all, as the paper asks."""

    def __init__(
        self,
        *,
        on: Literal["embedding", "input"],
        norm: Literal["l2", "linf"],
        radius: Annotated[float, Field(ge=0)],
        steps: Annotated[int, Field(ge=2)],
        step_size: Annotated[float, Field(gt=0)],
    ):
        self.on, self.norm, self.radius, self.steps, self.step_size = on, norm, radius, steps, step_size

    def __call__(self, forward: Callable[[], Output], noise: Noise) -> Iterator[Output]:
        for step in range(self.steps):
            if step:
                noise.follow(self.step_size)
                noise.within(self.radius)
            output = forward()
            yield replace(output, loss=output.loss / self.steps)

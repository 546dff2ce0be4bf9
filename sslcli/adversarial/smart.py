"""Smoothness-inducing adversarial regularisation (SMART, Jiang et al. 2020; without its proximal point term)."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from sslcli.core import Noise, Output
from sslcli.losses import symmetric_divergence


class SMART:
    """L(x) + weight * [KL(p || q) + KL(q || p)], p of x and q of x + r, both learnt from. r begins as random noise of size `start` and
    climbs that divergence. Dropout is the same in both passes: only the noise is compared."""

    def __init__(
        self,
        *,
        on: Literal["embedding", "input"],
        norm: Literal["l2", "linf"],
        radius: Annotated[float, Field(ge=0)],
        steps: Annotated[int, Field(ge=1)],
        step_size: Annotated[float, Field(gt=0)],
        start: Annotated[float, Field(gt=0)],
        weight: Annotated[float, Field(gt=0)],
    ):
        self.on, self.norm, self.radius, self.steps, self.step_size = on, norm, radius, steps, step_size
        self.start, self.weight = start, weight

    def __call__(self, forward: Callable[[], Output], noise: Noise) -> Iterator[Output]:
        clean = forward()
        logits = noise.logits(clean)
        noise.draw(self.start)
        for _ in range(self.steps):
            noise.feel(symmetric_divergence(logits.detach(), noise.logits(forward())))
            noise.follow(self.step_size, steepest=False)
            noise.within(self.radius)
        yield replace(clean, loss=clean.loss + self.weight * symmetric_divergence(logits, noise.logits(forward())))

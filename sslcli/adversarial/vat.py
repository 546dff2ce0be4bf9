"""Virtual adversarial training (Miyato et al. 2018): no label is needed to find the noise."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from sslcli.core import Noise, Output
from sslcli.losses import divergence


class VAT:
    """L(x) + weight * KL(p || q), p of x (a constant), q of x + r. r points where `steps` power iterations found that divergence to grow
    most; they look at noise of size `xi`. Dropout is the same in all passes: only the noise is compared."""

    def __init__(
        self,
        *,
        on: Literal["embedding", "input"],
        norm: Literal["l2", "linf"],
        radius: Annotated[float, Field(ge=0)],
        steps: Annotated[int, Field(ge=1)],
        xi: Annotated[float, Field(gt=0)],
        weight: Annotated[float, Field(gt=0)],
    ):
        self.on, self.norm, self.radius, self.steps, self.xi, self.weight = on, norm, radius, steps, xi, weight

    def __call__(self, forward: Callable[[], Output], noise: Noise) -> Iterator[Output]:
        clean = forward()
        logits = noise.logits(clean).detach()
        yield clean
        noise.draw(self.xi)
        for step in range(self.steps):
            if step:
                noise.point(self.xi)
            noise.feel(divergence(logits, noise.logits(forward())))
        noise.point(self.radius)
        output = forward()
        yield replace(output, loss=self.weight * divergence(logits, noise.logits(output)))

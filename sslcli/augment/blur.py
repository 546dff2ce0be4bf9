"""Gaussian blur."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslcli.augment.draw import Share, Span, between, check, only

CUT = 3  # deviations: beyond lie 0.3 % of a Gaussian


@dataclass(frozen=True)
class Blur:
    probability: Share | list[Share]  # for all views, or one for each, that of local views last
    sigma: Span  # pixels
    smallest: Annotated[int, Field(ge=1)]  # views of fewer pixels a side are left sharp: little is left of them otherwise
    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check("sigma", self.sigma, 0.01, 100)

    def __call__(self, pictures: Tensor, draws: Tensor) -> Tensor:
        if pictures.shape[-1] < self.smallest:
            return pictures
        assert not isinstance(self.probability, list), "Augment picks that of the view"
        radius = min(math.ceil(CUT * self.sigma[1]), pictures.shape[-1] - 1)
        chosen = draws[:, 0] < self.probability
        return only(chosen, lambda p, s: blurred(p, s, radius), pictures, between(draws[:, 1], self.sigma))


def blurred(pictures: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Each picture with its own deviation (`sigma` [B], pixels), cut at `radius` pixels; the border is reflected."""
    steps = torch.arange(-radius, radius + 1, device=pictures.device)
    kernel = torch.exp(-0.5 * (steps / sigma[:, None]).square())
    kernel = kernel / kernel.sum(1, keepdim=True)
    weights = [w.view(-1, 1, 1, 1) for w in kernel.unbind(1)]
    source = F.pad(pictures, (radius,) * 4, mode="reflect")
    for dim in (2, 3):  # a sum of shifted pictures: faster on a CPU at 224 pixels than a convolution, and exact on every device
        parts = [source.narrow(dim, i, pictures.shape[dim]) for i in range(len(weights))]
        source = parts[0] * weights[0]
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            source.addcmul_(part, weight)
    return source

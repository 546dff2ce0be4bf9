"""Parts of pictures that are hidden, and pictures that are mixed with others together with their labels."""

from dataclasses import dataclass
from functools import cache
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sslcli.augment.draw import Share, Span, between, check, constant
from sslcli.augment.geometry import box

QUANTILES = 1024


@dataclass(frozen=True)
class Erase:
    """A box of one random colour (Zhong et al. 2020)."""

    probability: Share
    area: Span
    draws: ClassVar[int] = 8

    def __post_init__(self) -> None:
        check("area", self.area, 1e-4, 1)

    def __call__(self, pictures: Tensor, draws: Tensor) -> Tensor:
        log_ratio = between(draws[:, 2], (-1.2, 1.2))  # 0.3 to 3.3
        top, left, height, width = box(between(draws[:, 1], self.area), log_ratio, draws[:, 3], draws[:, 4], pictures.shape[-1])
        hidden = _inside(top, left, height, width, pictures.shape[-1]) & (draws[:, 0] < self.probability).view(-1, 1, 1, 1)
        colour = draws[:, 5:8] if pictures.shape[1] == 3 else draws[:, 5:6]
        return torch.where(hidden, colour[:, :, None, None], pictures)


@dataclass(frozen=True)
class Mix:
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019); where both are on, a picture is mixed by either."""

    probability: Share
    mixup: Annotated[float, Field(ge=0)]  # both parameters of the Beta distribution of shares; 0: off
    cutmix: Annotated[float, Field(ge=0)]
    draws: ClassVar[int] = 6

    @property
    def on(self) -> bool:
        return self.probability > 0 and self.mixup + self.cutmix > 0

    def __call__(self, images: Tensor, target: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, S, S] and targets [B, K], each mixed with another of the batch."""
        chosen, side = draws[:, 0] < self.probability, images.shape[-1]
        cut = draws[:, 1] < (0.5 if self.mixup and self.cutmix else float(self.cutmix > 0))
        order = draws[:, 2].argsort(stable=True)
        other = torch.empty_like(order)
        other[order] = order.roll(1)  # a circle through the batch: nobody is mixed with itself
        kept = torch.where(cut, _beta(draws[:, 3], self.cutmix), _beta(draws[:, 3], self.mixup))
        kept = torch.where(chosen, kept, 1.0)

        length = (1 - kept).sqrt() * side
        ends = [((draws[:, i] * side)[:, None] + torch.stack([-length, length], 1) / 2).round().clamp(0, side) for i in (4, 5)]
        (top, bottom), (left, right) = (e.unbind(1) for e in ends)
        kept = torch.where(cut, 1 - (bottom - top) * (right - left) / side**2, kept)
        window = _inside(top, left, bottom - top, right - left, side).to(images.dtype)
        weight = torch.where(cut.view(-1, 1, 1, 1), 1 - window, kept.to(images.dtype).view(-1, 1, 1, 1))
        return torch.lerp(images[other], images, weight), torch.lerp(target[other], target, kept.to(target.dtype)[:, None])


def _inside(top: Tensor, left: Tensor, height: Tensor, width: Tensor, side: int) -> Tensor:
    """[B, 1, side, side]: the pixels of each box."""
    at = torch.arange(side, device=top.device)
    rows = (at >= top[:, None]) & (at < (top + height)[:, None])
    columns = (at >= left[:, None]) & (at < (left + width)[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _beta(draw: Tensor, alpha: float) -> Tensor:
    """Quantiles of Beta(alpha, alpha) at uniform draws, from a table."""
    if not alpha:
        return torch.ones_like(draw)
    table = constant(quantiles(alpha), draw.device)
    place = draw * QUANTILES
    below = place.long()
    return torch.lerp(table[below], table[below + 1], place - below)


@cache
def quantiles(alpha: float) -> tuple[float, ...]:
    """Of Beta(alpha, alpha) at 0, 1 / QUANTILES, ... 1. In t = x ** alpha the density is smooth where that in x has a pole."""
    t = np.linspace(0, 0.5**alpha, 4 * QUANTILES + 1)
    x = t ** (1 / alpha)
    density = (1 - x) ** (alpha - 1)
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    half = np.interp(np.linspace(0, 0.5, QUANTILES // 2 + 1), mass / mass[-1] / 2, x)
    return tuple(np.concatenate([half, 1 - half[-2::-1]]).tolist())

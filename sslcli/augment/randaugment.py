"""RandAugment (Cubuk et al. 2020): a few of fourteen changes, drawn for each picture, all of one magnitude.

A change takes pictures [B, C, S, S] and a signed strength [B] between -1 and 1; its largest effect is that of the paper's magnitude 30.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from sslcli.augment.colour import BRIGHTNESS, CONTRAST, SATURATION, enhanced, solarised
from sslcli.augment.draw import only
from sslcli.augment.geometry import read

Change: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class RandAugment:
    operations: Annotated[int, Field(ge=0, le=14)]
    magnitude: Annotated[float, Field(ge=0, le=30)]

    @property
    def draws(self) -> int:
        return 2 * self.operations

    def __call__(self, pictures: Tensor, draws: Tensor) -> Tensor:
        for choice, direction in draws.unflatten(1, (-1, 2)).permute(1, 2, 0):
            number = (choice * (len(CHANGES) + 1)).long()  # the last changes nothing
            strength = torch.where(direction < 0.5, -1.0, 1.0) * (self.magnitude / 30)
            for i, change in enumerate(CHANGES):
                pictures = only(number == i, change, pictures, strength)
        return pictures


def _enhance(which: int, pictures: Tensor, strength: Tensor) -> Tensor:
    if which == SATURATION and pictures.shape[1] != 3:
        return pictures
    return enhanced(pictures, torch.full_like(strength, which), 1 + 0.9 * strength)


def sharpness(pictures: Tensor, strength: Tensor) -> Tensor:
    """Away from, or towards, the picture smoothed by a 3 x 3 mean that counts the middle five times; the border stays."""
    if min(pictures.shape[2:]) < 3:
        return pictures
    inner = pictures[:, :, 1:-1, 1:-1]
    rows = pictures[:, :, :-2] + pictures[:, :, 1:-1] + pictures[:, :, 2:]
    smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner) / 13
    sharp = pictures.clone()
    sharp[:, :, 1:-1, 1:-1] = torch.lerp(smooth, inner, (1 + 0.9 * strength).view(-1, 1, 1, 1)).clamp_(0, 1)
    return sharp


def posterise(pictures: Tensor, strength: Tensor) -> Tensor:
    """8 to 4 bits a channel."""
    step = torch.exp2((4 * strength.abs()).round()).view(-1, 1, 1, 1)
    return (pictures.mul(255).round_() / step).floor_() * step / 255


def solarise(pictures: Tensor, strength: Tensor) -> Tensor:
    return solarised(pictures, 1 - strength.abs())


def autocontrast(pictures: Tensor, strength: Tensor) -> Tensor:
    """Each channel from black to white."""
    low, high = pictures.amin((2, 3), keepdim=True), pictures.amax((2, 3), keepdim=True)
    flat = high - low < 1 / 510
    return torch.where(flat, pictures, (pictures - low) / (high - low).masked_fill(flat, 1.0))


def equalise(pictures: Tensor, strength: Tensor) -> Tensor:
    """Each channel's 256 levels spread so that all are equally frequent."""
    levels = pictures.flatten(2).mul(255).round_().long()
    counts = levels.new_zeros(*levels.shape[:2], 256).scatter_add_(2, levels, torch.ones_like(levels))
    below = counts.cumsum(2) - counts
    step = below.gather(2, levels.amax(2, keepdim=True)) // 255  # pixels a level, the brightest left out
    spread = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    table = torch.where(step > 0, spread, torch.arange(256, device=levels.device)).float().div_(255)
    return table.gather(2, levels).view_as(pictures)


def rotate(pictures: Tensor, strength: Tensor) -> Tensor:
    angle = math.radians(30) * strength
    return _read(pictures, (angle.cos(), angle.sin()), (-angle.sin(), angle.cos()))


def shear_x(pictures: Tensor, strength: Tensor) -> Tensor:
    return _read(pictures, (1, 0), (0.3 * strength, 1))


def shear_y(pictures: Tensor, strength: Tensor) -> Tensor:
    return _read(pictures, (1, 0.3 * strength), (0, 1))


def translate_x(pictures: Tensor, strength: Tensor) -> Tensor:
    return _read(pictures, (1, 0), (0, 1), (300 / 331 * strength, 0))


def translate_y(pictures: Tensor, strength: Tensor) -> Tensor:
    return _read(pictures, (1, 0), (0, 1), (0, 300 / 331 * strength))


def _read(pictures: Tensor, *vectors: tuple[Tensor | float, Tensor | float]) -> Tensor:
    """`geometry.read` with these for across, down and centre."""
    like = torch.zeros(len(pictures), device=pictures.device)
    across, down, centre = (torch.stack([like + x, like + y], 1) for x, y in (*vectors, (0, 0))[:3])
    return read(pictures, across, down, centre, pictures.shape[-1])


CHANGES: tuple[Change, ...] = (
    *(partial(_enhance, which) for which in (BRIGHTNESS, CONTRAST, SATURATION)),
    sharpness,
    posterise,
    solarise,
    autocontrast,
    equalise,
    rotate,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
)

"""Brightness, contrast, saturation and hue as Pillow and torchvision define them, grey and solarised pictures."""

from dataclasses import dataclass
from itertools import permutations
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from sslcli.augment.draw import Share, between, constant, only

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
BRIGHTNESS, CONTRAST, SATURATION = range(3)
ORDERS = tuple(permutations(range(3)))
SOLARISED = 128 / 255
# at a place h of the circle, in sixths, red is |h - 3| - 1, green 2 - |h - 2|, blue 2 - |h - 4|, each cut to [0, 1]
RAMPS = ((3.0, 2.0, 4.0), (1.0, -1.0, -1.0), (-1.0, 2.0, 2.0))


@dataclass(frozen=True)
class Colour:
    """The four changes one after another, in an order drawn for each picture. 0.4: a factor from 0.6 to 1.4; hue in turns of the circle."""

    probability: Share
    brightness: Annotated[float, Field(ge=0)]
    contrast: Annotated[float, Field(ge=0)]
    saturation: Annotated[float, Field(ge=0)]
    hue: Annotated[float, Field(ge=0, le=0.5)]
    draws: ClassVar[int] = 6

    def __call__(self, pictures: Tensor, draws: Tensor) -> Tensor:
        colours = pictures.shape[1] == 3
        chosen = draws[:, 0] < self.probability
        strengths = (self.brightness, self.contrast, self.saturation if colours else 0.0)
        factors = torch.stack([between(draws[:, i + 1], (max(0.0, 1 - s), 1 + s)) for i, s in enumerate(strengths)], 1)
        factors = torch.where(chosen[:, None], factors, 1.0)
        turn = between(draws[:, 4], (-self.hue, self.hue))
        number = (draws[:, 5] * len(ORDERS) * 4).long()
        order, hue_comes = constant(ORDERS, draws.device)[number // 4], number % 4
        for step in range(4):
            if self.hue and colours:
                pictures = only(chosen & (hue_comes == step), hue, pictures, turn)
            if step < 3:
                which = order[:, step]
                pictures = enhanced(pictures, which, factors.gather(1, which[:, None])[:, 0])
        return pictures


@dataclass(frozen=True)
class Grey:
    probability: Share
    draws: ClassVar[int] = 1

    def __call__(self, pictures: Tensor, draws: Tensor) -> Tensor:
        if pictures.shape[1] != 3:
            return pictures
        factor = 1 - (draws[:, 0] < self.probability).float()
        return enhanced(pictures, torch.full_like(factor, SATURATION), factor)


@dataclass(frozen=True)
class Solarise:
    """Whatever is brighter than half is inverted."""

    probability: Share
    draws: ClassVar[int] = 1

    def __call__(self, pictures: Tensor, draws: Tensor) -> Tensor:
        threshold = torch.where(draws[:, 0] < self.probability, SOLARISED, 2.0)
        return solarised(pictures, threshold)


def enhanced(pictures: Tensor, which: Tensor, factor: Tensor) -> Tensor:
    """Away from black (brightness), the mean grey (contrast) or the grey picture (saturation), each picture as `which` [B] says.

    A factor of 1 changes nothing, 0 leaves black, a flat grey or the grey picture. All three are one matrix over the channels.
    """
    channels = pictures.shape[1]
    flat = pictures.flatten(2)
    luma = constant(LUMA if channels == 3 else (1 / channels,) * channels, pictures.device)
    to_flat, to_grey = (((1 - factor) * (which == kind)).view(-1, 1, 1) for kind in (CONTRAST, SATURATION))
    matrix = torch.eye(channels, device=pictures.device) * factor.view(-1, 1, 1) + to_grey * luma
    offset = to_flat * (flat.mean(2) * luma).sum(1).view(-1, 1, 1)
    return torch.baddbmm(offset, matrix, flat).clamp_(0, 1).view_as(pictures)


def hue(pictures: Tensor, turn: Tensor) -> Tensor:
    """Colours moved along the hexagon of HSV by `turn` [B] of its circumference."""
    flat = pictures.flatten(2)
    red, green, blue = flat.unbind(1)
    most, least = flat.amax(1), flat.amin(1)
    chroma = most - least
    scale = chroma.clamp(min=1e-8).reciprocal_()
    beyond = torch.where(most == green, (blue - red).mul_(scale).add_(2), (red - green).mul_(scale).add_(4))
    place = torch.where(most == red, (green - blue).mul_(scale), beyond).add_(6 * turn[:, None])  # in sixths of the circle
    place -= (place * (1 / 6)).floor_().mul_(6)
    at, sign, base = constant(RAMPS, pictures.device).view(3, 1, 3, 1)
    share = torch.addcmul(base, (place[:, None] - at).abs_(), sign).clamp_(0, 1)
    return torch.addcmul(least[:, None], share, chroma[:, None]).view_as(pictures)


def solarised(pictures: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(pictures >= threshold.view(-1, 1, 1, 1), 1 - pictures, pictures)

"""Where a view looks: crop and resize, shift, rotation, mirror. However many of them, the picture is read once, bilinearly."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslcli.augment.draw import Share, Span, between, check


@dataclass(frozen=True)
class Crop:
    """A box of random area and shape anywhere in the picture, resized to the view (Szegedy et al. 2015)."""

    scale: Span  # share of the picture's area
    ratio: Span  # width to height

    def __post_init__(self) -> None:
        check("scale", self.scale, 1e-4, 1)
        check("ratio", self.ratio, 0.01, 100)

    @property
    def whole(self) -> bool:
        return self.scale[0] == 1


@dataclass(frozen=True)
class Local:
    """Further, smaller views of small parts (multi-crop; Caron et al. 2020). They do not count among `views`."""

    count: Annotated[int, Field(ge=0)]
    size: Annotated[int, Field(ge=4)] | None  # pixels a side; None: half the picture's
    scale: Span

    def __post_init__(self) -> None:
        check("scale", self.scale, 1e-4, 1)


@dataclass(frozen=True)
class Affine:
    """At most so far from the picture as it is, either way. Beyond its border a picture goes on as its last pixels."""

    rotate: Annotated[float, Field(ge=0, le=180)]  # degrees
    shift: Share  # of the side, in whole pixels
    zoom: Annotated[float, Field(ge=0, le=4)]  # 0.1: larger or smaller by a tenth
    shear: Annotated[float, Field(ge=0, lt=90)]  # degrees

    @property
    def still(self) -> bool:
        return not (self.rotate or self.shift or self.zoom or self.shear)


@dataclass(frozen=True)
class Geometry:
    crop: Crop
    affine: Affine
    flip: float
    draws: ClassVar[int] = 10

    def __call__(self, pixels: Tensor, draws: Tensor, size: int, mirror: bool) -> Tensor:
        """uint8 [B, C, S, S] -> float32 [B, C, size, size] between 0 and 1. Mirrored only if a mirrored picture means the same."""
        side, affine = pixels.shape[-1], self.affine
        flipped = draws[:, :1] < (self.flip if mirror else 0)
        if self.crop.whole and size == side and affine.still:
            pictures = pixels.float().div_(255)
            return pictures.flip(-1).where(flipped[:, :, None, None], pictures)
        top, left, height, width = self._box(draws[:, 1:5], side)
        half = torch.stack([width, height], 1) / side  # x before y, as grid_sample has it; the picture lies between -1 and 1
        edge = half - 1 / side if affine.still else None  # what lies beyond the box does not show
        shift = between(draws[:, 5:7], (-affine.shift, affine.shift))
        centre = torch.stack([2 * left + width, 2 * top + height], 1) / side - 1 + (shift * side).round() * (2 / side)
        half = half * torch.exp(math.log1p(affine.zoom) * between(draws[:, 7:8], (-1, 1)))
        angle = math.radians(affine.rotate) * between(draws[:, 8], (-1, 1))
        shear = math.tan(math.radians(affine.shear)) * between(draws[:, 9], (-1, 1))
        cosine, sine = angle.cos(), angle.sin()
        across = torch.stack([cosine, sine], 1) * half[:, :1] * torch.where(flipped, -1.0, 1.0)
        down = torch.stack([shear * cosine - sine, shear * sine + cosine], 1) * half[:, 1:]
        return read(pixels.float().mul_(1 / 255), across, down, centre, size, edge)

    def _box(self, draws: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        area = between(draws[:, 0], self.crop.scale)
        fits = -area.log()  # a box of that area, this much longer than high on a log scale, is as long as the picture
        least, most = (math.log(r) for r in self.crop.ratio)
        low, high = torch.minimum((-fits).clamp(min=least), fits), torch.maximum(fits.clamp(max=most), -fits)
        return box(area, low + draws[:, 1] * (high - low), draws[:, 2], draws[:, 3], side)


def box(area: Tensor, log_ratio: Tensor, down: Tensor, right: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(top, left, height, width) in whole pixels, [B] each, of boxes of a share `area` of the picture, placed by two uniform draws."""
    width = ((area * log_ratio.exp()).sqrt() * side).round().clamp(1, side)
    height = ((area / log_ratio.exp()).sqrt() * side).round().clamp(1, side)
    return (down * (side - height + 1)).floor(), (right * (side - width + 1)).floor(), height, width


def read(pictures: Tensor, across: Tensor, down: Tensor, centre: Tensor, size: int, edge: Tensor | None = None) -> Tensor:
    """The view of `size` pixels a side whose middle looks at `centre`, and whose right and lower border lie `across` and `down` from
    there: [B, 2] each, x before y, where the picture lies between -1 and 1. Nothing further than `edge` from the middle is looked at."""
    steps = (torch.arange(size, device=centre.device) * 2 + 1) / size - 1
    grid = torch.empty(len(centre), size, size, 2, device=centre.device)
    for i in range(2):
        right, below = across[:, i, None] * steps, down[:, i, None] * steps
        if edge is not None:
            right, below = right.clamp(-edge[:, i, None], edge[:, i, None]), below.clamp(-edge[:, i, None], edge[:, i, None])
        grid[..., i] = right[:, None, :] + (below + centre[:, i, None])[:, :, None]
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)

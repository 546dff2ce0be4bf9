"""Views of pictures, made in batches on the device that trains. All chance comes from the draws that are handed in."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from sslcli.augment import Augment
from sslcli.augment.blur import Blur
from sslcli.augment.colour import Colour, Grey, Solarise
from sslcli.augment.draw import Operation, Share
from sslcli.augment.geometry import Affine, Crop, Geometry, Local
from sslcli.augment.mix import Erase, Mix
from sslcli.augment.randaugment import RandAugment

CHUNK = 1 << 23  # values of a view that are worked on at once: what it needs beside them is ten times as much


class Views(Augment):
    """What is done to a picture, and how strongly. A probability of 0 switches an operation off.

    `draws`: how many uniform numbers a picture needs. `count`, `local`: how many views of full and of local size.
    """

    def __init__(
        self,
        *,
        views: Annotated[int, Field(ge=1, le=16)],
        crop: Crop,
        local: Local,
        affine: Affine,
        flip: Share,
        colour: Colour,
        grey: Share,
        blur: Blur,
        solarise: Share | list[Share],
        randaugment: RandAugment,
        erase: Erase,
        mix: Mix,
    ):
        self.count, self.local, self.mixing = views, local.count, mix
        self._views: list[View] = []
        for number in range(views + local.count):
            small = number >= views
            kind = min(number, views) if local.count else number  # local views are alike
            operations: list[tuple[float, Operation]] = [
                (colour.probability, colour),
                (grey, Grey(grey)),
                (chance := _of("blur.probability", blur.probability, kind, self), replace(blur, probability=chance)),
                (chance := _of("solarise", solarise, kind, self), Solarise(chance)),
                (randaugment.operations, randaugment),
                (erase.probability, erase),
            ]
            look = Geometry(replace(crop, scale=local.scale) if small else crop, affine, flip)
            self._views.append(View(look, local if small else None, tuple(o for probability, o in operations if probability)))
        self.draws = sum(v.draws for v in self._views) + (mix.draws if mix.on else 0)

    def views(self, pixels: Tensor, draws: Tensor, mirror: bool) -> list[Tensor]:
        """uint8 [B, C, S, S] and draws [B, draws] in [0, 1) -> float32 views between 0 and 1, first those [B, C, S, S], then local ones.

        The same picture with the same draws gives the same view in any batch. `mirror`: whether a mirrored picture means the same.
        """
        rows = max(1, CHUNK // max(1, pixels[:1].numel()))
        found, start = [], 0
        with torch.autocast(pixels.device.type, enabled=False):
            for view in self._views:
                own = draws[:, start : start + view.draws]
                start += view.draws
                parts = [view(p, d, mirror) for p, d in zip(pixels.split(rows), own.split(rows), strict=True)]
                found.append(parts[0] if len(parts) == 1 else torch.cat(parts))
        return found

    def mix(self, images: Tensor, target: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, s, s] and what they show [B, K] (one-hot, or shares), both mixed with another of the batch; as they are if off."""
        if not self.mixing.on:
            return images, target
        return self.mixing(images, target, draws[:, -self.mixing.draws :])


@dataclass(frozen=True)
class View:
    look: Geometry
    local: Local | None  # None: as large as the picture
    changes: Sequence[Operation]

    @property
    def draws(self) -> int:
        return self.look.draws + sum(c.draws for c in self.changes)

    def __call__(self, pixels: Tensor, draws: Tensor, mirror: bool) -> Tensor:
        side = pixels.shape[-1]
        size = side if self.local is None else self.local.size or max(1, side // 2)
        pictures, start = self.look(pixels, draws[:, : self.look.draws], size, mirror), self.look.draws
        for change in self.changes:
            pictures = change(pictures, draws[:, start : start + change.draws])
            start += change.draws
        return pictures


def _of(name: str, given: float | list[float], view: int, augment: Views) -> float:
    """A view's own probability: of one for all, or of a list, where local views come last."""
    if not isinstance(given, list):
        return given
    wanted = augment.count + (augment.local > 0)
    if len(given) != wanted:
        local = " and one for the local ones" if augment.local else ""
        raise ValueError(f"{name}={given}: expected one number, or {augment.count}, one for each view,{local or ' no more'}")
    return given[view]

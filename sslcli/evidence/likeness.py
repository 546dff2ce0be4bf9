"""Leak radar for pictures: the same one again, re-encoded, resized or cropped by a few per cent.

A perceptual hash (signs of the lowest frequencies of the cosine transform) of the whole and of its crops proposes for each picture the
nearest of the other part; the correlation of their pixels, at the crop that fits best, decides.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sslcli.evidence.leaks import Pair

SIDE, COMPARED, LOW = 64, 24, 8  # pixels that are hashed, pixels that are correlated, frequencies a direction
CROP = 0.95  # of a side that a crop keeps
VIEWS = ((0.0, 0.0, 1.0), *((y * (1 - CROP), x * (1 - CROP), CROP) for y in (0, 0.5, 1) for x in (0, 0.5, 1)))
NEAR, ALIKE = 16, 0.96  # bits of 63 that may differ, and the correlation that makes a leak
SAMPLE, ODD = 256, 0.01  # pictures whose nearest other one is looked at, and the share of them that may be a copy of it
CHUNK, QUERIES = 1000, 32  # pictures hashed together, pictures looked for together

Take = Callable[[np.ndarray], Tensor]  # rows -> grey pictures [N, SIDE, SIDE]


@dataclass
class Looks:
    """What is compared of the pictures of a part."""

    hashes: np.ndarray  # [views, N] uint64
    take: Take

    @classmethod
    def of(cls, count: int, take: Take) -> "Looks":
        found = [_hashes(take(np.arange(i, min(i + CHUNK, count)))) for i in range(0, count, CHUNK)]
        return cls(np.concatenate(found, 1) if found else np.zeros((len(VIEWS), 0), np.uint64), take)

    def __len__(self) -> int:
        return self.hashes.shape[1]


def between(first: Looks, second: Looks) -> list[Pair]:
    """For each picture of the second part the one of the first that it shows again, if there is one."""
    if not len(first) or not len(second):
        return []
    sources, likeness, same = _best(first, second)
    found = np.flatnonzero(same | (likeness >= enough(first)))
    kinds = ["exact" if same[i] else "near" for i in found]
    return [Pair(kind, int(sources[i]), int(i), round(float(likeness[i]), 4)) for kind, i in zip(kinds, found, strict=True)]


def enough(part: Looks) -> float:
    """The correlation that makes a leak: more than what unlike pictures of this set have, where all look alike (small grey clothes)."""
    rows = np.unique(np.linspace(0, len(part) - 1, min(SAMPLE, len(part))).astype(np.int64))
    _, likeness, _ = _best(part, Looks(part.hashes[:, rows], lambda i: part.take(rows[i])), rows)
    return max(ALIKE, float(np.quantile(likeness, 1 - ODD)))


def _best(first: Looks, second: Looks, own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each picture of the second part: the most alike of the first, their correlation (0: none is near), whether they are equal.
    `own`: which of the first it is itself."""
    sources, likeness, equal = np.zeros(len(second), np.int64), np.zeros(len(second)), np.zeros(len(second), bool)
    for mine, other in _pairings():
        rows, nearest = _nearest(first.hashes[other], second.hashes[mine], own)
        for start in range(0, len(rows), CHUNK):
            chosen, origin = rows[start : start + CHUNK], nearest[start : start + CHUNK]
            one, two = first.take(origin), second.take(chosen)
            same = (one == two).flatten(1).all(1).numpy()
            alike = (_normal(_view(one, other, COMPARED)) * _normal(_view(two, mine, COMPARED))).sum(1).numpy()
            alike = np.where(same, 1.0, np.minimum(alike, 1.0))
            better = alike > likeness[chosen]
            sources[chosen[better]], likeness[chosen[better]] = origin[better], alike[better]
            equal[chosen[better]] = same[better]
    return sources, likeness, equal


def _pairings() -> Iterator[tuple[int, int]]:
    """(view of the picture, view of the one it may come from): either may have been cropped."""
    yield from ((0, view) for view in range(len(VIEWS)))
    yield from ((view, 0) for view in range(1, len(VIEWS)))


def _nearest(bank: np.ndarray, asked: np.ndarray, own: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(those that have a hash of the bank within NEAR bits; where in the bank)."""
    rows, sources = [], []
    for start in range(0, len(asked), QUERIES):
        distance = np.bitwise_count(asked[start : start + QUERIES, None] ^ bank[None])
        places = np.arange(len(distance))
        if own is not None:
            distance[places, own[start : start + QUERIES]] = 64
        nearest = distance.argmin(1)
        close = np.flatnonzero(distance[places, nearest] <= NEAR)
        rows.append(close + start)
        sources.append(nearest[close])
    return np.concatenate(rows), np.concatenate(sources)


def _hashes(pictures: Tensor) -> np.ndarray:
    """[views, N] uint64 of pictures [N, S, S]."""
    side = torch.arange(SIDE // 2, dtype=torch.float32)
    basis = torch.cos(torch.pi / len(side) * (side + 0.5) * torch.arange(LOW)[:, None])  # [LOW, S/2]
    found = []
    for view in range(len(VIEWS)):
        waves = (basis @ _view(pictures, view, len(side)) @ basis.t()).flatten(1)
        waves[:, 0] = -1.0  # how bright it is tells nothing
        found.append(np.packbits((waves > 0).numpy(), axis=1).view(np.uint64)[:, 0])
    return np.stack(found)


def _view(pictures: Tensor, view: int, size: int) -> Tensor:
    top, left, kept = VIEWS[view]
    side = pictures.shape[-1]
    y, x, length = round(top * side), round(left * side), round(kept * side)
    crop = pictures[:, None, y : y + length, x : x + length].float()
    return F.interpolate(crop, (size, size), mode="bilinear", antialias=True)[:, 0]


def _normal(pictures: Tensor) -> Tensor:
    """Vectors [N, S * S] whose products are correlations; of a picture without contrast, zeros."""
    flat = pictures.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    return F.normalize(flat, dim=1) * (flat.std(1, keepdim=True) > 1)


def grey(pixels: Tensor) -> Tensor:
    """[N, C, S, S] of any size as [N, SIDE, SIDE]."""
    return F.interpolate(pixels.float().mean(1, keepdim=True), (SIDE, SIDE), mode="bilinear", antialias=True)[:, 0]


def taker(store: Any) -> Take:
    """Of a store of grey pictures of SIDE pixels."""
    pixels = store["pixels"].values
    return lambda rows: torch.from_numpy(np.array(pixels[rows])).view(-1, SIDE, SIDE)

"""Leak radar for pictures: the same one again, re-encoded, resized or cropped by a few per cent.

Small thumbnails propose: for each picture the nearest of the other part, where a picture may be moved and zoomed a little, to first order
(one-sided tangent distance, Simard et al. 1993), so that candidates are products of matrices. Then each candidate is laid over the
picture as well as shift, zoom, contrast and sharpness allow (Gauss-Newton; Lucas and Kanade 1981). What of the picture stays unexplained
is compared with what the next best candidate leaves: of a copy it is several times less, however alike the pictures of a set are.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sslcli.evidence.leaks import Pair

SIDE, INSET = 64, 2  # pixels a side, and what the closer look leaves out at each border
THUMB, LAID, FINE = 8, 24, 48  # pixels a side of thumbnails, of pictures laid over each other, of those in doubt
NEAREST = 4  # candidates
UNLIKE, TIMES = 0.04, 5.0  # a copy leaves at most this share of a picture unexplained, and so many times less than the next that is none
DOUBT = 0.7  # of the next: up to here it is looked at more closely
SAMPLE, CLOSE = 256, 0.05  # pictures of a part whose nearest other one is looked at, and the share of them that counts as very alike
CHUNK, BANK = 500, 20_000  # pictures looked for together, and those they are looked for among
FURTHEST = 0.1  # zoom (logarithm) and shift (of half a side) that are tried
FLAT = 1.0  # standard deviation (of 255) below which a picture shows nothing

Take = Callable[[np.ndarray], Tensor]  # rows -> grey pictures [N, SIDE, SIDE]


@dataclass
class Looks:
    """What is compared of the pictures of a part."""

    thumbs: Tensor  # float16 [2, N, THUMB * THUMB] of unit length: of whole pictures, and without INSET
    digests: np.ndarray  # [N] uint64, of all pixels
    take: Take

    @classmethod
    def of(cls, count: int, take: Take) -> "Looks":
        thumbs, digests = [torch.zeros(2, 0, THUMB**2, dtype=torch.float16)], [np.zeros(0, np.uint64)]
        for rows in _chunks(count, CHUNK):
            pictures = take(rows)
            thumbs.append(torch.stack([_moving(pictures, inset)[:, 0] for inset in (0, INSET)]).half())
            hashed = [hashlib.blake2b(p.tobytes(), digest_size=8).digest() for p in pictures.numpy()]
            digests.append(np.frombuffer(b"".join(hashed), np.uint64))
        return cls(torch.cat(thumbs, 1), np.concatenate(digests), take)

    def __len__(self) -> int:
        return len(self.digests)


def between(first: Looks, second: Looks) -> list[Pair]:
    """For each picture of the second part the one of the first that it shows again, if there is one."""
    if not len(first) or not len(second):
        return []
    order = np.argsort(first.digests, kind="stable")
    place = np.minimum(np.searchsorted(first.digests[order], second.digests), len(order) - 1)
    same = first.digests[order][place] == second.digests
    found = [Pair("exact", int(order[place[row]]), int(row), 1.0) for row in np.flatnonzero(same)]
    least = enough(first)
    others = np.flatnonzero(~same)
    for rows in (others[part] for part in _chunks(len(others), CHUNK)):
        nearest, left, times = _compared(first, second.take(rows))
        for i in np.flatnonzero((left <= UNLIKE) & (times >= TIMES) | (left <= least)):
            found.append(Pair("near", int(nearest[i]), int(rows[i]), round(float(1 - left[i]) ** 0.5, 4)))
    return sorted(found, key=lambda pair: pair.second)


def enough(part: Looks) -> float:
    """The share left unexplained that makes a leak whatever others leave, for pictures that a part has many times: several times less
    than what very alike ones of its own leave."""
    rows = np.unique(np.linspace(0, len(part) - 1, min(SAMPLE, len(part))).astype(np.int64))
    _, left, _ = _compared(part, part.take(rows), rows)
    return min(UNLIKE, float(np.quantile(left, CLOSE))) / TIMES


def _compared(first: Looks, pictures: Tensor, own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each picture [M, SIDE, SIDE]: the one of the first part that explains it best, the share that this leaves, and how many times
    more the next leaves that is no copy. `own`: which of the first it is itself."""
    nearest, zoom = _candidates(first, pictures, own)
    left, at = _laid(first, pictures, nearest, zoom, LAID, 2, 1)
    times = _times(left)
    unsure = torch.nonzero((times < TIMES) & (times >= 1 / DOUBT) & (left.amin(1) <= UNLIKE))[:, 0]
    if len(unsure):
        closer, _ = _laid(first, pictures[unsure], nearest[unsure], at[unsure], FINE, 1, 2)
        better = _times(closer) > times[unsure]
        left[unsure[better]], times[unsure[better]] = closer[better], _times(closer)[better]
    least, which = left.min(1)
    return nearest.gather(1, which[:, None])[:, 0].numpy(), least.numpy(), times.numpy()


def _times(left: Tensor) -> Tensor:
    """The largest step [M] between shares [M, K] that follow each other in size: above it stand copies of one picture, if they are."""
    ordered = left.sort(1).values.clamp(min=1e-6)
    steps = ordered[:, 1:] / ordered[:, :-1]
    return steps.where(ordered[:, :-1] <= UNLIKE, 1.0).amax(1)


def _candidates(first: Looks, pictures: Tensor, own: np.ndarray | None) -> tuple[Tensor, Tensor]:
    """[M, K] rows of the first part, the likeliest ones (-1: it has no more), and [M, K, 3] where laying them over begins."""
    best, rows, closer = torch.zeros(len(pictures), 0), torch.zeros(len(pictures), 0, dtype=torch.int64), torch.zeros(len(pictures), 0)
    moving = [_moving(pictures, inset) for inset in (0, INSET)]
    for part in _chunks(len(first), BANK):
        # either may be the crop: it is set, whole, beside the other without its border
        alike = [_explained(moving[i], first.thumbs[1 - i, part[0] : part[-1] + 1].float()) for i in (0, 1)]
        value = torch.maximum(*alike)
        if own is not None and len(mine := np.flatnonzero((own >= part[0]) & (own <= part[-1]))):
            value[mine, own[mine] - part[0]] = -1.0
        value, place = value.topk(min(NEAREST, len(part)), 1)
        inside = (alike[0] > alike[1]).gather(1, place).float()
        best, rows, closer = torch.cat([best, value], 1), torch.cat([rows, place + int(part[0])], 1), torch.cat([closer, inside], 1)
        best, kept = best.topk(min(NEAREST, best.shape[1]), 1)
        rows, closer = rows.gather(1, kept), closer.gather(1, kept)
    short = NEAREST - rows.shape[1]
    rows, closer = F.pad(rows.where(best >= 0, -1), (0, short), value=-1), F.pad(closer, (0, short))
    zoom = (0.5 - closer) * (2 * INSET / SIDE)  # half of what the border is
    return rows, torch.stack([zoom, torch.zeros_like(zoom), torch.zeros_like(zoom)], 2)


def _explained(moving: Tensor, thumbs: Tensor) -> Tensor:
    """[M, N]: the share of each thumbnail [N, D] in the span of each picture's own and its changes [M, 4, D]."""
    share = torch.zeros(len(moving), len(thumbs))
    for i in range(moving.shape[1]):
        product = moving[:, i] @ thumbs.t()
        share.addcmul_(product, product)
    return share


def _moving(pictures: Tensor, inset: int) -> Tensor:
    """[N, 4, THUMB * THUMB], orthonormal: the thumbnail without so many pixels of border, and how it changes as the picture is moved
    across, moved down and zoomed. Zeros of a picture that shows nothing."""
    inner = pictures[:, inset : SIDE - inset, inset : SIDE - inset].float()
    look = F.interpolate(inner[:, None], (2 * THUMB, 2 * THUMB), mode="bilinear", antialias=True)[:, 0]
    across, down = _slopes(look)
    at = torch.linspace(-1, 1, 2 * THUMB)
    changes = torch.stack([look, across, down, across * at + down * at[:, None]], 1)
    rows = F.avg_pool2d(changes, 2).flatten(2)
    rows = rows - rows.mean(2, keepdim=True)
    rows[:, 0] *= (rows[:, 0].std(1, keepdim=True) > FLAT).float()
    found: list[Tensor] = []
    for i in range(4):
        row = rows[:, i]
        for other in found:
            row = row - (row * other).sum(1, keepdim=True) * other
        found.append(F.normalize(row, dim=1))
    return torch.stack(found, 1)


def _laid(first: Looks, pictures: Tensor, nearest: Tensor, start: Tensor, size: int, steps: int, blurs: int) -> tuple[Tensor, Tensor]:
    """Candidates laid over pictures, `size` pixels a side: the shares [M, K] that they leave unexplained, and where that was, [M, K, 3]."""
    wanted = _soft(_small(pictures, size))
    who = torch.arange(len(pictures)).repeat_interleave(nearest.shape[1])
    source = _soft(_small(first.take(nearest.clamp(min=0).flatten().numpy()), size))
    left, at = _fitted(wanted[who], source, start.flatten(0, 1), steps, blurs)
    left = left.where(nearest.flatten() >= 0, 1.0)
    return left.view(nearest.shape), at.view(start.shape)


def _fitted(wanted: Tensor, source: Tensor, at: Tensor, steps: int, blurs: int) -> tuple[Tensor, Tensor]:
    """Gauss-Newton on zoom, shift, contrast and `blurs` degrees of sharpness, of pictures [M, S, S], begun at [M, 3] (logarithm of zoom,
    shift across and down): the least share [M] of `wanted` that `source` leaves where it was seen, and where, [M, 3]."""
    size, linear = wanted.shape[-1], 1 + blurs
    line = (torch.arange(size) * 2 + 1) / size - 1
    least, best, flat = torch.full((len(wanted),), 2.0), at, wanted.flatten(1).std(1) <= FLAT
    for step in range(steps + 1):
        zoom = at[:, 0].exp()[:, None, None]
        x, y = (zoom * line + at[:, 1, None, None]).expand_as(wanted), (zoom * line[:, None] + at[:, 2, None, None]).expand_as(wanted)
        seen = ((x.abs() <= 1) & (y.abs() <= 1)).float().flatten(1)
        laid = F.grid_sample(source[:, None], torch.stack([x, y], 3), padding_mode="border", align_corners=False)[:, 0]
        columns = [laid]
        for _ in range(blurs):
            columns.append(_soft(columns[-1]) - columns[-1])
        across, down = (slope * size / 2 for slope in _slopes(laid))
        columns += [across * line + down * line[:, None], across / zoom, down / zoom]
        design = _centred(torch.stack(columns, 1), seen[:, None]).transpose(1, 2)
        lengths = design.norm(dim=1, keepdim=True).clamp(min=1e-6)
        design, target = design / lengths, _centred(wanted, seen)[:, :, None]
        square, moment = design.transpose(1, 2) @ design, design.transpose(1, 2) @ target
        square += 1e-4 * torch.eye(linear + 3)
        said = torch.linalg.solve(square[:, :linear, :linear], moment[:, :linear])
        rest = (target - design[:, :, :linear] @ said).square().sum((1, 2)) / target.square().sum((1, 2)).clamp(min=1e-6)
        rest = rest.where((said[:, 0, 0] > 0) & ~flat, 1.0)  # a negative is no copy
        best, least = torch.where((rest < least)[:, None], at, best), torch.minimum(rest, least)
        if step < steps:
            move = (torch.linalg.solve(square, moment) / lengths.transpose(1, 2))[:, :, 0]
            at = at + (move[:, linear:] / move[:, :1].clamp(min=0.2)).clamp(-FURTHEST / 2, FURTHEST / 2)
            at = at.clamp(-FURTHEST, FURTHEST)
    return least, best


def _slopes(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """How [N, S, S] change from pixel to pixel, across and down."""
    wide = F.pad(pictures[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    return (wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2]) / 2, (wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1]) / 2


def _centred(pictures: Tensor, seen: Tensor) -> Tensor:
    """Flat, without the mean of what is seen; zeros elsewhere."""
    flat = pictures.flatten(-2) * seen
    return (flat - flat.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True)) * seen


def _soft(pictures: Tensor) -> Tensor:
    """Blurred by a pixel: of finer grain no two encodings agree."""
    wide = F.pad(pictures[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    wide = (wide[:, :, 2:] + 2 * wide[:, :, 1:-1] + wide[:, :, :-2]) / 4
    return (wide[:, 2:] + 2 * wide[:, 1:-1] + wide[:, :-2]) / 4


def _small(pictures: Tensor, size: int) -> Tensor:
    return F.interpolate(pictures[:, None].float(), (size, size), mode="bilinear", antialias=True)[:, 0]


def _chunks(count: int, size: int) -> Iterator[np.ndarray]:
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))


def grey(pixels: Tensor) -> Tensor:
    """[N, C, S, S] of any size as [N, SIDE, SIDE]."""
    return F.interpolate(pixels.float().mean(1, keepdim=True), (SIDE, SIDE), mode="bilinear", antialias=True)[:, 0]


def taker(store: Any) -> Take:
    """Of a store of grey pictures of SIDE pixels."""
    pixels = store["pixels"].values
    return lambda rows: torch.from_numpy(np.array(pixels[rows])).view(-1, SIDE, SIDE)

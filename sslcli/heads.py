"""What objectives share: rows and views of pictures, projection heads, the layer of a decoder."""

import math
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sslcli.core import Backbone, Batch, Objective, Places
from sslcli.data.store import Store
from sslcli.hf.attention import attend


class ImageObjective(Objective):
    """Each picture is a row, which the processor (data.pixels.Pixels) reads and makes views of."""

    least_views: ClassVar[int] = 1  # whole ones, that it needs of a picture

    def __init__(self, processor: Any):
        made = 1 if processor.augment is None else processor.augment.count
        if made < self.least_views:
            name, wanted = type(self).__name__, self.least_views
            raise ValueError(f"{name} compares {wanted} views of a picture, this augment makes {made}; use augment=simclr")
        super().__init__()
        self.processor = processor

    def rows(self, store: Store) -> Places:
        return Places(store.count, None, self.processor.width)

    def read(self, store: Store, rows: np.ndarray, keys: np.ndarray) -> Batch:
        return self.processor.read(store, rows, keys)

    def views(self, batch: Batch) -> list[Tensor]:
        """Each [B, C, s, s], augmented and normalised."""
        return self.processor.views(batch)

    def picture(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, C, s, s] as they are shown, between 0 and 1."""
        mean, std = (torch.tensor(x, device=pixels.device).view(-1, 1, 1) for x in (self.processor.mean, self.processor.std))
        return (pixels.float() * std + mean).clamp(0, 1)


def vectors(model: Backbone, pixels: Tensor, chunk: int | None = None) -> Tensor:
    """The network's vector of each picture, [B, C, s, s] -> [B, D].

    `chunk`: only so many pictures at a time keep what the backward pass needs; the others are computed again when it reaches them. The
    gradient is exact, as in GradCache (Gao et al. 2021), and costs one more forward pass: the loss is that of all, the memory that of a
    chunk. BatchNorm inside the network sees a chunk instead of the batch (and counts it twice in its running statistics).
    """

    def vector(part: Tensor) -> Tensor:
        batch = {"pixels": part}
        return model.pool(model.encode(batch), batch)

    if chunk is None or len(pixels) <= chunk:
        return vector(pixels)
    again = torch.is_grad_enabled()
    return torch.cat([checkpoint(vector, part, use_reentrant=False) if again else vector(part) for part in pixels.split(chunk)])


def views_seen(features: Sequence[Tensor], projected: Tensor | None = None) -> dict[str, Tensor]:
    """For `Output.seen`: the network's vectors [B, D] of the two whole views, and what the loss makes of the first of them."""
    return {"first": features[0], "second": features[1], **({} if projected is None else {"projected": projected})}


class BatchNorm(nn.BatchNorm1d):
    """In fp32, whatever the weights are kept in. The statistics of a batch are those of this rank's part of it."""

    def forward(self, x: Tensor) -> Tensor:
        gain, shift = (None if w is None else w.float() for w in (self.weight, self.bias))
        held = (self.running_mean, self.running_var)
        return F.batch_norm(x.float(), *held, gain, shift, self.training, self.momentum or 0.0, self.eps).to(x.dtype)


def projector(*widths: int, bias: bool = True, normalised: bool = False) -> nn.Sequential:
    """Linear layers [B, widths[0]] -> [B, widths[-1]] with BatchNorm and ReLU between them. The last one may have a `bias`, or be
    `normalised` by a BatchNorm without gain."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias=False), BatchNorm(after), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=bias and not normalised))
    return nn.Sequential(*layers, *([BatchNorm(widths[-1], affine=False)] if normalised else []))


class Prototypes(nn.Module):
    """Cosines of vectors [B, D] with K prototypes, in fp32: [B, K].

    Both are brought to unit length here: an optimizer that holds masters of the weights would undo what is written into them.
    """

    def __init__(self, dim: int, count: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim))
        nn.init.normal_(self.weight, std=dim**-0.5)

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        weight = self.weight.detach() if frozen else self.weight
        return F.linear(F.normalize(x.float(), dim=-1), F.normalize(weight.float(), dim=-1))


class Layer(nn.Module):
    """A layer of a transformer (pre-norm), [B, T, D] -> [B, T, D]; `last`: of so many last tokens only, [B, last, D]; `causal`: a token
    sees none that follow it."""

    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor, last: int | None = None, causal: bool = False) -> Tensor:
        query, key, value = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if last is not None:
            x, query = x[:, -last:], query[:, :, -last:]
        mixed, _ = attend(self, query, key, value, None, is_causal=causal)
        x = x + self.out(mixed.flatten(2))
        return x + self.down(F.gelu(self.up(self.after(x))))


def sincos_positions(side: int, width: int) -> Tensor:
    """Fixed positions of the patches of a picture, [side * side, width] (the 2-D sines and cosines of MAE, column before row)."""
    frequencies = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], 1)  # [side, width / 2]
    rows, columns = waves.repeat_interleave(side, 0), waves.repeat(side, 1)
    return torch.cat([columns, rows], 1).float()


def same_size(views: Sequence[Tensor]) -> list[list[Tensor]]:
    """Views in groups that go through a network together: whole pictures first, then crops of each smaller size."""
    return [list(group) for _, group in groupby(views, key=lambda view: view.shape[-1])]


def unpatched(model: Any, patches: Tensor, like: Tensor) -> Tensor:
    """The inverse of `model.patches`: [B, N, P] -> pictures [B, C, s, s] as `like`."""
    numbers = torch.arange(like[0].numel(), dtype=torch.float64, device=like.device).view_as(like[:1])
    places = model.patches(numbers).long().flatten()
    return torch.zeros_like(like).flatten(1).index_copy(1, places, patches.flatten(1).to(like.dtype)).view_as(like)


def momentum_at(progress: float, start: float) -> float:
    """Of a teacher that moves ever less: from `start` to 1 along a cosine (BYOL, Grill et al. 2020)."""
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2

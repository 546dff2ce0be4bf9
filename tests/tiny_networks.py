"""Small pictures, views, networks and objectives for tests."""

import functools
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from sslcli.core import Backbone, Batch, Objective
from sslcli.data import chance
from sslcli.data.pixels import Pixels
from sslcli.data.store import Store, Writer, cache
from sslcli.heads import Layer, sincos_positions
from tests.conftest import CONFIGS

SIZE = 8


class Shaken:
    """Two views of other brightness, contrast and place, and `small` crops of half the side, all from `draws`."""

    def __init__(self, small: int = 0):
        self.count, self.small, self.draws = 2, small, 4 * (2 + small)

    def views(self, pixels: Tensor, draws: Tensor, mirror: bool) -> list[Tensor]:
        found, pixels = [], pixels.float() / 255
        for i, d in enumerate(draws.split(4, 1)):
            view = pixels * (0.9 + 0.2 * d[:, 0]).view(-1, 1, 1, 1) + 0.1 * (d[:, 1] - 0.5).view(-1, 1, 1, 1)
            view = torch.stack([v.roll((int(2 * x), int(2 * y)), (1, 2)) for v, (x, y) in zip(view, d[:, 2:].tolist(), strict=True)])
            found.append(view if i < 2 else view[:, :, 2:6, 2:6])
        return found


class Conv(Backbone):
    """Two convolutions without BatchNorm: no row sees another."""

    def __init__(self, processor: Pixels, dim: int = 24):
        super().__init__()
        self.dim, self.family = dim, "conv"
        self.embedding = nn.Conv2d(processor.channels, 16, 3, stride=2, padding=1)
        self.second = nn.Conv2d(16, dim, 3, padding=1)
        self.passes: list[int] = []

    def grid(self, size: int) -> int:
        return size // 2

    def encode(self, batch: Batch) -> Tensor:
        self.passes.append(len(batch["pixels"]))
        return self.second(F.gelu(self.embedding(batch["pixels"].to(self.second.weight.dtype)))).flatten(2).transpose(1, 2)

    def pool(self, hidden: Tensor, batch: Batch) -> Tensor:
        return hidden.mean(1)


class TinyVit(Backbone):
    def __init__(self, processor: Pixels, dim: int = 24, patch: int = 2, layers: int = 2):
        super().__init__()
        self.dim, self.patch, self.family = dim, patch, "vit"
        self.embedding = nn.Linear(processor.channels * patch**2, dim)
        self.first = nn.Parameter(torch.randn(dim) * 0.02)
        self.layers, self.norm = nn.ModuleList(Layer(dim, 2, 2 * dim) for _ in range(layers)), nn.LayerNorm(dim, eps=1e-6)
        self.register_buffer("positions", sincos_positions(self.grid(processor.size), dim))

    def grid(self, size: int) -> int:
        return size // self.patch

    def patches(self, pixels: Tensor) -> Tensor:
        cut = pixels.unflatten(2, (-1, self.patch)).unflatten(4, (-1, self.patch))
        return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def encode(self, batch: Batch) -> Tensor:
        x = self.embedding(self.patches(batch["pixels"]).to(self.first.dtype))
        if "masked" in batch:
            x = torch.where(batch["masked"][..., None], batch["mask_token"].to(x.dtype), x)
        side = int(x.shape[1] ** 0.5)
        x = x + sincos_positions(side, self.dim).to(x.dtype)
        if "visible" in batch:
            x = x.gather(1, batch["visible"][..., None].expand(-1, -1, self.dim))
        x = torch.cat([self.first.expand(len(x), 1, -1), x], 1)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def pool(self, hidden: Tensor, batch: Batch) -> Tensor:
        return hidden[:, 1:].mean(1)


def processor(small: int = 0, augmented: bool = True) -> Pixels:
    return Pixels(SIZE, 1, [0.3], [0.37], True, Shaken(small) if augmented else None)


@functools.cache
def digits() -> Store:
    """256 of scikit-learn's, as decoded pictures and a split of them."""
    from sklearn.datasets import load_digits

    images = (load_digits().images[:256] / 16 * 255).round().astype(np.uint8)
    folder = cache() / "stores" / "digits-of-a-test"
    for path, fields in (
        (folder, {"pixels": images}),
        (folder.with_name("digits-split"), {"place": np.arange(256), "owner": np.arange(256)}),
    ):
        path.mkdir(parents=True, exist_ok=True)
        writer = Writer(path, {name: values.dtype for name, values in fields.items()}, set())
        writer.meta = {"pixels": folder.name}
        writer.append(256, {}, **fields)
        writer.finish()
    return Store(path)


def batch_of(objective: Objective, store: Store, count: int = 64, epoch: int = 0) -> Batch:
    rows = np.arange(count)
    return objective.read(store, rows, chance.keys(0, epoch, rows))


def made(cls: type, small: int = 0, vit: bool = False, **changed: Any) -> tuple[Any, Any]:
    """An objective as its YAML has it, but for `changed`, on a tiny network."""
    torch.manual_seed(0)
    (path,) = [p for p in (CONFIGS / "objective").glob("*.yaml") if cls.__module__.endswith(f".{p.stem}")]
    keys = {k: v for k, v in yaml.safe_load(path.read_text()).items() if k not in ("defaults", "kind", "modality")}
    words = processor(small)
    model = TinyVit(words) if vit else Conv(words)
    return cls(model, words, **{**keys, **changed}), model

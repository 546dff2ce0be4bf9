"""Splits of pictures as preparing them leaves them on disk, made from arrays; and a small network to look at them."""

import hashlib
import json
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from sslcli.core import Backbone, Batch
from sslcli.data.store import Store, Writer, cache


def split(folder: Path, pictures: np.ndarray, gold: list, names: list[str]) -> Store:
    """`pictures` uint8 [N, C, S, S]; `gold` their labels (or lists of labels); `names` the labels in order."""
    name = hashlib.sha256(pictures.tobytes() + str(pictures.shape).encode()).hexdigest()[:32]
    decoded = cache() / "stores" / name
    if not (decoded / "meta.json").exists():
        decoded.mkdir(parents=True, exist_ok=True)
        writer = Writer(decoded, {"pixels": np.uint8}, set())
        writer.append(len(pictures), {}, pixels=pictures.ravel())
        writer.finish()
    ids = {label: i for i, label in enumerate(names)}
    multi = isinstance(gold[0], list)
    label = [[int(n in g) for n in names] if multi else [ids.get(g, -1)] for g in gold]
    (folder / "rows").mkdir(parents=True)
    writer = Writer(folder / "rows", {"place": np.int64, "owner": np.int32, "label": np.int32}, set())
    writer.meta = {"pixels": name}
    writer.append(len(gold), {}, place=np.arange(len(gold)), owner=np.arange(len(gold)), label=np.array(label).ravel())
    writer.finish()
    (folder / "examples").mkdir()
    examples = Writer(folder / "examples", {"text": np.uint8}, {"text"})
    lines = [json.dumps({"input": f"pictures#{i}", "gold": g}).encode() for i, g in enumerate(gold)]
    examples.append(len(lines), {"text": np.array([len(x) for x in lines])}, text=np.frombuffer(b"".join(lines), np.uint8))
    examples.finish()
    return Store(folder / "rows")


class Small(Backbone):
    """A network of three blocks with statistics and dropout of their own, that learns in seconds."""

    def __init__(self, channels: int = 1, dim: int = 32):
        super().__init__()
        self.dim, self.family, self.loaded = dim, "small", {"tensors": 0}
        self.embedding = nn.Conv2d(channels, dim, 3, 2, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, 3, 1, 1), nn.BatchNorm2d(dim), nn.ReLU(), nn.Dropout(0.1)) for _ in range(3)
        )
        self.norm = nn.LayerNorm(dim)

    def encode(self, batch: Batch) -> Tensor:
        hidden = self.embedding(batch["pixels"].to(self.embedding.weight.dtype))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.norm(hidden.flatten(2).transpose(1, 2).to(self.norm.weight.dtype))

    def pool(self, hidden: Tensor, batch: Batch) -> Tensor:
        return hidden.mean(1)

"""Reading a packed corpus: full blocks without padding, or whole documents."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslcli.core import Places
from sslcli.data.store import Store


def block_places(store: Store, length: int, extra: int = 0) -> Places:
    """Full blocks of `length` tokens over the whole run of documents (`extra` tokens beyond a block's end are needed too)."""
    total = len(store["ids"].values)
    width = max(1, min(length, total - extra))
    return Places(max(1, (total - extra) // width), None, width)


def read_blocks(store: Store, rows: np.ndarray, width: int, extra: int = 0) -> np.ndarray:
    """[B, width + extra] int64: slices of the memory-mapped run of tokens."""
    values = store["ids"].values
    return values[(np.asarray(rows) * width)[:, None] + np.arange(width + extra)].astype(np.int64)


def documents(store: Store, shortest: int) -> np.ndarray:
    """Rows of the documents that have at least `shortest` tokens."""
    return np.flatnonzero(store["ids"].lengths() >= shortest)


def padded(pieces: list[np.ndarray], pad: int, dtype: Any = np.int64) -> tuple[Tensor, Tensor | None]:
    """(ids [B, T], mask [B, T] or None where nothing is padded)."""
    lengths = np.array([len(p) for p in pieces])
    ids = np.full((len(pieces), int(lengths.max())), pad, dtype)
    inside = np.arange(ids.shape[1]) < lengths[:, None]
    ids[inside] = np.concatenate(pieces)
    return torch.from_numpy(ids), None if inside.all() else torch.from_numpy(inside)

"""Reading a packed corpus: full blocks without padding, or whole documents."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslcli.core import Places
from sslcli.data.store import Field, Store

PIECE = 1 << 22  # tokens that are looked at together


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


def words(pad: int, *fields: Field) -> Iterator[np.ndarray]:
    """The ids of all tokens of these fields, in pieces, many of them often; and that of padding."""
    yield np.array([pad])
    for field in fields:
        yield from (field.values[start : start + PIECE] for start in range(0, len(field.values), PIECE))


class Documents:
    """A packed corpus as rows of one whole document each, cut to so many tokens with the tokenizer's ends. What is cut is counted."""

    def __init__(self, tokenizer: Any, together: bool = False):
        """`together`: a row is all the texts of one record (a pair, and perhaps what is unlike it), not each by itself."""
        self.prefix, self.suffix = np.array(tokenizer.prefix, np.int64), np.array(tokenizer.suffix, np.int64)
        self.pad, self.together = int(tokenizer.pad or 0), together
        self.longest = max(1, tokenizer.length - len(self.prefix) - len(self.suffix))
        self.ends = len(self.prefix) + max(1, len(self.suffix))  # a document without a suffix is closed by an end of its own
        self.cut: dict[str, int] = {}
        self._rows: dict[str, np.ndarray] = {}

    def rows(self, store: Store) -> np.ndarray:
        """[N, texts]: the documents of each row; empty ones are none."""
        key = str(store.path)
        if key not in self._rows:
            lengths = store["ids"].lengths() - self.ends
            texts = int(store.meta.get("texts", 1)) if self.together else 1
            every = np.arange(len(lengths) // texts * texts).reshape(-1, texts)
            self._rows[key] = chosen = every[(lengths[every] > 0).all(1)]
            over = np.maximum(lengths[chosen] - self.longest, 0)
            self.cut = self.cut or {"texts": int((over > 0).sum()), "of": over.size, "tokens": int(over.sum())}
        return self._rows[key]

    def places(self, store: Store) -> Places:
        rows = self.rows(store)
        return Places(len(rows), np.minimum(store["ids"].lengths()[rows] - self.ends, self.longest).sum(1))

    def read(self, store: Store, rows: np.ndarray) -> list[np.ndarray]:
        """The tokens of these rows without ends: all first texts, then all second ones, ..."""
        found = store["ids"].take(self.rows(store)[rows].T.ravel())
        return [d[len(self.prefix) : len(d) - max(1, len(self.suffix))][: self.longest].astype(np.int64) for d in found]

    def batch(self, texts: list[np.ndarray]) -> dict[str, Tensor]:
        """Between their ends: `ids` [B, T] and, where there is padding, `mask`."""
        ids, mask = padded([np.concatenate([self.prefix, t, self.suffix]) for t in texts], self.pad)
        return {"ids": ids} if mask is None else {"ids": ids, "mask": mask}

"""Positions to batches. The position is the state: step t of epoch e takes places [t*B, (t+1)*B) of a permutation of (seed, e).

Nothing is remembered between steps, so resuming is one integer and any number of ranks sees the same global batches.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from sslcli.core import Batch, Places
from sslcli.data import chance
from sslcli.errors import BadInput

WINDOW = 50  # batches whose rows are sorted by length together: little padding, and still an arbitrary mix


@dataclass
class Stream:
    places: Places
    read: Callable[[np.ndarray, np.ndarray], Batch]  # (rows, keys) -> batch
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1
    micro_rows: int | None = None  # rows of one forward pass
    micro_tokens: int | None = None  # padded tokens of one forward pass
    worth: int = 256  # padded tokens whose saving is worth a forward pass of its own
    whole: bool = False  # never cut a rank's share, never give an incomplete batch
    change: Callable[[Batch, np.ndarray, np.ndarray], Batch] | None = None  # (batch, rows, keys) -> batch: an augmentation of texts
    _order: tuple[int, np.ndarray] = field(default=(-1, np.zeros(0, np.int64)), repr=False)

    def __post_init__(self) -> None:
        if self.batch_size % self.world:
            above = -(-self.batch_size // self.world) * self.world
            legal = f"{above - self.world} or {above}" if above > self.world else f"{above}"
            raise BadInput(f"trainer.batch_size={self.batch_size} is not divisible by trainer.devices={self.world}; use {legal}")
        if self.whole:
            self.batch_size = max(self.world, min(self.batch_size, self.places.count // self.world * self.world))

    @property
    def steps_per_epoch(self) -> int:
        count = self.places.count / self.batch_size
        return max(1, math.floor(count) if self.whole else math.ceil(count))

    def rows(self, step: int) -> np.ndarray:
        """The global batch of a step: row numbers, the same for every rank."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = self._order  # once: another thread may be reading the next epoch already
        if order[0] != epoch:
            order = self._order = (epoch, self._plan(epoch))
        return order[1][place * self.batch_size : (place + 1) * self.batch_size]

    def batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step. Ranks take every n-th row, so that sorted rows share out evenly."""
        mine = self.rows(step)[self.rank :: self.world]
        keys = chance.keys(self.seed, step // self.steps_per_epoch, mine)
        pieces = [(mine[part], keys[part]) for part in self._cut(mine)]
        if self.change is None:
            return [self.read(*piece) for piece in pieces]
        return [self.change(self.read(*piece), *piece) for piece in pieces]

    def _plan(self, epoch: int) -> np.ndarray:
        order = chance.permutation(self.seed, epoch, self.places.count)
        paired = self.places.kinds is not None
        if self.places.kinds is not None:
            order = order[self._paired(epoch, self.places.kinds[order])]
        if self.places.lengths is None:
            return order
        size, pieces = self.batch_size, []
        together = size * (1 if self.places.packed or paired else WINDOW)
        for start in range(0, len(order), together):
            window = order[start : start + together]
            pieces.append(window[np.argsort(self.places.lengths[window], kind="stable")])
        flat = np.concatenate(pieces)
        full = len(flat) // size * size
        batches = flat[:full].reshape(-1, size)
        return np.concatenate([batches[chance.permutation(self.seed ^ 0xBA7C, epoch, len(batches))].ravel(), flat[full:]])

    def _paired(self, epoch: int, kinds: np.ndarray) -> np.ndarray:
        """An order of pairs of one kind, mixed; odd ones make pairs among themselves, so that no pair is parted by the end of a batch."""
        by_kind = np.argsort(kinds, kind="stable")
        place = np.arange(len(kinds)) - np.searchsorted(kinds[by_kind], kinds[by_kind])  # inside its kind
        odd = (place % 2 == 0) & np.append(kinds[by_kind][1:] != kinds[by_kind][:-1], True)
        rows = np.concatenate([by_kind[~odd], by_kind[odd]])
        pairs = rows[: len(rows) // 2 * 2].reshape(-1, 2)
        return np.concatenate([pairs[chance.permutation(self.seed ^ 0x2A17, epoch, len(pairs))].ravel(), rows[pairs.size :]])

    def _cut(self, rows: np.ndarray) -> list[slice]:
        """Pieces that fit in memory, and that part where padding costs more than another forward pass."""
        if self.whole or not len(rows):
            return [slice(0, len(rows))] if len(rows) else []
        ragged = self.places.lengths is not None
        lengths = self.places.lengths[rows] if self.places.lengths is not None else np.ones(len(rows), np.int64)
        limit = self.micro_tokens if ragged and self.micro_tokens else math.inf
        parts, start, longest = [], 0, 0
        for i, length in enumerate(lengths.tolist()):
            longest = max(longest, length)
            if i > start and (i - start >= (self.micro_rows or math.inf) or longest * (i - start + 1) > limit):
                parts.append(slice(start, i))
                start, longest = i, length
        parts.append(slice(start, len(rows)))
        apart = ragged and not self.places.packed
        return [piece for part in parts for piece in self._parted(lengths, part)] if apart else parts

    def _parted(self, lengths: np.ndarray, part: slice) -> list[slice]:
        """`part` (sorted by length), cut in two where that saves most padding, as long as it saves enough."""
        inside = lengths[part]
        saved = np.arange(1, len(inside)) * (inside[-1] - inside[:-1])
        if not len(saved) or saved.max() < self.worth:
            return [part]
        middle = part.start + int(saved.argmax()) + 1
        return self._parted(lengths, slice(part.start, middle)) + self._parted(lengths, slice(middle, part.stop))


def in_order(places: Places, tokens: int, rank: int = 0, world: int = 1) -> list[np.ndarray]:
    """Rows in batches of a token budget, longest first (so that memory is known after the first): the order of an evaluation."""
    lengths = places.lengths if places.lengths is not None else np.full(places.count, places.width)
    order = np.argsort(-lengths, kind="stable")[rank::world]
    batches, start = [], 0
    while start < len(order):
        size = max(1, tokens // max(int(lengths[order[start]]), 1))
        batches.append(order[start : start + size])
        start += size
    return batches


def to_device(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    return {k: v if k == "weight" else v.pin_memory().to(device, non_blocking=True) for k, v in batch.items()}

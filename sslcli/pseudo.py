"""Labels that somebody else gave rows without one: which of them are learnt, how much each counts, and what came of it."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.nn import functional as F

from sslcli.core import Backbone, Batch, Output, Places
from sslcli.data.store import Store
from sslcli.errors import BadInput
from sslcli.unlabelled import OfTask

Said: TypeAlias = tuple[str | None, float]
"""A label, or none, and how sure it is, in [0, 1]."""


class Pseudo(OfTask):
    """Cross-entropy of the strong views against labels that are given once, before the first step.

    `threshold`: rows whose label is less sure are left out. `balance`: as many rows of every label, the surest first; where one has
    fewer, they come several times. Else all sure ones.
    """

    batch_size = 64
    who = "the teacher"  # gave the labels
    warning: str | None = None  # about these, before the first step
    threshold: float
    balance: bool

    def __init__(self, *of: Any) -> None:
        super().__init__(*of)
        self.found: dict[str, Any] = {}

    @property
    @abstractmethod
    def name(self) -> str:
        """In the receipts."""

    @abstractmethod
    def labels(self, look: Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]], ask: Callable[[str], Iterator[Said]]) -> Iterator[Said]:
        """Of each unlabelled example. `look`: vectors of the labelled ones [M, D] by the network as it is, their labels [M], vectors of the
        unlabelled ones [N, D], NaN of a text that was left out; `ask`: what a finished run says of each."""

    def learn(self, store: Store, label: np.ndarray, confidence: np.ndarray) -> np.ndarray:
        """Take the label and the confidence of each example; which are used, [examples] bool."""
        sure = np.flatnonzero((confidence >= self.threshold) & (label >= 0))  # -1: nobody said anything
        if (label < 0).all():
            raise BadInput(
                f"data.unlabelled: {self.who} says nothing of any of its {len(label):,} rows; they are like none that has a label"
            )
        if not len(sure):
            most = f"the surest is at {confidence.max():.3f}"
            raise BadInput(f"objective.threshold={self.threshold:g}: {self.who} is that sure of no unlabelled row ({most}); lower it")
        sure = sure[np.argsort(-confidence[sure], kind="stable")]
        by_label = {y: sure[label[sure] == y] for y in np.unique(label[sure]).tolist()}
        each = int(np.median([len(rows) for rows in by_label.values()]))
        taken = np.concatenate([np.resize(rows, each) for rows in by_label.values()]) if self.balance else sure
        self.found = {"examples": len(label), "confident": round(len(sure) / len(label), 4), "used": len(np.unique(taken))}
        self.found["pseudo_labels"] = self.shares(torch.from_numpy(label[sure]))
        self.missing = [name for i, name in enumerate(self.task.labels) if i not in by_label]
        owners = store["owner"].values[:, 0]  # in order: the rows (windows) of an example stand together
        first, end = np.searchsorted(owners, taken), np.searchsorted(owners, taken, "right")
        self._rows = np.concatenate([np.arange(a, b) for a, b in zip(first.tolist(), end.tolist(), strict=True)])
        counts = self.counting(confidence)
        self._label, self._counts = label[owners], (counts / max(counts[taken].mean(), 1e-12)).astype(np.float32)[owners]
        self.found["confidence"] = round(float(confidence[sure].mean()), 4)
        return np.isin(np.arange(len(label)), taken)

    def counting(self, confidence: np.ndarray) -> np.ndarray:
        """How much the loss of each example counts beside those of others, [examples]."""
        return np.ones(len(confidence))

    def rows(self, store: Store) -> Places:
        every = self.task.rows(store)
        lengths = None if every.lengths is None else every.lengths[self._rows]
        return Places(len(self._rows), lengths, every.width, every.packed)

    def read(self, store: Store, rows: np.ndarray, keys: np.ndarray) -> Batch:
        rows = self._rows[rows]
        given = {"label": torch.from_numpy(self._label[rows].astype(np.int64)), "counts": torch.from_numpy(self._counts[rows])}
        return {**super().read(store, rows, keys), **given}

    def forward(self, model: Backbone, batch: Batch) -> Output:
        logits, label = self.strong(model, batch), batch["label"]
        loss = (F.cross_entropy(logits, label, reduction="none") * batch["counts"]).mean()
        return Output(loss, {"agreement": (logits.detach().argmax(-1) == label).float().mean()})

    def conclude(self, model: Backbone, stream: Any) -> None:
        rows, weak, _ = self.looked(model, stream)
        self.found["agreement"] = round(float((weak.argmax(-1).numpy() == self._label[self._rows[rows]]).mean()), 4)

    def doubt(self) -> str | None:
        return f"{self.who} is sure of no unlabelled row of {', '.join(self.missing[:5])}" if self.missing else None

    def receipt(self, stream: Any) -> dict[str, Any]:
        """The share of rows that were sure, how sure, their labels, how many were learnt, and whether the student says the same."""
        return {self.name: {"threshold": self.threshold, **self.found}}

"""Self-training: a finished model labels the unlabelled rows, and a student learns those it was sure of, with noise (Noisy Student, Xie et
al. 2020)."""

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional as F

from sslcli.augment import Augment
from sslcli.core import Backbone, Batch, Output, Places
from sslcli.data.store import Store
from sslcli.errors import BadInput
from sslcli.schema import Part
from sslcli.unlabelled import OfTask


class SelfTraining(OfTask):
    """The student begins where its teacher began; the noise is its dropout and the strong view.

    `teacher`: a finished run of the same labels; null: one is trained on the labels alone first, and every one of `rounds` students teaches
    the next. `balance`: as many rows of every label, the surest first; where one has fewer, they come several times. Else all sure ones.
    """

    batch_size = 64

    def __init__(
        self,
        model: Any,
        processor: Any,
        task: Any,
        store: Any,
        *,
        strong: Part[Augment],
        teacher: str | None,
        rounds: Annotated[int, Field(ge=1, le=20)],
        threshold: Annotated[float, Field(ge=0, lt=1)],
        balance: bool,
    ):
        super().__init__(model, processor, task, store, strong)
        self.teacher, self.threshold, self.balance = teacher, threshold, balance
        self.found: dict[str, Any] = {}

    def learn(self, store: Store, label: np.ndarray, confidence: np.ndarray) -> np.ndarray:
        """Take the teacher's label and confidence of each example; which are used, [examples] bool."""
        sure = np.flatnonzero(confidence >= self.threshold)
        if not len(sure):
            most = f"the surest is at {confidence.max():.3f}"
            raise BadInput(f"objective.threshold={self.threshold:g}: the teacher is that sure of no unlabelled row ({most}); lower it")
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
        self._label = label[owners]
        return np.isin(np.arange(len(label)), taken)

    def rows(self, store: Store) -> Places:
        every = self.task.rows(store)
        lengths = None if every.lengths is None else every.lengths[self._rows]
        return Places(len(self._rows), lengths, every.width, every.packed)

    def read(self, store: Store, rows: np.ndarray, keys: np.ndarray) -> Batch:
        batch = super().read(store, self._rows[rows], keys)
        return {**batch, "label": torch.from_numpy(self._label[self._rows[rows]].astype(np.int64))}

    def forward(self, model: Backbone, batch: Batch) -> Output:
        logits, label = self.strong(model, batch), batch["label"]
        return Output(F.cross_entropy(logits, label), {"agreement": (logits.detach().argmax(-1) == label).float().mean()})

    def conclude(self, model: Backbone, stream: Any) -> None:
        rows, weak, _ = self.looked(model, stream)
        self.found["agreement"] = round(float((weak.argmax(-1).numpy() == self._label[self._rows[rows]]).mean()), 4)

    def doubt(self) -> str | None:
        return f"the teacher is sure of no unlabelled row of {', '.join(self.missing[:5])}" if self.missing else None

    def receipt(self, stream: Any) -> dict[str, Any]:
        """The share of rows that the teacher was sure of, their labels, how many were learnt, and whether the student says the same."""
        return {"self_training": {"threshold": self.threshold, **self.found}}

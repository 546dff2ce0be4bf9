"""What learning from a task's own predictions of unlabelled rows shares: rows as the task reads them, a weak and a strong view
of each."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sslcli.augment import Augment
from sslcli.augment.text import TextAugment
from sslcli.core import Backbone, Batch, Objective, Places, Task
from sslcli.data import chance
from sslcli.data.store import Store
from sslcli.data.stream import in_order, to_device
from sslcli.schema import Part

STRONG = 9  # of the draws of strong views: others than those of the weak ones
LOOKED = 2000  # rows that a receipt is measured on
TOKENS = 4096  # of one forward pass there


class OfTask(Objective):
    """An objective over rows whose labels nobody knows, which learns from what the task says of them; it owns no weights.

    `strong`: the augmentation that makes the strong view of a row. The weak view is the row as the task trains on it.
    """

    heads: ClassVar[tuple[str, ...]] = ("auto", "linear", "mlp")  # of texts: logits that are trained, batch by batch
    solved: ClassVar[tuple[str, ...]] = ("probe", "knn")  # of pictures (task.tune): nothing is trained
    least_steps: ClassVar[int] = 300  # of a run, where the user names no number: the labels alone would ask for fewer

    def __init__(self, model: Backbone, processor: Any, task: Task, store: Store, strong: Part[Augment]):
        super().__init__()
        self._task = (task,)  # held so that it is no module of this one: it is the run's already
        self._look = _Pictures(task, strong) if hasattr(task, "processor") else _Texts(task, strong, model, processor, store)

    @property
    def task(self) -> Any:
        return self._task[0]

    @classmethod
    def unfit(cls, task: Part[Task], labelling: Any) -> str | None:
        """Why it cannot learn from this task."""
        if labelling != "single" or not task.cls.classifies:
            return "it learns where a text or a picture has one label of several (task=text_classification or image_classification)"
        head, tune = task.config.get("head", "linear"), task.config.get("tune", "full")
        if head not in cls.heads:
            return f"task.head={head} has no layer that is trained with the network; use task.head=linear or mlp"
        return f"task.tune={tune} trains nothing; use task.tune=full" if tune in cls.solved else None

    def rows(self, store: Store) -> Places:
        return replace(self.task.rows(store), words=None)  # strong views hold other words too

    def read(self, store: Store, rows: np.ndarray, keys: np.ndarray) -> Batch:
        return self._look.read(self.task.read(store, rows, keys), rows, keys)

    def weak(self, model: Backbone, batch: Batch) -> Tensor:
        """Logits [B, C] of the weak views: without gradient, and without dropout."""
        with torch.no_grad(), asleep(model, self.task):
            return self.task.logits(model, self._look.weak(batch)).float()

    def strong(self, model: Backbone, batch: Batch) -> Tensor:
        """Logits [B, C] of the strong views."""
        return self.task.logits(model, self._look.strong(batch)).float()

    def looked(self, model: Backbone, stream: Any) -> tuple[np.ndarray, Tensor, Tensor]:
        """An even sample of the rows [N], and probabilities [N, C] of their weak and strong views, as the network is now."""
        places, device = stream.places, next(model.parameters()).device
        rows = np.arange(0, places.count, -(-places.count // LOOKED))
        some = Places(len(rows), None if places.lengths is None else places.lengths[rows], places.width)
        order, found = [], []
        with torch.no_grad(), asleep(model, self.task):
            for part in in_order(some, TOKENS):
                batch = to_device(stream.read(rows[part], chance.keys(stream.seed, 0, rows[part])), device)
                order.append(rows[part])
                found.append([logits(model, batch).softmax(-1).cpu() for logits in (self.weak, self.strong)])
        weak, strong = zip(*found, strict=True)
        return np.concatenate(order), torch.cat(weak), torch.cat(strong)

    def doubt(self) -> str | None:
        """A warning, where the rows taught nothing."""
        return None

    def shares(self, label: Tensor) -> dict[str, float]:
        """Label -> its share among pseudo-labels [N]."""
        counts, names = Counter(label.tolist()), self.task.labels
        return {names[i]: round(n / max(1, len(label)), 4) for i, n in sorted(counts.items())}


class _Texts:
    """The weak view is the text itself."""

    def __init__(self, task: Task, strong: Part[Augment], model: Backbone, tokenizer: Any, store: Store):
        augment = strong.build()
        if not isinstance(augment, TextAugment) or augment.mixes:
            raise ValueError("strong: changes no text; choose one that does, as augment@objective.strong=eda")
        augment.begin(model, tokenizer, store)
        self.augment = augment

    def read(self, batch: Batch, rows: np.ndarray, keys: np.ndarray) -> Batch:
        changed = self.augment({k: batch[k] for k in ("ids", "mask") if k in batch}, rows, keys)
        return {**batch, **{f"strong_{key}": value for key, value in changed.items()}}

    def weak(self, batch: Batch) -> Batch:
        return batch

    def strong(self, batch: Batch) -> Batch:
        return {key: batch[f"strong_{key}"] for key in ("ids", "mask", "features") if f"strong_{key}" in batch}


class _Pictures:
    """The weak view is that of the task's training (augment=)."""

    def __init__(self, task: Any, strong: Part[Augment]):
        self.augment: Any = strong.build()
        self.processor = task.processor
        if not hasattr(self.augment, "views"):
            raise ValueError("strong: makes no views of a picture; choose one that does, as augment@objective.strong=randaugment")

    def read(self, batch: Batch, rows: np.ndarray, keys: np.ndarray) -> Batch:
        return {**batch, "strong_draws": torch.from_numpy(chance.uniform(keys, self.augment.draws, stream=STRONG))}

    def weak(self, batch: Batch) -> Batch:
        return {"pixels": self.processor.views(batch)[0]}

    def strong(self, batch: Batch) -> Batch:
        views = self.augment.views(batch["pixels"], batch["strong_draws"], self.processor.mirror)
        return {"pixels": self.processor.normalised(views[0])}


@contextlib.contextmanager
def asleep(*modules: nn.Module) -> Iterator[None]:
    """Inside, without dropout, and statistics as in use."""
    awake = [m for module in modules for m in module.modules() if m.training]
    for m in awake:
        m.training = False
    try:
        yield
    finally:
        for m in awake:
            m.training = True

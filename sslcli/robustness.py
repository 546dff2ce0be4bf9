"""What a classifier loses when its input is disturbed: slips and lost, moved or replaced words, noise on their embeddings; corrupted and
adversarial pictures.

A disturbance changes batches as they are read, by chance that comes from the row's key alone, or the network while it predicts: twice
measured is twice the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslcli.attack import EMBEDDED, PIXELS, Attack, OnEmbeddings, pgd
from sslcli.augment.corruptions import CORRUPTIONS
from sslcli.augment.synonyms import Neighbours
from sslcli.augment.text import Rewriting
from sslcli.augment.words import Text, delete, mistype, replace, swap
from sslcli.core import Backbone, Batch, Prediction, Task
from sslcli.data.examples import examples_of
from sslcli.data.store import Store
from sslcli.distributed import World
from sslcli.errors import BadInput
from sslcli.evaluation import judge
from sslcli.log import Screen

WORDS: dict[str, Callable[..., None]] = {"typos": mistype, "words dropped": delete, "words swapped": swap, "synonyms": replace}
RATES = (0.05, 0.1, 0.2)  # of the words of a text
KEPT = ("accuracy", "accuracy_interval", "macro_f1", "macro_f1_interval", "ece")


class Disturbance(ABC):
    kind: str
    strength: float
    unit = ""

    @abstractmethod
    def on(self, task: Task) -> AbstractContextManager[None]:
        """Inside, the task is disturbed."""

    @abstractmethod
    def changed(self) -> float:
        """The share of words that really were, the mean change of a pixel, or the mean size of noise on embeddings."""


class _Read(Disturbance):
    """What the task reads is changed."""

    @abstractmethod
    def __call__(self, batch: Batch, rows: np.ndarray, keys: np.ndarray) -> Batch: ...

    @contextmanager
    def on(self, task: Task) -> Iterator[None]:
        plain = task.read
        task.read = lambda store, rows, keys: self(plain(store, rows, keys), rows, keys)  # type: ignore[method-assign]
        try:
            yield
        finally:
            del task.read


class _Words(Rewriting, _Read):
    unit = "of words"

    def __init__(self, kind: str, strength: float, more: tuple[Any, ...] = ()):
        super().__init__(1.0, strength)
        self.kind, self.strength, self.more, self.count = kind, strength, more, [0, 0]

    def rewrite(self, text: Text, random: Random) -> str:
        before = len(text.words)
        WORDS[self.kind](text, self.rate, random, *self.more)
        self.count = [self.count[0] + min(text.changed, before), self.count[1] + before]
        return self.kind

    def changed(self) -> float:
        return self.count[0] / max(1, self.count[1])


class _Pixels(_Read):
    unit = "of a pixel's range"

    def __init__(self) -> None:
        self.sum, self.seen = 0.0, 0

    def __call__(self, batch: Batch, rows: np.ndarray, keys: np.ndarray) -> Batch:
        made = self.made(batch, keys)
        self.sum += float((made - batch["pixels"].float()).abs().mean((1, 2, 3)).sum()) / 255
        self.seen += len(made)
        return {**batch, "pixels": made}

    @abstractmethod
    def made(self, batch: Batch, keys: np.ndarray) -> Tensor:
        """float32 [B, C, S, S] from 0 to 255"""

    def changed(self) -> float:
        return self.sum / max(1, self.seen)


class _Corruption(_Pixels):
    def __init__(self, kind: str, strength: float):
        super().__init__()
        self.kind, self.strength = kind, strength

    def made(self, batch: Batch, keys: np.ndarray) -> Tensor:
        return CORRUPTIONS[self.kind][0](batch["pixels"], self.strength, keys)


class _Pgd(_Pixels):
    kind = "pgd"

    def __init__(self, task: Task, model: Backbone, radius: float, steps: int):
        super().__init__()
        self.task, self.model, self.strength, self.steps = task, model, radius, steps

    def made(self, batch: Batch, keys: np.ndarray) -> Tensor:
        device = next(self.model.parameters()).device
        processor: Any = self.task.processor

        def logits(pictures: Tensor) -> Tensor:
            return self.task.logits(self.model, {"pixels": processor.normalised(pictures)})  # type: ignore[operator]

        found = []
        rows = max(1, (1 << 19) // batch["pixels"][0, 0].numel())
        parts = zip(batch["pixels"].split(rows), batch["label"].split(rows), np.split(keys, range(rows, len(keys), rows)), strict=True)
        for pixels, label, key in parts:
            clean = pixels.to(device).float() / 255
            found.append(pgd(logits, clean, label.to(device), self.strength, self.steps, key).cpu() * 255)
        made = torch.cat(found)
        if float((made - batch["pixels"].float()).abs().max()) / 255 > self.strength + 1e-5:
            raise AssertionError(f"PGD left its radius of {self.strength:.4f}")
        return made


class _Embedded(Disturbance):
    kind, unit = "pgd on embeddings", "of the embeddings' length"

    def __init__(self, model: Backbone, radius: float, steps: int):
        self.model, self.strength, self.steps = model, radius, steps
        self.sizes: list[float] = []

    @contextmanager
    def on(self, task: Task) -> Iterator[None]:
        attack = OnEmbeddings(task, self.model, self.strength, self.steps)

        def predict(model: Backbone, batch: Batch) -> list[Prediction]:
            logits, sizes = attack(batch)
            self.sizes += sizes.tolist()
            return [{"logits": row} for row in logits.cpu().tolist()]

        task.predict = predict  # type: ignore[method-assign]
        try:
            yield
        finally:
            del task.predict
            attack.remove()

    def changed(self) -> float:
        return float(np.mean(self.sizes))


def disturbances(task: Task, model: Backbone, processor: Any, store: Store, attack: Attack) -> Iterator[Disturbance]:
    if "pixels" in store.meta:
        yield from (_Corruption(kind, strength) for kind, (_, strengths) in CORRUPTIONS.items() for strength in strengths)
        yield from (_Pgd(task, model, radius, attack.steps) for radius in attack.radii or PIXELS)
        return
    near = Neighbours(model, processor)
    for kind in WORDS:
        for rate in RATES:
            made = _Words(kind, rate, (near,) if kind == "synonyms" else ())
            made.begin(model, processor, store)
            yield made
    yield from (_Embedded(model, radius, attack.steps) for radius in attack.radii or EMBEDDED)


def robustness(
    task: Task, model: Backbone, processor: Any, store: Store, world: World, screen: Screen, attack: Attack, most: int | None
) -> dict[str, Any]:
    """Scores of clean and of disturbed input, the same examples each time."""
    if not task.classifies or "label" not in store:
        raise BadInput("robustness: is measured of classifiers of texts and of pictures; leave it out")
    count = examples_of(store).count
    chosen = attack.chosen(count)[:most]
    clean = judge(task, model, store, world, None, chosen)
    every = list(disturbances(task, model, processor, store, attack))
    found = []
    with screen.progress("robustness", len(every)) as bar:
        for i, change in enumerate(every):
            with change.on(task):
                scores = judge(task, model, store, world, None, chosen)
            found.append({"kind": change.kind, "strength": change.strength, "changed": round(change.changed(), 5), **_kept(scores)})
            bar.update(i + 1, f"{change.kind} {change.strength:.3g}")
    measure = "; ".join(dict.fromkeys(change.unit for change in every))
    return {"clean": _kept(clean), "disturbed": found, "measure": measure, "pgd_steps": attack.steps, "rows": len(chosen), "of": count}


def _kept(scores: dict[str, Any]) -> dict[str, Any]:
    return {k: scores[k] for k in KEPT if k in scores}


def show(found: dict[str, Any], screen: Screen) -> None:
    """Clean against disturbed, in one table."""
    rows = [["clean", "", "", *_cells(found["clean"]), ""]]
    for row in found["disturbed"]:
        lost = row["accuracy"] - found["clean"]["accuracy"]
        rows.append([row["kind"], strength(row), f"{row['changed']:.1%}", *_cells(row), f"{lost:+.3f}"])
    of = f" of {found['of']:,}, drawn at random" if found["rows"] < found["of"] else ""
    title = f"clean against disturbed ({found['rows']:,} examples{of}; changed: {found['measure']}; {found['pgd_steps']} steps of pgd)"
    screen.table(title, ("", "strength", "changed", "accuracy", "95 %", "change"), rows)


def strength(row: dict[str, Any]) -> str:
    return f"{round(row['strength'] * 255)}/255" if row["kind"] == "pgd" else f"{row['strength']:.3g}"


def _cells(scores: dict[str, Any]) -> list[str]:
    low, high = scores["accuracy_interval"]
    return [f"{scores['accuracy']:.3f}", f"{low:.3f} to {high:.3f}"]

"""Scores of a network beside its pretraining, for a small share of the time: what its features are worth, not what its loss is."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sslcli import metrics
from sslcli.core import Backbone
from sslcli.data import chance
from sslcli.data.pixels import Pixels
from sslcli.data.store import Store
from sslcli.evidence import neighbours, probe, spread
from sslcli.frozen import vectors
from sslcli.losses import spread as deviation

SHARE, PLANNED = 0.03, 0.025  # of the training time: what looking may take, and what is planned with, as no two looks cost the same
LEAST, MOST = 256, 8192  # pictures of a look
TRIED = 64  # pictures that the cost is measured with
PAIRS = 2048  # pictures whose distances are compared
SEED = 0x3A7C4
NEIGHBOURS, TEMPERATURE = 20, 0.07  # as DINO's evaluation has them


Part = tuple[Store, np.ndarray]  # and which of its rows


class Watch:
    """`watch(model)`: scores of one fixed sample of the stores, or nothing where a look now would take more than its share of the time.
    The last network is looked at in any case: a quick run would else be judged, and delivered, as it was at its first look.

    With labels: `knn` and `probe` (a linear layer), each leaving one out, so that every picture counts, and `probe_noise`, two standard
    errors of the latter. Without: `alignment`. Always: `rankme`, `feature_std`, `uniformity`. The sample is of the first store, filled
    up from the next. Built right before training begins: its clock starts then.
    """

    def __init__(self, processor: Pixels, *stores: Store, clock: Callable[[], float] = time.monotonic):
        found = [(store, *labels_of(store)) for store in stores]
        self.labels = {store.path: label for store, label, _ in found if label is not None}
        self.pool: list[Part] = [(store, rows) for store, _, rows in found if not self.labels or store.path in self.labels]
        self.metric = "probe" if self.labels else None  # what a checkpoint is best chosen by; higher is better
        self.processor, self.clock = processor, clock
        self.sample: list[Part] = []  # chosen at the first look
        self.began, self.spent, self.cost = clock(), 0.0, 0.0  # seconds

    def __call__(self, model: Backbone, last: bool = False) -> dict[str, float]:
        start = self.clock()
        trained = start - self.began - self.spent
        was_training = model.training
        model.eval()
        try:
            if not self.sample:
                self._afford(model, PLANNED * trained)
            if not last and self.spent + self.cost > PLANNED * trained:
                return {}
            before = self.clock()
            scores = self._look(model)
            self.cost = self.clock() - before
            return scores
        finally:
            model.train(was_training)
            self.spent += self.clock() - start

    def look(self, model: Backbone, most: int) -> dict[str, float]:
        """The scores of one sample, whatever that costs, the same for every network: for comparing them."""
        if not self.sample:
            self._choose(most)
        model.eval()
        return {"rows": sum(len(rows) for _, rows in self.sample), **self._look(model)}

    def _afford(self, model: Backbone, seconds: float) -> None:
        """As many pictures as a look of so many seconds allows; a power of two, so that a resumed run looks at the same ones."""
        tried = [(store, rows[:TRIED]) for store, rows in self.pool[:1]]
        self._vectors(model, tried)  # the first pass also warms the machine up
        start = self.clock()
        count = len(self._vectors(model, tried))
        each = (1 if self.metric else 3) * max(self.clock() - start, 1e-6) / count  # without labels two views are looked at too
        size = int(np.clip(2 ** int(np.log2(max(seconds / each, 1))), LEAST, MOST))
        self.cost = each * self._choose(size)

    def _choose(self, size: int) -> int:
        """So many of the pictures that there are; how many that is."""
        left = size
        for store, rows in self.pool:
            chosen = np.sort(rows[chance.permutation(SEED, 0, len(rows))[:left]])
            self.sample += [(store, chosen)] if len(chosen) else []
            left -= len(chosen)
        return size - left

    @torch.no_grad()
    def _look(self, model: Backbone) -> dict[str, float]:
        found = self._vectors(model, self.sample)
        scores = {
            "rankme": spread.rankme(found),
            "feature_std": float(deviation(found)),
            "uniformity": spread.uniformity(found[:PAIRS]),
        }
        if not self.metric:
            return {**scores, "alignment": spread.alignment(*(self._views(model, i) for i in (0, 1)))}
        label = torch.from_numpy(np.concatenate([self.labels[store.path][rows] for store, rows in self.sample])).to(found.device)
        kept = neighbours.accuracy(found, label, k=NEIGHBOURS, temperature=TEMPERATURE)
        said = probe.ridge(found, label, int(label.max()) + 1)[2]
        return {"knn": kept, "probe": said, "probe_noise": 2 * (said * (1 - said) / len(label)) ** 0.5, **scores}

    def _vectors(self, model: Backbone, parts: Sequence[Part]) -> Tensor:
        return torch.cat([vectors_of(model, self.processor, store, rows) for store, rows in parts])

    def _views(self, model: Backbone, which: int) -> Tensor:
        """Vectors of one of the views that training makes; where it makes one, of that and of the picture itself."""
        device = next(model.parameters()).device

        def view(store: Store, rows: np.ndarray) -> Tensor:
            batch = {k: v.to(device) for k, v in self.processor.read(store, rows, chance.keys(SEED, 0, rows)).items()}
            views = self.processor.views(batch)
            return views[which] if len(views) > 1 else (views[0], self.processor.plain(batch["pixels"]))[which]

        return torch.cat([vectors(model, partial(view, store), rows, self.processor.size) for store, rows in self.sample])


def vectors_of(model: Backbone, processor: Pixels, store: Store, rows: np.ndarray | None = None) -> Tensor:
    """Pooled vectors [N, D] of pictures as they are, of all rows of a store or of some."""
    device = next(model.parameters()).device
    chosen = np.arange(store.count) if rows is None else rows
    return vectors(model, lambda part: processor.plain(processor.take(store, part).to(device)), chosen, processor.size)


def labels_of(store: Store) -> tuple[np.ndarray | None, np.ndarray]:
    """(labels [N] int64, the rows that have one), where pictures have one label and there is more than one kind; else (None, all rows)."""
    every = np.arange(store.count)
    if "label" not in store or store["label"].values.shape[1] != 1:
        return None, every
    label = np.array(store["label"].values[:, 0], np.int64)
    rows = every[label >= 0]
    kinds = np.unique(label[rows])
    return (label, rows) if len(kinds) > 1 and len(rows) > len(kinds) else (None, every)


def transfer(model: Backbone, processor: Pixels, train: Store, test: Store, k: int = NEIGHBOURS) -> dict[str, object]:
    """`knn` and `probe` of the whole of `test` by what the labels of `train` teach, with intervals: the field's protocol, once, at the
    end; nothing where either has no labels."""
    (known, rows), (gold, tested) = labels_of(train), labels_of(test)
    if known is None or gold is None:
        return {}
    bank, asked = vectors_of(model, processor, train, rows), vectors_of(model, processor, test, tested)
    label, classes, gold = torch.from_numpy(known[rows]).to(bank.device), int(known.max()) + 1, gold[tested]
    similarities, near = neighbours.nearest(asked, bank, k)
    weight, bias, _ = probe.ridge(bank, label, classes)
    said = {
        "knn": neighbours.votes(similarities, label[near], classes, TEMPERATURE).argmax(-1),
        "probe": (asked @ weight.t() + bias).argmax(-1),
    }
    scores: dict[str, object] = {}
    for name, guess in said.items():
        right = (guess.cpu().numpy() == gold).astype(np.int64)
        scores |= {name: float(right.mean()), f"{name}_interval": metrics.interval(right[:, None], lambda s: s[:, 0] / len(gold))}
    return scores

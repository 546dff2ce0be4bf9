"""Texts of a label are drawn together and others apart; then a linear layer is solved on the vectors that this leaves.

The idea of SetFit (Tunstall et al. 2022) with the loss of Khosla et al. (2020): every two texts of a batch are a pair, so B texts that
are encoded once teach B^2 pairs. Pairs are the order in which rows are drawn (data.stream): there is no list of them.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sslcli.classifiers.classifier import Setting, solve, vectors
from sslcli.classifiers.linear import Linear
from sslcli.core import Backbone, Batch, Output, gathered
from sslcli.losses import supervised_contrastive

TEMPERATURE = 0.1  # of cosines, where the user names none
TOKENS = 4096  # padded tokens of a batch that keep what the backward pass needs; of longer batches, pieces are computed again
SEVERAL = 12  # labels, if more than two, up to which many small bold steps are taken. Measured on development rows, so and otherwise:
# trec (6 labels, 8 texts each) 0.829 and 0.791, banking77 (20 of its labels, 10 texts each) 0.885 and 0.903
LOOKED = 96  # rows whose similarities are told


class Contrastive(Linear):
    kind, pooled, in_pairs, mixable = "contrastive", True, True, False
    batch_size, passes, least_steps, tuned_times_width = 64, 1, 30, 0.02

    def __init__(self, model: Any, tokenizer: Any, setting: Setting):
        super().__init__(model, tokenizer, setting)
        self.only("single", "ordinal")
        if setting.counts and max(setting.counts.values()) < 2:
            raise ValueError("head=contrastive: no label has two texts to compare; use head=linear, or more labelled texts")
        bold = 2 < len(setting.labels) <= SEVERAL
        if bold:
            self.batch_size, self.least_steps, self.tuned_times_width = 16, 90, 0.04
        self.temperature = float(setting.options["temperature"] or (0.3 if bold else TEMPERATURE))
        self.head.requires_grad_(False)  # solved, not trained
        if model.loaded["tensors"] > 0:
            model.embedding.requires_grad_(False)  # few texts have few words; a sixth of a step's time for half of the weights
        self.memory: Any = _Memory()
        self.met, self.after = 0, (0.0, 0.0)

    def forward(self, model: Backbone, batch: Batch) -> Output:
        mine, label = F.normalize(_vectors(model, batch).float(), dim=-1), batch["label"]
        everyone, first = gathered(mine)
        labels = gathered(label[:, None].float())[0][:, 0].long()
        self.met = len(labels) * (len(labels) - 1) // 2
        loss, accuracy = supervised_contrastive(mine, label, everyone, labels, self.temperature, first)
        return Output(loss, {"pair_accuracy": accuracy})

    def begin(self, model: Backbone, stream: Any) -> None:
        self.memory.before.copy_(torch.tensor(similarities(*vectors(model, stream, _some(stream)))))

    def after_step(self) -> None:
        self.memory.seen += self.met

    def receipt(self) -> dict[str, Any]:
        seen, before = int(self.memory.seen), self.memory.before.tolist()
        if not seen:
            raise AssertionError("task.head=contrastive: no two texts were compared")
        named = [dict(zip(("one_label", "two_labels"), (round(x, 4) for x in pair), strict=True)) for pair in (before, self.after)]
        return {"contrastive": {"pairs_seen": seen, "similarity_before": named[0], "similarity_after": named[1]}}

    def conclude(self, model: Backbone, stream: Any) -> None:
        """From nought, in fp32: the same layer whenever it is asked for."""
        known, label = vectors(model, stream)
        layer = copy.deepcopy(self.head).float().requires_grad_(True)
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
        solve(layer, known, lambda logits: self.setting.losses(logits, label).mean())
        self.after = similarities(*vectors(model, stream, _some(stream)))
        with torch.no_grad():
            for mine, solved in zip(self.head.parameters(), layer.parameters(), strict=True):
                mine.copy_(solved)


class _Memory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))  # pairs
        self.register_buffer("before", torch.zeros(2))  # similarities


def similarities(vectors: Tensor, label: Tensor) -> tuple[float, float]:
    """Mean cosine of two of vectors [N, D] of one label, and of two labels; in memory that is linear in N."""
    x = F.normalize(vectors.double(), dim=-1)
    sums = x.new_zeros(int(label.max()) + 1, x.shape[1]).index_add(0, label, x)
    count = torch.bincount(label).double()
    like, all_ = float(sums.square().sum()) - len(x), float(x.sum(0).square().sum()) - len(x)
    likes, pairs = float((count * (count - 1)).sum()), len(x) * (len(x) - 1)
    return like / max(likes, 1), (all_ - like) / max(pairs - likes, 1)


def _some(stream: Any) -> np.ndarray:
    """Rows of the first batches, which hold pairs."""
    return np.concatenate([stream.rows(i) for i in range(min(stream.steps_per_epoch, -(-LOOKED // stream.batch_size)))])


def _vectors(model: Backbone, batch: Batch) -> Tensor:
    """[B, D]; of a long batch by pieces whose states are forgotten and computed again in the backward pass (exact, as in GradCache)."""

    def vector(*tensors: Tensor) -> Tensor:
        part = dict(zip(names, tensors, strict=True))
        return model.pool(model.encode(part), part)

    names: list[str] = [name for name in ("ids", "mask", "features") if name in batch]
    tensors, ids = [batch[name] for name in names], batch["ids"]
    rows = max(1, TOKENS // ids.shape[1])
    if len(ids) <= rows:
        return vector(*tensors)
    pieces = zip(*(t.split(rows) for t in tensors), strict=True)
    return torch.cat([checkpoint(vector, *piece, use_reentrant=False) for piece in pieces])

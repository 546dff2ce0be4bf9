"""The one face of classifiers: what is minimised, what is solved, and how logits come of a text."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from sslcli.core import Backbone, Batch, Output, Places, Task
from sslcli.data import chance
from sslcli.data.stream import in_order, to_device
from sslcli.losses import settle

SEEN, TOKENS = 10_000, 4096  # rows that a head is solved on, and tokens of one forward pass
STRENGTH = 10.0  # of that solution: the inverse of its ridge, for vectors of unit length (C in scikit-learn)


Read: TypeAlias = Callable[[Sequence[str]], Batch]
"""Texts as a batch, on the network's device."""

Every: TypeAlias = Callable[[], Iterator[tuple[np.ndarray, Batch]]]
"""(the examples that they belong to, rows) of all that is to be predicted."""


@dataclass(frozen=True)
class Setting:
    """What the data and the configuration say to all of them."""

    labels: Sequence[str]
    counts: Mapping[str, int]  # training examples of each label
    labelling: str
    losses: Callable[[Tensor, Tensor], Tensor]  # (logits [B, C], label) -> [B]
    options: Mapping[str, Any]  # the other keys of the task


class Classifier:
    """Its state is all in `head`, which the task owns and the run delivers."""

    kind: ClassVar[str]  # as `task.head` names it
    head_kind: ClassVar[str | None] = "sequence_classification"  # as in core.Objective
    in_pairs: ClassVar[bool] = False  # rows of a label are drawn two and two, and a batch is never cut
    mixable: ClassVar[bool] = True  # vectors of several labels may be mixed
    memory: nn.Module | None = None  # what it remembers over a resume, and does not deliver
    batch_size, passes, least_steps, tuned_times_width = Task.batch_size, Task.passes, Task.least_steps, Task.tuned_times_width
    head: nn.Module

    def __init__(self, model: Any, tokenizer: Any, setting: Setting):
        self.setting = setting

    def logits(self, model: Backbone, batch: Batch) -> Tensor:
        """[B, labels]"""
        return self.head(model.pool(model.encode(batch), batch)).float()

    def forward(self, model: Backbone, batch: Batch) -> Output:
        logits, label = self.logits(model, batch), batch["label"]
        logs = {} if label.ndim > 1 else {"accuracy": (logits.detach().argmax(-1) == label).float().mean()}
        losses = self.setting.losses(logits, label)
        if "kept" in batch:  # vectors are mixed: so is what they should be (the loss is linear in it)
            losses = torch.lerp(self.setting.losses(logits, label[batch["other"]]), losses, batch["kept"])
        compared = torch.stack([logits, torch.zeros_like(logits)], -1) if label.ndim > 1 else logits  # yes or no, label by label
        return Output(losses.mean(), logs, compared)

    def begin(self, model: Backbone, stream: Any) -> None:
        """Before the first step."""

    def conclude(self, model: Backbone, stream: Any) -> None:
        """After the last one."""

    def look(self, model: Backbone, read: Read, every: Every) -> None:
        """Before texts are predicted: what has to be known of the labels, or of all the texts."""

    def after_step(self) -> None:
        """After a step that was taken."""

    def receipt(self) -> dict[str, Any]:
        return {}

    def only(self, *allowed: str) -> None:
        """Refuse labels of a kind that this head cannot learn."""
        if (labelling := self.setting.labelling) not in allowed:
            raise ValueError(f"head={self.kind}: is for one label a text; labelling={labelling} needs head=linear")


@torch.no_grad()
def vectors(model: Backbone, stream: Any, rows: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """Pooled vectors [N, D] and labels of these training rows; else of all, or of an even sample of very many."""
    places, device = stream.places, next(model.parameters()).device
    rows = np.arange(0, places.count, -(-places.count // SEEN)) if rows is None else rows
    some = Places(len(rows), places.lengths[rows])
    found = []
    for part in in_order(some, TOKENS):
        batch = to_device(stream.read(rows[part], chance.keys(0, 0, rows[part])), device)
        found.append((model.pool(model.encode(batch), batch).float(), batch["label"]))
    return torch.cat([v for v, _ in found]), torch.cat([y for _, y in found])


def solve(head: nn.Module, vectors: Tensor, loss: Callable[[Tensor], Tensor]) -> None:
    """Set a head's parameters, from where they are, to what makes loss(logits) on vectors [N, D] least, with a ridge."""
    decay = vectors.shape[1] / (2 * STRENGTH * len(vectors))
    with torch.enable_grad(), torch.autocast(vectors.device.type, enabled=False):
        settle(list(head.parameters()), lambda: loss(head(vectors)), decay)

"""A linear layer (or two) on the pooled vector, trained with the network."""

from typing import Any, ClassVar

from torch import Tensor

from sslcli.classifiers.classifier import Classifier, Setting, solve, vectors
from sslcli.core import Backbone, Batch
from sslcli.hf.heads import POOLED


class Linear(Classifier):
    """Solved on the frozen network first, so that training begins at the linear probe's score (Kumar et al. 2022). A family that has a
    classifier of its own keeps that."""

    kind: ClassVar[str] = "linear"
    layers: ClassVar[int] = 1
    pooled: ClassVar[bool] = False  # it must be able to say what its layer sees

    def __init__(self, model: Any, tokenizer: Any, setting: Setting):
        super().__init__(model, tokenizer, setting)
        if self.pooled and model.family not in POOLED:
            what = f"models of the {model.family} family bring a classifier of their own"
            raise ValueError(f"head={self.kind}: {what}; use head=linear")
        labels, self.borrows = list(setting.labels), not model.pools_freely
        dropout = setting.options["dropout"]
        self.head = model.head(self.head_kind, labels) if self.borrows else model.classifier(len(labels), self.layers, dropout)

    def logits(self, model: Backbone, batch: Batch) -> Tensor:
        if not self.borrows:
            return super().logits(model, batch)
        return self.head(model.encode(batch), batch["ids"], batch.get("mask")).float()

    def begin(self, model: Backbone, stream: Any) -> None:
        if self.setting.options["start"] == "probe" and not self.borrows:
            known, label = vectors(model, stream)
            solve(self.head, known, lambda logits: self.setting.losses(logits, label).mean())

"""A text belongs to the label whose description is nearest: cosines of pooled vectors over a temperature. Nothing is trained."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcli.classifiers.classifier import Classifier, Every, Read, Setting
from sslcli.core import Backbone, Batch
from sslcli.data.statements import described, phrases, stated

TEMPERATURE = 0.05  # where the user names none: with MiniLM, confidences are then within a few points of what is right


class Similarity(Classifier):
    """A description stands as it is, a bare name in a sentence: it says more there (with MiniLM 1 to 5 points)."""

    kind, head_kind = "embedding", None
    head: nn.Linear

    def __init__(self, model: Any, tokenizer: Any, setting: Setting):
        super().__init__(model, tokenizer, setting)
        options = setting.options
        said, template = phrases(setting.labels, options["descriptions"]), options["hypothesis"]
        sentences, own = stated(said, template), described(setting.labels, options["descriptions"])
        self.statements = [p if x in own else s for x, p, s in zip(setting.labels, said, sentences, strict=True)]
        self.temperature = float(options["temperature"] or TEMPERATURE)
        self.head = nn.Linear(model.dim, len(self.statements), bias=False).requires_grad_(False)

    def look(self, model: Backbone, read: Read, every: Every) -> None:
        self.head.weight.copy_(_vectors(model, read(self.statements)))

    def logits(self, model: Backbone, batch: Batch) -> Tensor:
        return self.head(_vectors(model, batch)) / self.temperature


@torch.no_grad()
def _vectors(model: Backbone, batch: Batch) -> Tensor:
    """[B, D] of unit length"""
    return F.normalize(model.pool(model.encode(batch), batch).float(), dim=-1)

"""A model of natural language inference is asked of each label whether the text entails it (Yin et al. 2019). Nothing is trained."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslcli.classifiers.classifier import Classifier, Setting
from sslcli.core import Backbone, Batch
from sslcli.data.blocks import padded
from sslcli.data.statements import Pair, phrases, stated

ENTAILS, CONTRADICTS = "entailment", ("contradiction", "not_entailment")


class Entailment(Classifier):
    """A label's logit is that of `entailment` for (text, statement about the label)."""

    kind, head_kind = "nli", "entailment"

    def __init__(self, model: Any, tokenizer: Any, setting: Setting):
        super().__init__(model, tokenizer, setting)
        self.pair, self.pad, self.ends = Pair(tokenizer), int(tokenizer.pad or 0), (len(tokenizer.prefix), len(tokenizer.suffix))
        self.statements = stated(phrases(setting.labels, setting.options["descriptions"]), setting.options["hypothesis"])
        if (room := self.pair.room(tokenizer, self.statements)) >= tokenizer.length:
            raise ValueError(f"hypothesis: its {room} tokens leave no room for a text in {tokenizer.length}; shorten data.descriptions")
        ids, lengths = tokenizer.encoder.encode(self.statements)
        self.coded = np.split(ids.astype(np.int64), np.cumsum(lengths)[:-1])
        self.entails = entailed(model.base.config)
        self.head = model.head("sequence_classification")

    def logits(self, model: Backbone, batch: Batch) -> Tensor:
        """[B, labels], a label at a time: as much memory as one needs."""
        ids, mask = batch["ids"].cpu().numpy(), batch.get("mask")
        lengths = np.full(len(ids), ids.shape[1]) if mask is None else mask.sum(1).cpu().numpy()
        texts = [row[self.ends[0] : n - self.ends[1]] for row, n in zip(ids, lengths, strict=True)]
        return torch.stack([self._asked(model, texts, statement, batch["ids"].device) for statement in self.coded], 1)

    def _asked(self, model: Backbone, texts: list[np.ndarray], statement: np.ndarray, device: torch.device) -> Tensor:
        """[B]"""
        rows = [self.pair.row(text, statement) for text in texts]
        ids, mask = padded([row for row, _ in rows], self.pad)
        made: Batch = {"ids": ids} if mask is None else {"ids": ids, "mask": mask}
        if self.pair.types is not None:
            made["types"] = padded([types for _, types in rows if types is not None], 0)[0]
        made = {name: tensor.to(device) for name, tensor in made.items()}
        return self.head(model.encode(made), made["ids"], made.get("mask")).float()[:, self.entails]


def entailed(config: Any) -> int | None:
    """The number of the label `entailment` of a model of natural language inference, as its config.json says; None of another model."""
    names = {str(name).lower().replace("-", "_"): int(i) for i, name in (getattr(config, "id2label", None) or {}).items()}
    return names.get(ENTAILS) if any(name in names for name in CONTRADICTS) else None

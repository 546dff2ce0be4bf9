"""How alike two texts mean: the cosine of their vectors, learnt from pairs with scores."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslcli import metrics
from sslcli.core import Backbone, Batch, Output, Places, Prediction, Task, gathered
from sslcli.data.blocks import padded, words
from sslcli.data.pairs import PairCoder
from sslcli.data.store import Store
from sslcli.data.tokenizer import Tokenizer
from sslcli.losses import cosent


class TextSimilarity(Task):
    """`loss`: cosent (the order of the pairs of a batch), mse (cosines against scores brought to 0..1 by the range of the training
    scores), or none (the network as it is)."""

    metric, classifies, embeds = "spearman", False, True
    row_length = 256
    span: Tensor

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        facts: Mapping[str, Any],
        *,
        loss: Literal["cosent", "mse", "none"],
        scale: Annotated[float, Field(gt=0)],
    ):
        super().__init__()
        self.loss, self.scale, self.pad, self.packed = loss, scale, int(tokenizer.pad or 0), model.pack()
        self.couples_rows = loss == "cosent"  # type: ignore[misc]
        self.least = 2 if self.couples_rows else 1  # type: ignore[misc]
        self.head = None  # type: ignore[assignment]
        self.register_buffer("span", torch.tensor([0.0, 1.0]))
        if loss == "none":
            model.requires_grad_(False)

    @staticmethod
    def coder(config: Mapping[str, Any]) -> PairCoder:
        return PairCoder()

    @classmethod
    def untrained(cls, config: Mapping[str, Any], model: Any) -> Mapping[str, Any]:
        return {**config, "loss": "none"}

    def rows(self, store: Store) -> Places:
        lengths = store["ids"].lengths() + store["ids_b"].lengths()
        return Places(store.count, lengths, packed=self.packed, words=partial(words, self.pad, store["ids"], store["ids_b"]))

    def read(self, store: Store, rows: np.ndarray, keys: np.ndarray) -> Batch:
        """Both sides of all pairs, first sides first: `ids` [2B, T]."""
        ids, mask = padded([*store["ids"].take(rows), *store["ids_b"].take(rows)], self.pad)
        score = torch.from_numpy(np.array(store["score"].values[rows, 0], np.float32))
        batch = {"ids": ids, "score": score, "weight": torch.tensor(float(len(rows)))}
        return batch if mask is None else {**batch, "mask": mask}

    def begin(self, model: Backbone, stream: Any) -> None:
        """The range of the scores, over the training pairs."""
        if self.loss == "mse":
            rows = np.arange(stream.places.count)
            parts = np.array_split(rows, max(1, len(rows) // 4096))
            score = torch.cat([stream.read(part, np.zeros(len(part), np.uint64))["score"] for part in parts])
            self.span.copy_(torch.stack([score.min(), score.max()]))

    def similarity(self, model: Backbone, batch: Batch) -> Tensor:
        """[B]"""
        first, second = F.normalize(model.pool(model.encode(batch), batch).float(), dim=-1).chunk(2)
        return (first * second).sum(-1)

    def forward(self, model: Backbone, batch: Batch) -> Output:
        similarity, score = self.similarity(model, batch), batch["score"]
        if self.loss == "none":
            return Output(similarity.new_zeros(()))
        if self.loss == "cosent":
            everyone, scores = gathered(similarity)[0], gathered(score)[0]
            return Output(cosent(everyone, scores, self.scale))
        low, high = self.span
        return Output(F.mse_loss(similarity, (score - low) / (high - low).clamp(min=1e-9)))

    @torch.no_grad()
    def predict(self, model: Backbone, batch: Batch) -> list[Prediction]:
        return [{"prediction": value} for value in self.similarity(model, batch).cpu().tolist()]

    def merge(self, parts: Sequence[Prediction], example: Any) -> Prediction:
        return {"prediction": round(parts[0]["prediction"], 6)}

    def score(self, predictions: Sequence[Any], gold: Sequence[Any]) -> dict[str, Any]:
        return metrics.similarity(gold, predictions)

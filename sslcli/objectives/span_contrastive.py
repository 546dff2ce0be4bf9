"""Spans of one document belong together, those of others do not (DeCLUTR, Giorgi et al. 2021; the InfoNCE loss of SimCLR)."""

import math
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslcli.core import Backbone, Batch, Objective, Output, Places, gathered
from sslcli.data import chance
from sslcli.data.blocks import documents, padded, words
from sslcli.data.store import Store
from sslcli.data.tokenizer import Tokenizer
from sslcli.losses import info_nce


class SpanContrastive(Objective):
    """Two random spans of a document are positives, all other spans of the batch negatives: it teaches what documents are about."""

    couples_rows, least = True, 2
    lr_times_width = 0.4
    batch_size, row_length = 256, 64  # many short spans teach more than few long ones in the same time
    causes: ClassVar = {"same_views": "spans", "guessing": "temperature"}

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        *,
        temperature: Annotated[float, Field(gt=0)],
        shortest: Annotated[int, Field(ge=4)],
    ):
        if shortest > tokenizer.length:
            raise ValueError(f"shortest={shortest} is more than data.max_length={tokenizer.length}; a span cannot be longer than a row")
        super().__init__()
        self.temperature, self.shortest = temperature, shortest
        self.longest = max(4, tokenizer.length - len(tokenizer.prefix) - len(tokenizer.suffix))
        self.prefix, self.suffix = np.array(tokenizer.prefix, np.int64), np.array(tokenizer.suffix, np.int64)
        self.pad = int(tokenizer.pad or 0)
        self._rows: dict[str, np.ndarray] = {}

    def rows(self, store: Store) -> Places:
        chosen = self._documents(store)
        lengths = np.minimum(store["ids"].lengths()[chosen], self.longest)
        return Places(len(chosen), lengths, words=partial(words, self.pad, store["ids"]))

    def _documents(self, store: Store) -> np.ndarray:
        key = str(store.path)
        if key not in self._rows:
            ends = len(self.prefix) + max(1, len(self.suffix))
            self._rows[key] = documents(store, self.shortest + ends)
        return self._rows[key]

    def read(self, store: Store, rows: np.ndarray, keys: np.ndarray) -> Batch:
        whole = store["ids"].take(self._documents(store)[rows])
        inner = [d[len(self.prefix) : len(d) - max(1, len(self.suffix))] for d in whole]
        draws = chance.uniform(keys, 4)
        spans = [
            np.concatenate([self.prefix, self._span(d, *draw), self.suffix])
            for view in (0, 2)
            for d, draw in zip(inner, draws[:, view : view + 2], strict=True)
        ]
        ids, mask = padded(spans, self.pad)  # [2B, T]: first all anchors, then all positives
        batch = {"ids": ids, "weight": torch.tensor(float(len(rows)))}
        return batch if mask is None else {**batch, "mask": mask}

    def _span(self, document: np.ndarray, size: float, place: float) -> np.ndarray:
        """A span of `shortest` to `longest` tokens, long ones more likely, anywhere in the document."""
        longest = min(len(document), self.longest)
        length = int(self.shortest + (longest - self.shortest + 1) * size**0.5) if longest > self.shortest else longest
        start = int((len(document) - length + 1) * place)
        return document[start : start + length].astype(np.int64)

    def forward(self, model: Backbone, batch: Batch) -> Output:
        vectors = F.normalize(model.pool(model.encode(batch), batch).float(), dim=-1)  # [2B, D]
        anchors, positives = vectors.chunk(2)
        all_anchors, first = gathered(anchors)
        all_positives, _ = gathered(positives)
        loss = (info_nce(anchors, all_positives, self.temperature, first) + info_nce(positives, all_anchors, self.temperature, first)) / 2
        seen = {"first": anchors, "second": positives, "chance": math.log(len(all_positives))}
        return Output(loss, {"accuracy": self._found(anchors, all_positives, first)}, seen=seen)

    @staticmethod
    @torch.no_grad()
    def _found(anchors: Tensor, positives: Tensor, first: int) -> Tensor:
        """Share of anchors whose own positive is the nearest."""
        nearest = (anchors @ positives.t()).argmax(-1)
        return (nearest == torch.arange(len(anchors), device=anchors.device) + first).float().mean()

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        return {"loss": means["loss"], "retrieval_accuracy": means["accuracy"]}

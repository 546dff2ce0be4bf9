"""Passages that answer a query, found by the cosine of their vectors, learnt from queries with such passages."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslcli import metrics
from sslcli.core import Backbone, Batch, Output, Places, Prediction, Task, gathered
from sslcli.data import chance
from sslcli.data.blocks import padded, words
from sslcli.data.examples import examples_of
from sslcli.data.passages import QueryCoder, passages_of
from sslcli.data.store import Store
from sslcli.data.stream import in_order, to_device
from sslcli.data.tokenizer import Tokenizer
from sslcli.losses import info_nce

SHOWN = 10  # passages that are written down
TOKENS = 16_384  # of one forward pass over passages


class TextRetrieval(Task):
    """`loss`: in_batch (InfoNCE: a query and one of its passages, drawn anew each epoch, against the passages of the other queries and
    one hard negative of each; passages that are right for a query are never its negatives), or none (the network as it is).
    `symmetric`: passages look for their queries too, among those of this rank.

    `recall@k` counts a query where any of its passages is among the first k. `look` must come before `predict`.
    """

    metric, classifies, embeds = "mrr", False, True
    row_length, batch_size = 256, 32

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        facts: Mapping[str, Any],
        *,
        loss: Literal["in_batch", "none"],
        temperature: Annotated[float, Field(gt=0)],
        symmetric: bool,
    ):
        super().__init__()
        self.loss, self.temperature, self.symmetric = loss, temperature, symmetric
        self.pad, self.packed = int(tokenizer.pad or 0), model.pack()
        self.couples_rows, self.least = loss != "none", 2 if loss != "none" else 1  # type: ignore[misc]
        self.head = None  # type: ignore[assignment]
        self._passages: dict[str, Store] = {}
        self._index: _Index | None = None
        if loss == "none":
            model.requires_grad_(False)

    @staticmethod
    def coder(config: Mapping[str, Any]) -> QueryCoder:
        return QueryCoder()

    @classmethod
    def untrained(cls, config: Mapping[str, Any], model: Any) -> Mapping[str, Any]:
        return {**config, "loss": "none"}

    def rows(self, store: Store) -> Places:
        return Places(
            store.count,
            store["ids"].lengths(),
            packed=self.packed,
            words=lambda: words(self.pad, store["ids"], self.passages(store)["ids"]),
        )

    def passages(self, store: Store) -> Store:
        key = str(store.path)
        if key not in self._passages:
            self._passages[key] = passages_of(store)
        return self._passages[key]

    def read(self, store: Store, rows: np.ndarray, keys: np.ndarray) -> Batch:
        """`ids`: queries, then a right passage of each, then hard negatives where there are any. `passage` [K]: their rows in the
        passages; `right` [B, most]: all that are right for each query, filled up with -1."""
        right, wrong = store["positives"].take(rows), store["negatives"].take(rows)
        draws = chance.uniform(keys, 2)
        own = [x[int(len(x) * d)] for x, d in zip(right, draws[:, 0], strict=True)]
        hard = [x[int(len(x) * d)] for x, d in zip(wrong, draws[:, 1], strict=True) if len(x)]
        passage = np.array([*own, *hard], np.int64)
        ids, mask = padded([*store["ids"].take(rows), *self.passages(store)["ids"].take(passage)], self.pad)
        every, _ = padded([np.asarray(x) for x in right], -1)
        where = {"row": torch.from_numpy(np.asarray(rows, np.int64)), "right": every, "passage": torch.from_numpy(passage)}
        batch = {"ids": ids, **where, "weight": torch.tensor(float(len(rows)))}
        return batch if mask is None else {**batch, "mask": mask}

    def vectors(self, model: Backbone, batch: Batch) -> Tensor:
        return F.normalize(model.pool(model.encode(batch), batch).float(), dim=-1)

    def forward(self, model: Backbone, batch: Batch) -> Output:
        count = len(batch["row"])
        if self.loss == "none":
            return Output(torch.zeros((), device=batch["ids"].device))
        queries, passages, hard = self.vectors(model, batch).split([count, count, len(batch["passage"]) - count])
        names, hard_names = batch["passage"][:count], batch["passage"][count:]
        (everyone, first), (known, _) = gathered(passages), gathered(names)
        keys, which = torch.cat([everyone, hard]), torch.cat([known, hard_names])  # hard negatives are those of this rank
        also = (batch["right"][:, :, None] == which).any(1)
        loss = info_nce(queries, keys, self.temperature, first, also)
        if self.symmetric:
            loss = (loss + info_nce(passages, queries, self.temperature, 0, also[:, first : first + count].t())) / 2
        nearest = which[(queries.detach() @ keys.t()).argmax(-1)]
        return Output(loss, {"accuracy": (batch["right"] == nearest[:, None]).any(1).float().mean()})

    @torch.no_grad()
    def look(self, model: Backbone, store: Store) -> None:
        """Vectors of all passages that the queries of `store` look in."""
        passages, device = self.passages(store), next(model.parameters()).device
        places = Places(passages.count, passages["ids"].lengths(), packed=self.packed)
        found: Tensor | None = None
        for rows in in_order(places, TOKENS):
            ids, mask = padded(passages["ids"].take(rows), self.pad)
            part = self.vectors(model, to_device({"ids": ids} if mask is None else {"ids": ids, "mask": mask}, device))
            found = part.new_zeros(passages.count, part.shape[1]) if found is None else found
            found[torch.from_numpy(rows).to(device)] = part
        assert found is not None
        self._index = _Index(store, examples_of(passages), found)

    @torch.no_grad()
    def predict(self, model: Backbone, batch: Batch) -> list[Prediction]:
        index = self._index
        assert index is not None, "look(model, store) comes before predict"
        count = len(batch["row"])
        asked: Batch = {key: batch[key][:count] for key in ("ids", "mask") if key in batch}
        similarity, order = (self.vectors(model, asked) @ index.vectors.t()).sort(dim=-1, descending=True, stable=True)
        right = index.store["positives"].take(batch["row"].cpu().numpy())
        near = zip(order[:, :SHOWN].tolist(), similarity[:, :SHOWN].tolist(), strict=True)
        scored = (self.ranked(o, r) for o, r in zip(order.cpu().numpy(), right, strict=True))
        return [{"nearest": n, "scores": s} for n, s in zip(near, scored, strict=True)]

    @staticmethod
    def ranked(order: np.ndarray, right: np.ndarray) -> tuple[int, float, float]:
        """(rank of the first right one, average precision, nDCG) of passages in the order in which a query found them [G]."""
        relevant = np.isin(order, right)[None]
        return int(relevant.argmax()), float(metrics.average_precision(relevant)[0]), float(metrics.ndcg(relevant, [len(right)], SHOWN)[0])

    def merge(self, parts: Sequence[Prediction], example: Any) -> Prediction:
        """The nearest passage's name, what is nearest, and where the first right one came (`rank` 0: first)."""
        found = parts[0]
        assert self._index is not None
        nearest = self._index.named(*found["nearest"])
        rank, precision, gain = found["scores"]
        scores = {"rank": rank, "average_precision": round(precision, 6), "ndcg": round(gain, 6)}
        return {"prediction": nearest[0]["id"], **scores, "nearest": nearest}

    def kept(self, prediction: Prediction) -> Any:
        return prediction["rank"], prediction["average_precision"], prediction["ndcg"]

    def score(self, predictions: Sequence[Any], gold: Sequence[Any]) -> dict[str, Any]:
        """Of what `kept` gave."""
        ranks, precisions, gains = (np.array(x) for x in zip(*predictions, strict=True))
        found = {**metrics.retrieval(ranks, precisions), **metrics.mean("mrr", 1 / (ranks + 1.0)), **metrics.mean(f"ndcg@{SHOWN}", gains)}
        return {**found, "queries": len(ranks)}


@dataclass
class _Index:
    store: Store  # of the queries
    examples: Store  # of the passages
    vectors: Tensor  # [G, D], of unit length

    def named(self, rows: Sequence[int], similarity: Sequence[float]) -> list[dict[str, Any]]:
        lines = ((json.loads(self.examples.text(i)), s) for i, s in zip(rows, similarity, strict=True))
        return [{"id": line["gold"], "input": line["input"], "similarity": round(s, 4)} for line, s in lines]

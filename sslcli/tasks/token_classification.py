"""Token classification: entities in BIO, first sub-word labelled, long documents in overlapping windows, every word gets a tag."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslcli import metrics
from sslcli.calibration import last_linear
from sslcli.core import Backbone, Batch, Output, Places, Prediction, Task
from sslcli.data.blocks import padded, words
from sslcli.data.examples import Rows, windows
from sslcli.data.labels import balanced
from sslcli.data.store import Store
from sslcli.data.tags import scheme, split, to_bio
from sslcli.data.tokenizer import Tokenizer

NONE = -100  # the label of a place that carries none: continuing sub-words, ends, padding


class TokenClassification(Task):
    """A tag for every word, from the state of its first sub-word (Devlin et al. 2019), scored by entities as conlleval does."""

    metric = "f1"
    batch_size = 16
    row_length = 512
    head_kind = "token_classification"

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        facts: Mapping[str, Any],
        *,
        class_weights: Literal["none", "balanced"],
        label_smoothing: Annotated[float, Field(ge=0, lt=1)],
    ):
        super().__init__()
        self.class_weights: Tensor | None
        self.labels, self.smoothing, self.pad, self.packed = list(labels), label_smoothing, int(tokenizer.pad or 0), model.pack()
        counts, fresh = facts["train"]["per_label"], not model.has_head("token_classification", len(labels))
        self.head = model.head("token_classification", self.labels)
        if fresh and class_weights == "none":
            _begin_with(self.head, [counts.get(label, 0) for label in labels])
        weights = torch.tensor(balanced(labels, counts)) if class_weights == "balanced" else None
        self.register_buffer("class_weights", weights, persistent=False)

    @staticmethod
    def coder(config: Mapping[str, Any]) -> "_Coder":
        return _Coder()

    def rows(self, store: Store) -> Places:
        return Places(store.count, store["ids"].lengths(), packed=self.packed, words=partial(words, self.pad, store["ids"]))

    def read(self, store: Store, rows: np.ndarray, keys: np.ndarray) -> Batch:
        ids, mask = padded(store["ids"].take(rows), self.pad)
        label, _ = padded([x.astype(np.int64) for x in store["tag"].take(rows)], NONE)  # [B, T]
        word, _ = padded([x.astype(np.int64) for x in store["word"].take(rows)], -1)
        weight = torch.tensor(float((label != NONE).sum()))
        where = (label != NONE).flatten().nonzero()[:, 0]  # [N], places in the flattened batch that carry a label
        batch = {"ids": ids, "label": label, "word": word, "where": where, "weight": weight.clamp(min=1.0)}
        return batch if mask is None else {**batch, "mask": mask}

    def logits(self, model: Backbone, batch: Batch) -> Tensor:
        """[B, T, labels]"""
        return self.head(model.encode(batch)).float()

    def forward(self, model: Backbone, batch: Batch) -> Output:
        logits = self.logits(model, batch)
        flat, label = logits.flatten(0, 1), batch["label"].flatten()
        losses = F.cross_entropy(flat, label, ignore_index=NONE, label_smoothing=self.smoothing, reduction="none")
        if self.class_weights is not None:
            losses = losses * self.class_weights.to(losses.device)[label.clamp(min=0)]
        return Output(losses.sum() / batch["weight"].to(losses.device), logits=flat[batch["where"]])

    @torch.no_grad()
    def predict(self, model: Backbone, batch: Batch) -> list[Prediction]:
        """Of each row, the words that it owns (others are owned by a window in which they have more context)."""
        logs = torch.log_softmax(self.logits(model, batch), -1)
        best, chosen = logs.exp().max(-1)
        loss = -logs.gather(-1, batch["label"].clamp(min=0)[..., None])[..., 0]
        named = {"word": batch["word"], "tag": chosen, "probability": best, "loss": loss}
        found = {name: values.cpu().numpy() for name, values in named.items()}
        return [{name: values[i][word >= 0].tolist() for name, values in found.items()} for i, word in enumerate(found["word"])]

    def merge(self, parts: Sequence[Prediction], example: Any) -> Prediction:
        """Every word has a tag; those that truncation cut off are O. `loss`: the mean over the words that were read."""
        tags, probabilities = ["O"] * len(example), [0.0] * len(example)
        losses = [loss for part in parts for loss in part["loss"]]
        for part in parts:
            for word, tag, p in zip(part["word"], part["tag"], part["probability"], strict=True):
                tags[word], probabilities[word] = self.labels[tag], round(p, 4)
        return {"prediction": tags, "loss": round(float(np.mean(losses or [0.0])), 6), "probabilities": probabilities}

    def score(self, predictions: Sequence[Any], gold: Sequence[Any]) -> dict[str, Any]:
        guess = [to_bio(tags)[0] for tags in predictions]
        right = sum(a == b for x, y in zip(gold, guess, strict=True) for a, b in zip(x, y, strict=True))
        return metrics.entities(gold, guess) | {"token_accuracy": right / max(1, sum(map(len, gold)))}


@torch.no_grad()
def _begin_with(head: nn.Module, counts: Sequence[int]) -> None:
    """Logits that begin as frequent as the tags are (Lin et al. 2017): else the network is the first to learn that nearly nothing is an
    entity, and bottlenecks may forget all else over it."""
    layer = last_linear(head, len(counts))
    if layer is not None and layer.bias is not None:
        layer.bias.copy_(((torch.tensor(counts) + 1.0) / (sum(counts) + len(counts))).log())


class _Coder:
    columns = ("tokens", "tags")
    optional = ("source",)
    unseen = False
    too_long = "window"
    along: Mapping[str, Any] = {"tag": np.int16, "word": np.int32}
    beside: Mapping[str, Any] = {}

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {"mended_tags": 0, "scheme": "BIO"}
        self._marks: set[str] = set()

    def identity(self) -> Any:
        return "token_classification"

    def tidy(self, example: dict[str, Any]) -> str | None:
        if any(isinstance(t, int) for t in example["tags"]):
            return "the tags are numbers; write their names (O, B-PER, ...)"
        tags = [t.strip() for t in example["tags"]]
        self._marks |= {split(t)[0] for t in tags}
        example["tags"], mended = to_bio(tags)
        self.facts["mended_tags"] += mended
        return None

    def labels(self, example: dict[str, Any]) -> list[str]:
        return example["tags"]

    def stratum(self, example: dict[str, Any]) -> str:
        """The rarest would be best; the first entity's type does, and sentences without any are a stratum of their own."""
        return next((t[2:] for t in example["tags"] if t != "O"), "O")

    def inventory(self, seen: Counter[str], given: list[str] | None) -> list[str]:
        self.facts["scheme"] = scheme(self._marks)
        if self.facts["scheme"] == "IO":
            self.facts["mended_tags"] = 0  # nothing was broken: that scheme has no B
        kinds = {kind for t in (given if given is not None else seen) if (kind := split(t)[1])}
        return ["O", *(f"{mark}-{kind}" for kind in sorted(kinds) for mark in "BI")]

    def rows(self, examples: Sequence[dict[str, Any]], labels: Mapping[str, int], tokenizer: Tokenizer, limit: int, too_long: str) -> Rows:
        made = Rows(along={"tag": [], "word": []})
        flat, sizes = tokenizer.encoder.per_piece([e["tokens"] for e in examples])
        limit -= len(tokenizer.prefix) + len(tokenizer.suffix)
        start = first = 0
        for i, example in enumerate(examples):
            size = sizes[first : first + len(example["tokens"])]
            first += len(size)
            ids = flat[start : start + int(size.sum())]
            start += len(ids)
            self._example(made, i, example, ids, size, labels, tokenizer, limit, too_long)
        return made

    @staticmethod
    def _example(
        made: Rows, i: int, example: Any, ids: Any, size: Any, labels: Any, tokenizer: Tokenizer, limit: int, too_long: str
    ) -> None:
        if (size == 0).any() or size.max() > limit:
            ids, size = _mend(ids, size, int(tokenizer.unknown if tokenizer.unknown is not None else tokenizer.end), limit)
        begins = np.cumsum(size) - size  # where each word's first sub-word is
        tag, word = np.full(len(ids), NONE), np.full(len(ids), -1)
        tag[begins], word[begins] = [labels[t] for t in example["tags"]], np.arange(len(size))
        spans = [(0, len(ids), 0, len(ids))]
        if len(ids) > limit:
            made.cut_rows += 1
            if too_long == "drop":
                made.dropped, made.cut_tokens = made.dropped + 1, made.cut_tokens + len(ids)
                return
            back = lambda place: int(begins[np.searchsorted(begins, place, side="right") - 1])  # noqa: E731
            spans = windows(len(ids), limit, back)
            if too_long in ("truncate", "error"):
                made.cut_tokens += len(ids) - spans[0][1]
                spans = [(0, spans[0][1], 0, spans[0][1])]
        prefix, suffix = np.array(tokenizer.prefix, np.uint32), np.array(tokenizer.suffix, np.uint32)
        for begin, end, own, own_end in spans:
            owned = np.where((np.arange(begin, end) >= own) & (np.arange(begin, end) < own_end), word[begin:end], -1)
            made.ids.append(np.concatenate([prefix, ids[begin:end], suffix]))
            made.owner.append(i)
            made.along["tag"].append(_with_ends(tag[begin:end], prefix, suffix, NONE))
            made.along["word"].append(_with_ends(owned, prefix, suffix, -1))

    def gold(self, example: dict[str, Any]) -> Any:
        return example["tags"]


def _with_ends(values: np.ndarray, prefix: np.ndarray, suffix: np.ndarray, fill: int) -> np.ndarray:
    return np.concatenate([np.full(len(prefix), fill), values, np.full(len(suffix), fill)])


def _mend(ids: np.ndarray, size: np.ndarray, unknown: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """A word without any sub-word (a control character, say) becomes [UNK]; one longer than a window keeps its beginning."""
    pieces = np.split(ids, np.cumsum(size)[:-1])
    pieces = [p[:limit] if len(p) else np.array([unknown], ids.dtype) for p in pieces]
    return np.concatenate(pieces), np.array([len(p) for p in pieces])

"""What augmentations of texts share. They change batches in the thread that reads ahead; the same row in the same epoch is changed alike
on any rank and after any resume, as all chance comes from its key."""

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any, ClassVar

import numpy as np
import torch

from sslcli.augment import Augment
from sslcli.augment.words import Text
from sslcli.core import Batch
from sslcli.data import chance
from sslcli.data.blocks import padded
from sslcli.data.examples import examples_of
from sslcli.data.store import Store
from sslcli.data.tokenizer import Tokenizer
from sslcli.errors import BadInput

SAMPLE = 512  # rows of the first epoch that a receipt is measured on
SURE = 6.0  # deviations between what was asked and what was measured, beyond which something is wrong


class TextAugment(Augment):
    """A change of training batches. `begin` knows the run, then it is called in the thread that reads."""

    said = ""
    mixes: ClassVar[bool] = False  # texts of several labels become one

    def begin(self, model: Any, tokenizer: Tokenizer, store: Store) -> None:
        self.store, self.tokenizer = store, tokenizer

    @abstractmethod
    def __call__(self, batch: Batch, rows: np.ndarray, keys: np.ndarray) -> Batch: ...

    def receipt(self, seed: int) -> dict[str, Any]:
        """Measured on rows of the first epoch; an AssertionError where that contradicts the configuration."""
        return {}

    def pairs(self, seed: int, rows: Sequence[int]) -> list[tuple[str, str]]:
        """Texts and what becomes of them in the first epoch, to be looked at."""
        return []

    def texts(self, rows: np.ndarray) -> list[str]:
        examples = examples_of(self.store)
        return [json.loads(examples.text(int(i)))["input"] for i in self.store["owner"].values[rows, 0]]

    def some(self) -> np.ndarray:
        return np.linspace(0, self.store.count - 1, min(SAMPLE, self.store.count)).astype(np.int64)


class Rewriting(TextAugment):
    """Texts are changed as words and read again by the tokenizer. A text that is cut into several windows stays as it is."""

    def __init__(self, probability: float, rate: float):
        self.probability, self.rate = probability, rate

    @abstractmethod
    def rewrite(self, text: Text, random: Random) -> str:
        """Change it in place; what was done."""

    def begin(self, model: Any, tokenizer: Tokenizer, store: Store) -> None:
        super().begin(model, tokenizer, store)
        owners = store["owner"].values[:, 0]
        self.whole = np.bincount(owners)[owners] == 1

    def rewritten(self, text: str, key: np.uint64) -> tuple[str, str, Text]:
        """(what became of it, by which operation, its words)."""
        random, words = Random(int(key)), Text.of(text)
        if random.random() >= self.probability or not words.words:
            return text, "", words
        done = self.rewrite(words, random)
        return str(words) if words.changed else text, done, words

    def __call__(self, batch: Batch, rows: np.ndarray, keys: np.ndarray) -> Batch:
        chosen = np.flatnonzero(self.whole[rows])
        texts = [self.rewritten(text, key)[0] for text, key in zip(self.texts(rows[chosen]), keys[chosen], strict=True)]
        pieces = list(self.store["ids"].take(rows))
        for place, new in zip(chosen.tolist(), self.encoded(texts), strict=True):
            pieces[place] = new
        ids, mask = padded(pieces, int(self.tokenizer.pad or 0))
        rest = {k: v for k, v in batch.items() if k not in ("ids", "mask")}
        return {"ids": ids, **rest} if mask is None else {"ids": ids, **rest, "mask": mask}

    def encoded(self, texts: Sequence[str]) -> list[np.ndarray]:
        if not texts:
            return []
        flat, lengths = self.tokenizer.encoder.encode(texts)
        prefix, suffix = np.array(self.tokenizer.prefix, np.uint32), np.array(self.tokenizer.suffix, np.uint32)
        room = self.tokenizer.length - len(prefix) - len(suffix)
        parts = np.split(flat, np.cumsum(lengths)[:-1])
        return [np.concatenate([prefix, ids[:room], suffix]).astype(np.int64) for ids in parts]

    def receipt(self, seed: int) -> dict[str, Any]:
        rows = self.some()
        keys = chance.keys(seed, 0, rows)
        done: Counter[str] = Counter()
        changed = words = texts = 0
        for text, key, whole in zip(self.texts(rows), keys, self.whole[rows], strict=True):
            new, by, parts = self.rewritten(text, key)
            if whole and by:
                done[by] += 1
                texts += new != text
                changed, words = changed + parts.changed, words + max(len(parts.words), 1)
        tried, of = sum(done.values()), int(self.whole[rows].sum())
        if abs(tried - self.probability * of) > SURE * max(1.0, (of * self.probability * (1 - self.probability)) ** 0.5) + self._empty(
            rows
        ):
            raise AssertionError(f"augment.probability={self.probability:g}: {tried} of {of} texts were to be rewritten; that is not it")
        found = {"texts": of, "to_rewrite": tried, "rewritten": texts, "words_changed": round(changed / max(1, words), 4), **done}
        if self.rate and words > 200 and changed == 0:
            raise AssertionError(f"augment.rate={self.rate:g}: no word of {words:,} was changed")
        if self.rate and words > 200 and changed / words > 3 * self.rate + 0.05:
            raise AssertionError(f"augment.rate={self.rate:g}: {changed / words:.0%} of the words were changed")
        return found

    def _empty(self, rows: np.ndarray) -> int:
        return sum(not Text.of(text).words for text in self.texts(rows))

    def pairs(self, seed: int, rows: Sequence[int]) -> list[tuple[str, str]]:
        chosen = np.asarray(rows)
        keys = chance.keys(seed, 0, chosen)
        return [(text, self.rewritten(text, key)[0]) for text, key in zip(self.texts(chosen), keys, strict=True)]


def reached(stream: Any, change: TextAugment) -> dict[str, Any]:
    """How many of the rows that the first steps read are others with `change` than without: what training will really see."""
    looked = share = 0.0
    for step in range(min(stream.steps_per_epoch, -(-SAMPLE // stream.batch_size))):
        stream.change = None
        before = stream.batches(step)
        stream.change = change
        for one, two in zip(before, stream.batches(step), strict=True):
            looked += len(two["ids"])
            share += sum(a != b for a, b in zip(_rows(one), _rows(two), strict=True))
    return {"looked_at": int(looked), "changed": round(share / max(1.0, looked), 4)}


def _rows(batch: Batch) -> list[tuple[list[int], float, float]]:
    """(tokens that are seen, share of the row's own in what it is mixed with, share of the features of its embeddings)"""
    every = [1.0] * len(batch["ids"])
    kept = batch["kept"].tolist() if "kept" in batch else every
    features = batch["features"].float().mean(1).tolist() if "features" in batch else every
    return [(ids[seen].tolist(), *more) for ids, seen, *more in zip(batch["ids"], as_mask(batch), kept, features, strict=True)]


def refuse_rows(coder_columns: Sequence[str]) -> None:
    if "text" not in coder_columns or "label" not in coder_columns:
        raise BadInput("augment: texts are augmented where they have labels of their own (task=text_classification); use augment=null")


def as_mask(batch: Batch) -> torch.Tensor:
    mask = batch.get("mask")
    return torch.ones_like(batch["ids"], dtype=torch.bool) if mask is None else mask

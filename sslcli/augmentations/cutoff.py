"""Cutoff (Shen et al. 2020): a share of the tokens, one span of them, or a share of the features is erased from what the network sees."""

from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from sslcli.augment.text import TextAugment, as_mask
from sslcli.core import Batch
from sslcli.data import chance
from sslcli.data.store import Store
from sslcli.data.tokenizer import Tokenizer
from sslcli.errors import BadInput


class Cutoff(TextAugment):
    """Erased tokens are hidden from attention and from pooling, positions staying as they are. The paper sets their embeddings to zero,
    which biases and layer norms would fill again. Special tokens stay. Erased features are nought in all embeddings of a text, after their
    layer norm: the others are not scaled up."""

    def __init__(
        self,
        *,
        probability: Annotated[float, Field(ge=0, le=1)],
        rate: Annotated[float, Field(gt=0, lt=1)],
        unit: Literal["token", "span", "feature"],
    ):
        self.probability, self.rate, self.unit = probability, rate, unit

    def begin(self, model: Any, tokenizer: Tokenizer, store: Store) -> None:
        super().begin(model, tokenizer, store)
        if self.unit == "feature":
            self.width = model.cut_features()
        elif model.decoder:
            raise BadInput("augment=cutoff: a decoder reads from left to right without gaps; use augment.unit=feature, or augment=eda")

    def __call__(self, batch: Batch, rows: np.ndarray, keys: np.ndarray) -> Batch:
        if self.unit == "feature":
            return {**batch, "features": torch.from_numpy(~self.cut(keys))}
        mask = as_mask(batch)
        gone = self.erased(batch["ids"].numpy(), mask.numpy(), keys)
        return {**batch, "mask": mask & torch.from_numpy(~gone)} if gone.any() else batch

    def erased(self, ids: np.ndarray, mask: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """[B, T] bool: round(rate * length) of a row's own tokens, drawn apart or as one span; never all."""
        own = mask & ~self.tokenizer.special[ids]
        length = own.sum(1)
        draws = chance.uniform(keys, ids.shape[1] + 2, stream=7)
        count = np.minimum(np.round(self.rate * length), np.maximum(length - 1, 0)).astype(np.int64)
        count[draws[:, 0] >= self.probability] = 0
        if self.unit == "span":
            first = np.floor(draws[:, 1] * (length - count + 1)).astype(np.int64)
            place = np.cumsum(own, 1) - 1
            return own & (place >= first[:, None]) & (place < (first + count)[:, None])
        order = np.where(own, draws[:, 2:], 2.0).argsort(1, kind="stable").argsort(1, kind="stable")
        return own & (order < count[:, None])

    def cut(self, keys: np.ndarray) -> np.ndarray:
        """[B, D] bool: round(rate * D) features of each row."""
        draws = chance.uniform(keys, self.width + 1, stream=7)
        order = draws[:, 1:].argsort(1, kind="stable").argsort(1, kind="stable")
        return (order < round(self.rate * self.width)) & (draws[:, :1] < self.probability)

    def receipt(self, seed: int) -> dict[str, Any]:
        gone = tokens = touched = 0
        rows = self.some()
        if self.unit == "feature":
            lost = self.cut(chance.keys(seed, 0, rows))
            return {"texts": len(rows), "with_erased": int(lost.any(1).sum()), "features_erased": round(float(lost.mean()), 4)}
        for ids, key in zip(self.store["ids"].take(rows), chance.keys(seed, 0, rows), strict=True):
            row = np.asarray(ids, np.int64)[None]
            erased = self.erased(row, np.ones_like(row, bool), np.array([key]))
            gone, touched, tokens = (
                gone + int(erased.sum()),
                touched + int(erased.any()),
                tokens + int((~self.tokenizer.special[row]).sum()),
            )
        share, asked = gone / max(1, tokens), self.rate * self.probability
        if tokens > 1000 and abs(share - asked) > 0.5 * asked + 0.02:
            raise AssertionError(f"augment.rate={self.rate:g}: {share:.1%} of the tokens were erased instead of {asked:.1%}")
        return {"texts": len(rows), "with_erased": touched, "tokens_erased": round(share, 4)}

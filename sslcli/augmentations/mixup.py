"""Mixup of texts (Zhang et al. 2018; on sentence vectors, Guo et al. 2019)."""

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from sslcli.augment.mix import QUANTILES, quantiles
from sslcli.augment.text import TextAugment
from sslcli.core import Batch
from sslcli.data import chance
from sslcli.data.store import Store
from sslcli.data.tokenizer import Tokenizer
from sslcli.errors import BadInput


class Mixup(TextAugment):
    """A pooled vector is mixed with that of another text of the batch, and so is the loss: `kept` of its own label's and the rest of the
    other's, which is the loss of the mixed label. Shares come from Beta(alpha, alpha)."""

    mixes = True

    def __init__(self, *, probability: Annotated[float, Field(ge=0, le=1)], alpha: Annotated[float, Field(gt=0)]):
        self.probability, self.alpha = probability, alpha

    def begin(self, model: Any, tokenizer: Tokenizer, store: Store) -> None:
        super().begin(model, tokenizer, store)
        if not model.pools_freely:
            raise BadInput(f"augment=mixup: a {model.family} classifier shows no pooled vector to mix; use augment=eda")

    def __call__(self, batch: Batch, rows: np.ndarray, keys: np.ndarray) -> Batch:
        """`kept` [B] and `other` [B], the row of the batch that each is mixed with."""
        draws = chance.uniform(keys, 3, stream=8)
        order = draws[:, 1].argsort(kind="stable")
        other = np.empty_like(order)
        other[order] = np.roll(order, 1)  # a circle through the batch: nobody is mixed with itself
        return {**batch, "kept": torch.from_numpy(self.shares(draws)), "other": torch.from_numpy(other)}

    def shares(self, draws: np.ndarray) -> np.ndarray:
        kept = np.interp(draws[:, 2], np.arange(QUANTILES + 1) / QUANTILES, quantiles(self.alpha))
        return np.where(draws[:, 0] < self.probability, np.maximum(kept, 1 - kept), 1.0).astype(np.float32)

    def receipt(self, seed: int) -> dict[str, Any]:
        rows = self.some()
        kept = self.shares(chance.uniform(chance.keys(seed, 0, rows), 3, stream=8))
        mixed = float((kept < 1).mean())
        if abs(mixed - self.probability) > 6 * (0.25 / len(rows)) ** 0.5 + 1 / len(rows):
            raise AssertionError(f"augment.probability={self.probability:g}: {mixed:.1%} of the texts would be mixed")
        return {"texts": len(rows), "mixed": round(mixed, 4), "own_share": round(float(kept.mean()), 4)}

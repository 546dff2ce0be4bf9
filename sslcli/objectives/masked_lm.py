"""Masked language modelling (Devlin et al. 2019), with whole words (Cui et al. 2019) or spans (Joshi et al. 2020) hidden on request."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslcli.core import Backbone, Batch, Objective, Output, Places
from sslcli.data import chance
from sslcli.data.blocks import block_places, read_blocks
from sslcli.data.store import Store
from sslcli.data.tokenizer import Tokenizer
from sslcli.data.words import word_begins
from sslcli.losses import linear_cross_entropy

MEAN_SPAN = 3.8  # tokens of a span, as in SpanBERT


class MaskedLM(Objective):
    """Hide some tokens of full blocks and predict them. 80 % of the hidden places show [MASK], 10 % a random token, 10 % themselves."""

    head_kind = "masked_lm"

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        *,
        rate: Annotated[float, Field(gt=0, lt=1)],
        masking: Literal["token", "whole_word", "span"],
        show_mask: Annotated[float, Field(ge=0, le=1)],
        show_random: Annotated[float, Field(ge=0, le=1)],
    ):
        if tokenizer.mask is None:
            raise ValueError("the tokenizer has no [MASK]: masked_lm needs an encoder's; use objective=causal_lm for a decoder")
        super().__init__()
        self.rate, self.masking, self.show_mask, self.show_random = rate, masking, show_mask, show_random
        self.length, self.mask, self.size = tokenizer.length, tokenizer.mask, tokenizer.size
        self.special = tokenizer.special
        self.word_begins = word_begins(tokenizer) if masking == "whole_word" else None
        self.head = model.head("masked_lm")

    @staticmethod
    def contradiction(keys: Mapping[str, Any]) -> str | None:
        mask, random = keys["show_mask"], keys["show_random"]
        rest = "the rest of the hidden places shows itself"
        return f"show_mask={mask} and show_random={random} add up to more than 1; {rest}" if mask + random > 1 else None

    def rows(self, store: Store) -> Places:
        return block_places(store, self.length)

    def read(self, store: Store, rows: np.ndarray, keys: np.ndarray) -> Batch:
        ids = read_blocks(store, rows, self.rows(store).width)  # [B, T]
        hidden = self.choose(ids, keys)
        where = np.flatnonzero(hidden)  # [N], places in the flattened block
        target = ids.ravel()[where]
        draw = chance.uniform(keys, ids.shape[1], stream=1).ravel()[where]
        other = chance.integers(keys, ids.shape[1], self.size, stream=2).ravel()[where]
        shown = np.where(draw < self.show_mask, self.mask, np.where(draw < self.show_mask + self.show_random, other, target))
        ids.ravel()[where] = shown
        return {
            "ids": torch.from_numpy(ids),
            "where": torch.from_numpy(where),
            "target": torch.from_numpy(target),
            "weight": torch.tensor(float(len(where))),
        }

    def choose(self, ids: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """[B, T] bool: `rate` of each row, at least one place. Units (tokens, words, spans) are hidden whole, in random order."""
        length = ids.shape[1]
        open_ = ~self.special[ids]
        unit = self._units(ids, keys)  # [B, T] number of the unit that a place belongs to
        order = np.take_along_axis(chance.uniform(keys, length), unit, 1)
        order = np.where(open_, order, 2.0)
        quota = np.maximum(1, np.rint(self.rate * open_.sum(1))).astype(np.int64)
        # ties keep a unit together: sort by (order of the unit, place)
        ranked = np.argsort(order, 1, kind="stable")
        chosen = np.zeros_like(open_)
        np.put_along_axis(chosen, ranked, np.arange(length) < quota[:, None], 1)
        if self.masking == "whole_word":  # what did not fit whole is not hidden at all
            cut = chosen != np.take_along_axis(self._whole(chosen, unit, open_), unit, 1)
            kept = chosen & ~cut
            chosen = np.where(kept.any(1, keepdims=True), kept, chosen)
        return chosen & open_

    def _units(self, ids: np.ndarray, keys: np.ndarray) -> np.ndarray:
        if self.masking == "token":
            return np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        spans = chance.uniform(keys, ids.shape[1], stream=3) < 1 / MEAN_SPAN  # geometric lengths
        begins = spans if self.word_begins is None else self.word_begins(ids)
        begins[:, 0] = True
        return np.cumsum(begins, 1) - 1

    @staticmethod
    def _whole(chosen: np.ndarray, unit: np.ndarray, open_: np.ndarray) -> np.ndarray:
        """[B, T] bool by unit number: all of the unit's open places are chosen."""
        missed = np.zeros_like(chosen)
        rows, places = np.nonzero(open_ & ~chosen)
        missed[rows, unit[rows, places]] = True
        return ~missed

    def forward(self, model: Backbone, batch: Batch) -> Output:
        tokens = model.encode(batch)
        hidden = tokens.flatten(0, 1)[batch["where"]]  # [N, D]: the vocabulary is only met where something is hidden
        logits = None
        if self.head.splits:
            loss, accuracy = linear_cross_entropy(self.head.features(hidden), self.head.weight, self.head.bias, batch["target"])
        else:
            logits = self.head(hidden[None])[0]
            loss, accuracy = F.cross_entropy(logits.float(), batch["target"]), _accuracy(logits, batch["target"])
        return Output(loss, {"accuracy": accuracy.detach()}, logits, {"tokens": tokens})

    def receipt(self, stream: Any) -> dict[str, Any]:
        """The share of open tokens that a few batches hide; it must be what was asked (whole words and spans may fall a little short)."""
        batches = [b for step in range(min(8, stream.steps_per_epoch)) for b in stream.batches(step)]
        seen = sum(b["ids"].numel() for b in batches)
        share = sum(float(b["weight"]) for b in batches) / max(1, seen)
        open_share = sum(int((~self.special[b["ids"].numpy()]).sum()) for b in batches) / max(1, seen)
        enough = open_share > 0.9 and seen * self.rate > 1000  # short texts are mostly ends, and few draws prove nothing
        assert not enough or 0.5 * self.rate < share < 1.2 * self.rate + 0.02, f"{share:.3f} of the tokens are hidden, not {self.rate}"
        return {"masked": {"asked": self.rate, "measured": round(share, 4)}}

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        return {"loss": means["loss"], "masked_accuracy": means["accuracy"], "pseudo_perplexity": math.exp(min(means["loss"], 50))}


def _accuracy(logits: Tensor, target: Tensor) -> Tensor:
    return (logits.argmax(-1) == target).float().mean()

"""Left-to-right language modelling (Radford et al. 2018): predict every token from those before it in its own document."""

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from sslcli.core import Backbone, Batch, Objective, Output, Places
from sslcli.data.blocks import block_places, read_blocks
from sslcli.data.store import Store
from sslcli.data.tokenizer import Tokenizer
from sslcli.losses import linear_cross_entropy


class CausalLM(Objective):
    """Full blocks; positions begin anew with every document, so that attention stays inside it; its first token is never a target."""

    head_kind = "causal_lm"

    def __init__(self, model: Any, tokenizer: Tokenizer, *, within_documents: bool):
        if not model.decoder:
            what = "this model sees the whole text, so nothing is left to predict"
            raise ValueError(f"{what}: causal_lm needs a decoder, as model=gpt_mini; objective=masked_lm trains this one")
        if tokenizer.end is None:
            raise ValueError("the tokenizer has no end-of-text token: causal_lm needs one between documents")
        super().__init__()
        self.length, self.end, self.within_documents = tokenizer.length, tokenizer.end, within_documents
        self.head = model.head("causal_lm")

    def rows(self, store: Store) -> Places:
        return block_places(store, self.length, extra=1)

    def read(self, store: Store, rows: np.ndarray, keys: np.ndarray) -> Batch:
        width = self.rows(store).width
        ids = read_blocks(store, rows, width, extra=1)  # [B, T + 1]: the token after the block is the last one's target
        after_end = ids[:, :-1] == self.end  # what follows these belongs to another document
        batch = {"ids": torch.from_numpy(ids[:, :-1].copy())}
        target = ids[:, 1:].copy()
        if self.within_documents:
            places = np.arange(width)
            begins = np.concatenate([np.zeros((len(ids), 1), bool), after_end[:, :-1]], 1) * places
            batch["positions"] = torch.from_numpy(places - np.maximum.accumulate(begins, 1))
            target[after_end] = -1
        where = np.flatnonzero(target >= 0)
        weight = torch.tensor(float(len(where)))
        return {**batch, "where": torch.from_numpy(where), "target": torch.from_numpy(target.ravel()[where]), "weight": weight}

    def forward(self, model: Backbone, batch: Batch) -> Output:
        tokens = model.encode(batch)
        hidden = tokens.flatten(0, 1)[batch["where"]]  # [N, D]
        if self.head.splits:
            loss, accuracy = linear_cross_entropy(self.head.features(hidden), self.head.weight, self.head.bias, batch["target"])
            return Output(loss, {"accuracy": accuracy}, seen={"tokens": tokens})
        logits = self.head(hidden[None])[0]
        accuracy = (logits.argmax(-1) == batch["target"]).float().mean()
        return Output(F.cross_entropy(logits.float(), batch["target"]), {"accuracy": accuracy}, logits, {"tokens": tokens})

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        return {"loss": means["loss"], "token_accuracy": means["accuracy"], "perplexity": math.exp(min(means["loss"], 50))}

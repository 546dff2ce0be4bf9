"""A sentence finds itself, seen through another dropout, or its pair, among those of the batch (SimCSE, Gao et al. 2021)."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslcli.core import Backbone, Batch, Objective, Output, Places, gathered
from sslcli.data.blocks import Documents, words
from sslcli.data.store import Store
from sslcli.data.tokenizer import Tokenizer
from sslcli.losses import info_nce

SEED = 0x51C5E  # of dropout in evaluations: alike every time


class SimCSE(Objective):
    """InfoNCE over cosines. Without `pairs` a text goes through the network twice, and `dropout` is all that tells the two passes apart.

    `pairs`: columns text_a and text_b belong together; where there is a column `negative`, its texts are further negatives of all rows.
    `symmetric`: the second side looks for the first too.
    """

    couples_rows, least, embeds = True, 2, True
    lr_times_width, tuned_times_width = 0.4, 0.004  # a network that knows sentences unlearns them at ten times this rate
    batch_size, row_length = 64, 128
    causes: ClassVar = {"same_views": "pairs", "guessing": "temperature"}

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        *,
        temperature: Annotated[float, Field(gt=0)],
        dropout: Annotated[float, Field(ge=0, lt=1)],
        pairs: bool,
        symmetric: bool,
    ):
        super().__init__()
        self.temperature, self.dropout, self.pairs, self.symmetric = temperature, dropout, pairs, symmetric
        self.documents = Documents(tokenizer, together=pairs)
        self.apart: Tensor | None = None  # 1 - cosine of the two sides of the last training batch, on the mean

    @staticmethod
    def contradiction(keys: Mapping[str, Any]) -> str | None:
        if not keys["pairs"] and keys["dropout"] == 0:
            return "dropout=0 leaves the two passes of a text alike, and nothing to learn; give it a rate, or pairs=true"
        return None

    @staticmethod
    def columns(config: Mapping[str, Any]) -> Sequence[str]:
        return ("text_a", "text_b") if config["pairs"] else ()

    def rows(self, store: Store) -> Places:
        return replace(self.documents.places(store), words=partial(words, self.documents.pad, store["ids"]))

    def read(self, store: Store, rows: np.ndarray, keys: np.ndarray) -> Batch:
        return {**self.documents.batch(self.documents.read(store, rows)), "weight": torch.tensor(float(len(rows)))}

    def forward(self, model: Backbone, batch: Batch) -> Output:
        sides = self._vectors(model, batch).chunk(max(2, len(batch["ids"]) // int(batch["weight"])))  # each [B, D]
        anchors, positives = sides[:2]
        all_anchors, first = gathered(anchors)
        others = [gathered(side)[0] for side in sides[1:]]  # all ranks' positives, then their hard negatives
        loss = info_nce(anchors, torch.cat(others), self.temperature, first)
        if self.symmetric:
            loss = (loss + info_nce(positives, all_anchors, self.temperature, first)) / 2
        with torch.no_grad():
            nearest = (anchors @ torch.cat(others).t()).argmax(-1)
            accuracy = (nearest == torch.arange(len(anchors), device=anchors.device) + first).float().mean()
            cosine = (anchors * positives).sum(-1).mean()
            self.apart = 1 - cosine if self.training else self.apart
        seen = {"first": anchors, "second": positives, "chance": math.log(sum(map(len, others)))}
        return Output(loss, {"accuracy": accuracy, "positive_cosine": cosine}, seen=seen)

    def _vectors(self, model: Backbone, batch: Batch) -> Tensor:
        """Of unit length: all first sides, then all second ones, ..."""
        if self.pairs:
            return F.normalize(model.pool(model.encode(batch), batch).float(), dim=-1)
        twice: Batch = {key: batch[key].repeat(2, 1) for key in ("ids", "mask") if key in batch}
        with contextlib.nullcontext() if self.training else _awake(model):
            return F.normalize(model.pool(model.encode(twice), twice).float(), dim=-1)

    def receipt(self, stream: Any) -> dict[str, Any]:
        """How far apart dropout brings the two passes of a text: at all, or there was nothing to learn."""
        if self.apart is None:
            return {"cut": self.documents.cut}
        apart = round(float(self.apart), 6)
        assert self.pairs or apart > 1e-6, f"the two passes of a text are alike (1 - cosine {apart}): dropout {self.dropout} is not on"
        return {"cut": self.documents.cut, "sides": {"dropout": self.dropout, "one_minus_cosine": apart}}

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        return {"loss": means["loss"], "contrastive_accuracy": means["accuracy"], "positive_cosine": means["positive_cosine"]}


@contextlib.contextmanager
def _awake(model: torch.nn.Module) -> Iterator[None]:
    """Dropout stays on while a network is evaluated, drawing alike every time: held-out losses mean what those of training do."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model.train()
        try:
            yield
        finally:
            model.eval()

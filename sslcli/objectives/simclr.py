"""Two views of a picture belong together, those of all other pictures do not (SimCLR, Chen et al. 2020)."""

import math
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch.nn import functional as F

from sslcli.core import Backbone, Batch, Output, gathered
from sslcli.heads import ImageObjective, projector, vectors, views_seen
from sslcli.losses import nt_xent, spread


class SimCLR(ImageObjective):
    """Each view finds its partner among all views of the batch, over all ranks: a large batch is a hard question.

    `chunk`: so many views at a time go through the network with their activations kept (GradCache: the same loss and gradient in
    little memory; see heads.vectors for what BatchNorm makes of it). The projector always sees the whole batch.
    """

    couples_rows, least, least_views = True, 2, 2
    lr_times_width = 0.3
    batch_size = 256
    causes: ClassVar = {"narrow": "negatives", "guessing": "temperature"}

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        temperature: Annotated[float, Field(gt=0)],
        hidden: Annotated[int, Field(ge=1)],
        dim: Annotated[int, Field(ge=2)],
        chunk: Annotated[int, Field(ge=2)] | None,
    ):
        super().__init__(processor)
        self.temperature, self.chunk = temperature, chunk
        self.projector = projector(model.dim, hidden, dim)

    def forward(self, model: Backbone, batch: Batch) -> Output:
        pixels = torch.cat(self.views(batch)[:2])  # one pass, so that BatchNorm sees both views, as the authors' does
        features = vectors(model, pixels, self.chunk)
        pairs = F.normalize(self.projector(features).float(), dim=-1).unflatten(0, (2, -1))  # [2, B, dim]
        (firsts, begin), (seconds, _) = gathered(pairs[0]), gathered(pairs[1])
        loss, accuracy = nt_xent(pairs, torch.stack([firsts, seconds]), self.temperature, begin)
        seen = {**views_seen(features.chunk(2), pairs[0]), "chance": math.log(2 * len(firsts) - 1)}
        return Output(loss, {"accuracy": accuracy, "spread": spread(pairs[0])}, seen=seen)

    def receipt(self, stream: Any) -> dict[str, Any]:
        return {"negatives": {"of_each_view": 2 * stream.batch_size - 2}}

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        return {"loss": means["loss"], "contrastive_accuracy": means["accuracy"], "spread": means["spread"]}

"""A view finds another view of its picture among those that a slowly moving encoder saw (MoCo v3, Chen et al. 2021)."""

import math
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslcli.core import Backbone, Batch, Output, gathered
from sslcli.heads import ImageObjective, momentum_at, projector, vectors, views_seen
from sslcli.losses import info_nce, spread
from sslcli.teacher import Queue, Teacher


class MoCo(ImageObjective):
    """Queries go through network, projector and predictor; keys through averages of the first two. Symmetric; negatives are the keys of
    all ranks. `queue`: keys of earlier steps are negatives too, so that a small batch need not be an easy question (MoCo v1 and v2, He
    et al. 2020). `chunk` as in SimCLR, for the queries: only they have a gradient.
    """

    metric = ""
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
        momentum: Annotated[float, Field(ge=0, lt=1)],
        hidden: Annotated[int, Field(ge=1)],
        dim: Annotated[int, Field(ge=2)],
        queue: Annotated[int, Field(ge=1)] | None,
        chunk: Annotated[int, Field(ge=2)] | None,
    ):
        super().__init__(processor)
        self.temperature, self.momentum, self.chunk = temperature, momentum, chunk
        self.projector = projector(model.dim, hidden, hidden, dim, normalised=True)
        self.predictor = projector(dim, hidden, dim, normalised=True)
        self.slow_model, self.slow_projector = Teacher(model), Teacher(self.projector)
        self.queue = Queue(queue, dim) if queue else None
        self._keys: Tensor | None = None  # of this step, all ranks', for the queue

    def forward(self, model: Backbone, batch: Batch) -> Output:
        views = self.views(batch)[:2]
        # a pass a view: statistics of BatchNorm are of one view (and of one rank, where the authors' are of all)
        features = [vectors(model, v, self.chunk) for v in views]
        queries = [F.normalize(self.predictor(self.projector(f)).float(), dim=-1) for f in features]
        with torch.no_grad():
            keys = [F.normalize(self.slow_projector(vectors(self.slow_model.twin, v, self.chunk)).float(), dim=-1) for v in views]
            (firsts, begin), (seconds, _) = gathered(keys[0]), gathered(keys[1])
        # 2 * temperature is the authors': gradients of one size whatever the temperature
        loss = 2 * self.temperature * (self._contrast(queries[0], seconds, begin) + self._contrast(queries[1], firsts, begin))
        if self.training and self.queue is not None:
            self._keys = torch.cat([firsts, seconds])
        nearest = (queries[0].detach() @ seconds.t()).argmax(-1)
        accuracy = (nearest == torch.arange(len(nearest), device=nearest.device) + begin).float().mean()
        others = len(firsts) + (0 if self.queue is None else len(self.queue.values))
        seen = {**views_seen(features, queries[0]), "chance": 4 * self.temperature * math.log(others)}
        return Output(loss, {"accuracy": accuracy, "spread": spread(queries[0])}, seen=seen)

    def _contrast(self, queries: Tensor, keys: Tensor, begin: int) -> Tensor:
        return info_nce(queries, keys if self.queue is None else torch.cat([keys, self.queue.values]), self.temperature, begin)

    def after_step(self, model: Backbone, progress: float) -> None:
        momentum = momentum_at(progress, self.momentum)
        self.slow_model.move(model, momentum)
        self.slow_projector.move(self.projector, momentum)
        if self.queue is not None and self._keys is not None:
            self.queue.push(self._keys)
            self._keys = None

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        return {"loss": means["loss"], "contrastive_accuracy": means["accuracy"], "spread": means["spread"]}

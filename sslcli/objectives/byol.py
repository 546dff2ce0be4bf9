"""From one view, predict what a slowly moving twin of the network makes of another; no negatives (BYOL, Grill et al. 2020)."""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from sslcli.core import Backbone, Batch, Output
from sslcli.heads import ImageObjective, momentum_at, projector, vectors, views_seen
from sslcli.losses import negative_cosine, spread
from sslcli.teacher import Teacher


class BYOL(ImageObjective):
    """The twin's momentum rises from `momentum` to 1 along a cosine. The loss says little: watch `spread`, which is 0 in a collapse."""

    metric = ""
    couples_rows, least, least_views = True, 2, 2  # through BatchNorm, whose statistics are of one view and one rank
    lr_times_width = 0.06
    batch_size = 256
    causes: ClassVar = {"constant": "teacher", "narrow": "teacher"}

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        momentum: Annotated[float, Field(ge=0, lt=1)],
        hidden: Annotated[int, Field(ge=1)],
        dim: Annotated[int, Field(ge=2)],
    ):
        super().__init__(processor)
        self.momentum = momentum
        self.projector, self.predictor = projector(model.dim, hidden, dim), projector(dim, hidden, dim)
        self.slow_model, self.slow_projector = Teacher(model), Teacher(self.projector)

    def forward(self, model: Backbone, batch: Batch) -> Output:
        views = self.views(batch)[:2]
        features = [vectors(model, v) for v in views]
        projected = [self.projector(f) for f in features]
        predicted = [self.predictor(p) for p in projected]
        with torch.no_grad():
            targets = [self.slow_projector(vectors(self.slow_model.twin, v)) for v in views]
        cosines = negative_cosine(predicted[0], targets[1]) + negative_cosine(predicted[1], targets[0])
        loss = 4 + 2 * cosines  # |p - t|^2 of unit vectors, both ways
        return Output(loss, {"spread": spread(projected[0])}, seen=views_seen(features, projected[0]))

    def after_step(self, model: Backbone, progress: float) -> None:
        momentum = momentum_at(progress, self.momentum)
        self.slow_model.move(model, momentum)
        self.slow_projector.move(self.projector, momentum)

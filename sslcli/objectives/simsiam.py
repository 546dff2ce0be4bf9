"""From one view, predict the projection of another, through which no gradient goes (SimSiam, Chen and He 2021)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from sslcli.core import Backbone, Batch, Output
from sslcli.heads import ImageObjective, projector, vectors, views_seen
from sslcli.losses import negative_cosine, spread


class SimSiam(ImageObjective):
    """Neither negatives nor a teacher: the stopped gradient and the predictor's `bottleneck` keep it from collapse, where `spread` is 0."""

    metric = ""
    couples_rows, least, least_views = True, 2, 2  # through BatchNorm, whose statistics are of one view and one rank
    lr_times_width = 0.06
    batch_size = 256
    causes: ClassVar = {"constant": "stop_gradient", "narrow": "stop_gradient"}

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        dim: Annotated[int, Field(ge=2)],
        bottleneck: Annotated[int, Field(ge=1)],
    ):
        super().__init__(processor)
        self.projector = projector(model.dim, dim, dim, dim, normalised=True)
        self.predictor = projector(dim, bottleneck, dim)

    def forward(self, model: Backbone, batch: Batch) -> Output:
        features = [vectors(model, v) for v in self.views(batch)[:2]]
        projected = [self.projector(f) for f in features]
        predicted = [self.predictor(p) for p in projected]
        loss = (negative_cosine(predicted[0], projected[1]) + negative_cosine(predicted[1], projected[0])) / 2
        return Output(loss, {"spread": spread(projected[0])}, seen=views_seen(features, projected[0]))

"""The cross-correlation of two views' features is drawn to the identity (Barlow Twins, Zbontar et al. 2021)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from sslcli.core import Backbone, Batch, Output, gathered
from sslcli.heads import ImageObjective, projector, vectors, views_seen
from sslcli.losses import barlow_twins, spread


class BarlowTwins(ImageObjective):
    """`redundancy` weighs what lies beside the diagonal. The correlation is that of all ranks' batch; BatchNorm's statistics inside the
    projector are of one rank."""

    couples_rows, least, least_views = True, 2, 2
    lr_times_width = 0.3
    batch_size = 256
    causes: ClassVar = {"narrow": "redundancy"}

    def __init__(self, model: Any, processor: Any, *, hidden: Annotated[int, Field(ge=2)], redundancy: Annotated[float, Field(ge=0)]):
        super().__init__(processor)
        self.redundancy = redundancy
        self.projector = projector(model.dim, hidden, hidden, hidden, bias=False)

    def forward(self, model: Backbone, batch: Batch) -> Output:
        features = [vectors(model, v) for v in self.views(batch)[:2]]
        first, second = (gathered(self.projector(f).float())[0] for f in features)
        invariance, redundancy = barlow_twins(first, second)
        logs = {"invariance": invariance.detach(), "redundancy": redundancy.detach(), "spread": spread(first)}
        return Output(invariance + self.redundancy * redundancy, logs, seen=views_seen(features, first))

"""Views of a picture alike, features spread out and uncorrelated, each by a term of its own (VICReg, Bardes et al. 2022)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from sslcli.core import Backbone, Batch, Output, gathered
from sslcli.heads import ImageObjective, projector, vectors, views_seen
from sslcli.losses import spread, vicreg_terms

Weight = Annotated[float, Field(ge=0)]


class VICReg(ImageObjective):
    """Variance and covariance are those of all ranks' batch; BatchNorm's statistics inside the projector are of one rank."""

    couples_rows, least, least_views = True, 2, 2
    lr_times_width = 0.3
    batch_size = 256
    causes: ClassVar = {"shrunk": "variance", "narrow": "variance"}

    def __init__(
        self, model: Any, processor: Any, *, hidden: Annotated[int, Field(ge=2)], invariance: Weight, variance: Weight, covariance: Weight
    ):
        super().__init__(processor)
        self.weights, self.variance = (invariance, variance, covariance), variance
        self.projector = projector(model.dim, hidden, hidden, hidden, bias=False)

    def forward(self, model: Backbone, batch: Batch) -> Output:
        features = [vectors(model, v) for v in self.views(batch)[:2]]
        first, second = (gathered(self.projector(f).float())[0] for f in features)
        terms = dict(zip(("invariance", "variance", "covariance"), vicreg_terms(first, second), strict=True))
        loss = sum((w * term for w, term in zip(self.weights, terms.values(), strict=True)), start=first.new_zeros(()))
        logs = {**{name: term.detach() for name, term in terms.items()}, "spread": spread(first)}
        return Output(loss, logs, seen={**views_seen(features, first), "deviation": 1 - logs["variance"]})

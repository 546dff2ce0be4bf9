"""One view's prototype assignment, shared out equally over the batch, is predicted from the others (SwAV, Caron et al. 2020)."""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslcli.core import Backbone, Batch, Output, gathered
from sslcli.heads import ImageObjective, Prototypes, projector, same_size, vectors, views_seen
from sslcli.losses import across_views, entropy, sinkhorn, spread
from sslcli.teacher import Queue

ASSIGNED = 2  # views of each picture, the whole ones
Share = Annotated[float, Field(ge=0, le=1)]


class SwAV(ImageObjective):
    """Assignments come from the whole pictures alone, over all ranks; small crops only predict. A batch smaller than the number of
    prototypes cannot be shared out among them: `queue` adds so many earlier vectors to it, from the share `queue_from` of the run on.
    The prototypes stay as they are for the first `freeze` of the run.
    """

    metric = ""
    couples_rows, least, least_views = True, 2, ASSIGNED
    lr_times_width = 0.3
    batch_size = 256
    causes: ClassVar = {"uninformed": "codes", "narrow": "codes"}

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        prototypes: Annotated[int, Field(ge=2)],
        hidden: Annotated[int, Field(ge=1)],
        dim: Annotated[int, Field(ge=2)],
        temperature: Annotated[float, Field(gt=0)],
        epsilon: Annotated[float, Field(gt=0)],
        rounds: Annotated[int, Field(ge=1)],
        freeze: Share,
        queue: Annotated[int, Field(ge=1)] | None,
        queue_from: Share,
    ):
        super().__init__(processor)
        self.temperature, self.epsilon, self.rounds, self.freeze, self.queue_from = temperature, epsilon, rounds, freeze, queue_from
        self.projector = projector(model.dim, hidden, dim)
        self.prototypes = Prototypes(dim, prototypes)
        self.queues: Any = nn.ModuleList(Queue(queue, dim) for _ in range(ASSIGNED)) if queue else None
        self.progress = 0.0
        self._vectors: list[Tensor] = []  # of this step's whole pictures, all ranks', for the queues

    def forward(self, model: Backbone, batch: Batch) -> Output:
        groups = same_size(self.views(batch))  # [whole pictures, crops of each smaller size]
        features, rows = torch.cat([vectors(model, torch.cat(group)) for group in groups]), len(batch["pixels"])
        projected = F.normalize(self.projector(features).float(), dim=-1)
        scores = self.prototypes(projected, self.progress < self.freeze).split(rows)
        codes = [self._codes(view, scores[view].detach()) for view in range(ASSIGNED)]
        if self.training and self.queues is not None:
            self._vectors = [gathered(p)[0] for p in projected.detach().split(rows)[:ASSIGNED]]
        loss = across_views(codes, [s / self.temperature for s in scores])
        agreed = (scores[0].argmax(-1) == codes[1].argmax(-1)).float().mean()
        used = entropy(F.softmax(scores[0].detach() / self.temperature, -1).mean(0)).exp()
        logs = {"accuracy": agreed, "prototypes_used": used, "spread": spread(projected[:rows])}
        return Output(loss, logs, seen={**views_seen(features.split(rows), projected[:rows]), "said": codes[0]})

    @torch.no_grad()
    def _codes(self, view: int, mine: Tensor) -> Tensor:
        """[B, K]: what this rank's rows are assigned to, when all ranks' rows (and the queue's) are shared out."""
        scores, first = gathered(mine)
        if self.queues is not None and self.progress >= self.queue_from:
            scores = torch.cat([scores, self.prototypes(self.queues[view].values)])
        return sinkhorn(scores, self.epsilon, self.rounds)[first : first + len(mine)]

    def after_step(self, model: Backbone, progress: float) -> None:
        self.progress = progress
        for queue, found in zip(self.queues or (), self._vectors, strict=False):
            queue.push(found)
        self._vectors = []

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.progress, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.progress = float(state)

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        return {"loss": means["loss"], "assignment_accuracy": means["accuracy"], **{k: means[k] for k in ("prototypes_used", "spread")}}

"""A student sees small crops and says what its slowly moving teacher says of large ones (DINO, Caron et al. 2021)."""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslcli.core import Backbone, Batch, Output, gathered
from sslcli.heads import BatchNorm, ImageObjective, Prototypes, momentum_at, same_size, vectors, views_seen
from sslcli.losses import across_views, entropy, spread
from sslcli.teacher import Teacher

Temperature = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class DINO(ImageObjective):
    """What is said is a distribution over prototypes. Two things keep it from collapse: the teacher's is sharpened (its temperature rises
    from `teacher_start` to `teacher` in the first `warmup` of the run) and centred. The prototypes stay as they are for the first
    `freeze` of the run. `batch_norm` in the head (the authors' `use_bn_in_head`; statistics are of one rank) takes away what all
    pictures share, without which narrow networks take long to begin. The vector is the network's pooled one, as in later tasks.
    """

    metric = ""
    couples_rows, least, least_views = True, 2, 2  # through BatchNorm
    lr_times_width = 0.15
    batch_size = 128
    causes: ClassVar = {"uninformed": "centring"}

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        prototypes: Annotated[int, Field(ge=2)],
        hidden: Annotated[int, Field(ge=1)],
        bottleneck: Annotated[int, Field(ge=1)],
        batch_norm: bool,
        student: Temperature,
        teacher: Temperature,
        teacher_start: Temperature,
        warmup: Share,
        momentum: Annotated[float, Field(ge=0, lt=1)],
        centre_momentum: Annotated[float, Field(ge=0, lt=1)],
        freeze: Share,
    ):
        super().__init__(processor)
        self.student, self.teacher, self.teacher_start, self.warmup = student, teacher, teacher_start, warmup
        self.momentum, self.centre_momentum, self.freeze = momentum, centre_momentum, freeze
        self.head = _Head(model.dim, hidden, bottleneck, prototypes, batch_norm)
        self.slow_model, self.slow_head = Teacher(model), Teacher(self.head)
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(prototypes))
        self.progress = 0.0
        self._said: Tensor | None = None  # mean of the teacher's scores in this step, over all ranks

    def forward(self, model: Backbone, batch: Batch) -> Output:
        groups = same_size(self.views(batch))  # [whole pictures, crops of each smaller size]
        rows, frozen = len(batch["pixels"]), self.progress < self.freeze
        features = torch.cat([vectors(model, torch.cat(group)) for group in groups])
        said = (self.head(features, frozen) / self.student).split(rows)
        with torch.no_grad():
            scores = self.slow_head(vectors(self.slow_model.twin, torch.cat(groups[0])))
            mean = gathered(scores.mean(0, keepdim=True))[0].mean(0)
            # the paper's centre begins at nought, and what all pictures share is then the first thing learnt: a few steps in its runs
            targets = F.softmax((scores - (self.centre if self.progress else mean)) / self._temperature(), -1)
            if self.training:
                self._said = mean
        loss = across_views(targets.split(rows), said)
        # a collapse shows in either: no entropy in one mean over the batch, or all of it in each picture's
        logs = {"teacher_entropy": entropy(targets).mean(), "prototypes_used": entropy(targets.mean(0)).exp()}
        return Output(loss, {**logs, "spread": spread(features[:rows])}, seen={**views_seen(features.split(rows)), "said": targets})

    def _temperature(self) -> float:
        share = min(1.0, self.progress / self.warmup) if self.warmup else 1.0
        return self.teacher_start + share * (self.teacher - self.teacher_start)

    @torch.no_grad()
    def after_step(self, model: Backbone, progress: float) -> None:
        momentum = momentum_at(progress, self.momentum)
        self.slow_model.move(model, momentum)
        self.slow_head.move(self.head, momentum)
        if self._said is not None:
            self.centre.lerp_(self._said, 1 - self.centre_momentum if self.progress else 1.0)
        self.progress, self._said = progress, None

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.progress, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.progress = float(state)


class _Head(nn.Module):
    """[B, D] -> [B, prototypes], in fp32: three layers, a vector of unit length, cosines."""

    def __init__(self, dim: int, hidden: int, bottleneck: int, prototypes: int, batch_norm: bool):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (dim, hidden):
            layers += [nn.Linear(inputs, hidden), *([BatchNorm(hidden)] if batch_norm else []), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = Prototypes(bottleneck, prototypes)

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        return self.prototypes(self.mlp(x), frozen)

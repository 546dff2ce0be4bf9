"""LoRA whose ranks go where they matter (AdaLoRA, Zhang et al. 2023)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sslcli.hf.targets import PROJECTIONS
from sslcli.hf.tuning import Library, Targets

NEVER = 1 << 30  # steps: the library's own clock, which is not used
BETA = 0.85  # of both averages


class Adalora(Library):
    """W + P diag(l) Q / r with P and Q kept near orthogonal. Each matrix begins with `start` triplets; from a `warm` share of the run to
    a `last` one before its end, the least important of all matrices are switched off, every `every` steps, until `r` a matrix are left.

    The library's layers; its allocator reads gradients where none are here (they are summed in fp32, beside bf16 weights), and would
    not survive a resumption. This one works on the masters, and its state is in buffers.
    """

    type = "ADALORA"
    said: ClassVar[Mapping[str, str]] = {"init_r": "start", "lora_alpha": "alpha", "lora_dropout": "dropout"}
    part = PROJECTIONS
    steers = True

    def __init__(
        self,
        *,
        r: Annotated[int, Field(ge=1, le=4096)],
        start: Annotated[int, Field(ge=1, le=4096)],
        alpha: Annotated[float, Field(gt=0)],
        dropout: Annotated[float, Field(ge=0, lt=1)],
        warm: Annotated[float, Field(ge=0, lt=1)],
        last: Annotated[float, Field(gt=0, lt=1)],
        every: Annotated[int, Field(ge=1)],
        orthogonal: Annotated[float, Field(ge=0)],
        targets: Targets,
        load: str | None,
    ):
        super().__init__(targets, load)
        self.r, self.start, self.alpha, self.dropout = r, start, alpha, dropout
        self.warm, self.last, self.every, self.orthogonal = warm, last, every, orthogonal
        self.steps, self.down = 1, False  # of the run, as last heard; whether ranks have been brought down to r

    @staticmethod
    def contradiction(keys: Mapping[str, Any]) -> str | None:
        if keys["start"] < keys["r"]:
            return f"start={keys['start']} is less than r={keys['r']}, which ranks are brought down to; raise start or lower r"
        if keys["warm"] + keys["last"] >= 1:
            return f"warm={keys['warm']} and last={keys['last']} leave no steps in which ranks are given; lower one"
        return None

    def config(self, names: Sequence[str]) -> Any:
        from peft import AdaLoraConfig

        return AdaLoraConfig(
            init_r=self.start,
            target_r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(names),
            total_step=NEVER,
        )

    def put(self, model: Any) -> None:
        super().put(model)
        learning = [(n, p.shape) for n, p in model.named_parameters() if p.requires_grad]
        model.ranks = _Ranks(len(self.names), self.start, [s for x in "EAB" for n, s in learning if f".lora_{x}." in n])

    @torch.no_grad()
    def before_step(self, masters: Mapping[str, Tensor]) -> None:
        """`masters`: fp32, by name, with the gradients of this step. Adds that of orthogonal * mean ||P^T P - 1||."""
        found = [(".lora_A." in n, m) for n, m in masters.items() if ".lora_A." in n or ".lora_B." in n]
        for lies, matrix in found if self.orthogonal else ():
            rows = matrix if lies else matrix.t()
            off = rows @ rows.t() - torch.eye(self.start, device=rows.device)
            slope = 2 * self.orthogonal / len(found) / off.norm().clamp(min=1e-9) * (off @ rows)
            if matrix.grad is not None:
                matrix.grad += slope if lies else slope.t()

    @torch.no_grad()
    def after_step(self, masters: Mapping[str, Tensor], step: int, steps: int) -> None:
        """After they have moved; `step` counts from 1."""
        self.steps = steps
        triplets = [[m for n, m in masters.items() if f".lora_{x}." in n] for x in "EAB"]
        ranks, first, until = self.model.ranks, round(self.warm * steps), steps - round(self.last * steps)
        if step <= until:
            ranks.look([m for same in triplets for m in same])
        down = step >= until and not self.down  # at `until`, or after it where a time limit has made the run shorter
        if (first < step < until and step % self.every == 0) or down:
            left = max(0.0, 1 - (step - first) / max(1, until - first))
            total, wanted = len(self.names) * self.start, len(self.names) * self.r
            ranks.choose(*triplets, min(int((total - wanted) * left**3) + wanted, int(ranks.on.sum())))
            self.down = down
        for on, values in zip(ranks.on, triplets[0], strict=True):
            values.mul_(on[:, None])

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "total_step": self.steps}


class _Ranks(nn.Module):
    """How important each weight was lately and how unsure that is, and which triplets are on [layers, r]."""

    def __init__(self, layers: int, r: int, shapes: Sequence[torch.Size]):
        super().__init__()
        self.on: Tensor
        self.register_buffer("on", torch.ones(layers, r))
        self.count = len(shapes)
        for i, shape in enumerate(shapes):
            self.register_buffer(f"mean{i}", torch.zeros(shape))
            self.register_buffer(f"spread{i}", torch.zeros(shape))

    def look(self, masters: Sequence[Tensor]) -> None:
        for i, master in enumerate(masters):
            mean, spread = getattr(self, f"mean{i}"), getattr(self, f"spread{i}")
            now = (master * master.grad).abs() if master.grad is not None else torch.zeros_like(master)
            mean.lerp_(now, 1 - BETA)
            spread.lerp_((now - mean).abs(), 1 - BETA)

    def choose(self, scales: Sequence[Tensor], rows: Sequence[Tensor], columns: Sequence[Tensor], budget: int) -> None:
        """Keep the `budget` triplets that matter most: the scale's own score, and the means of its vectors'."""
        scores = [getattr(self, f"mean{i}") * getattr(self, f"spread{i}") for i in range(self.count)]
        e, a, b = (scores[k * len(scales) : (k + 1) * len(scales)] for k in range(3))
        worth = torch.stack([x[:, 0] + y.mean(1) + z.mean(0) for x, y, z in zip(e, a, b, strict=True)])
        best = worth.flatten().topk(budget).indices
        self.on.zero_().view(-1)[best] = 1.0

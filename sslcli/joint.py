"""Two losses in one run: how much the self-supervised one weighs beside the task's."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sslcli.distributed import World
from sslcli.optim import Optimizer

MEMORY = 0.9  # of the ratio of the gradients' lengths, from one look to the next
MOST = 100.0  # times the task's weight
RAMP = 0.3  # of the run, over which `rampup` rises
LOOKS = 100  # in a run, at how the two gradients go together


class Joint:
    """The node `joint`. `weight`: of the self-supervised loss, the task's is 1; auto makes both gradients of the shared network equally
    long (the aim of GradNorm, Chen et al. 2018, at alpha = 0, met directly by the ratio of their norms). `schedule`: what becomes of that
    weight over the run; linear and cosine end at zero, rampup begins there: exp(-5 (1 - t)^2) (Laine and Aila 2017)."""

    def __init__(
        self,
        *,
        weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"],
        schedule: Literal["constant", "linear", "cosine", "rampup"],
        batch_size: Annotated[int, Field(ge=1)] | None,
    ):
        self.weight, self.schedule, self.batch_size = weight, schedule, batch_size


class Balance(nn.Module):
    """The weight at work. What `auto` has found is a buffer, so that it is saved with all else."""

    def __init__(self, joint: Joint):
        super().__init__()
        self.joint, self.auto = joint, joint.weight == "auto"
        self.weight: Tensor
        self.register_buffer("weight", torch.tensor(0.0 if self.auto else float(joint.weight), dtype=torch.float64))
        self.share = 1.0  # that the schedule leaves

    def at(self, progress: float) -> float:
        """The weight of a step. Before anything was measured: 1."""
        shares = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
        shares["rampup"] = math.exp(-5 * max(0.0, 1 - progress / RAMP) ** 2)
        self.share = shares[self.joint.schedule]
        return (float(self.weight) or 1.0) * self.share

    @staticmethod
    def looks(step: int, steps: int) -> bool:
        return step % max(1, steps // LOOKS) == 0

    @torch.no_grad()
    def compare(self, first: Sequence[Tensor | None], optimizer: Optimizer, world: World) -> tuple[Tensor, Tensor]:
        """(cosine, ratio of lengths) of the gradients of both terms in what they share; `first` is the task's alone, the optimizer has the
        weighed sum. An automatic weight moves, and with it, at once, that sum. Of several ranks each looks at its own gradients."""
        pairs = [(a, m.grad - a) for a, m in zip(first, optimizer.masters, strict=True) if a is not None and m.grad is not None]
        pairs = [(a, b) for a, b in pairs if bool(b.any())]
        dots = [float(sum((x * y).sum(dtype=torch.float64) for x, y in of)) for of in (pairs, [(a, a) for a, _ in pairs])]
        dots.append(float(sum((b * b).sum(dtype=torch.float64) for _, b in pairs)))
        dot, task, other = world.sum(dots)
        if not (task > 0 and other > 0 and math.isfinite(task + other)):
            return torch.zeros(()), torch.tensor(float(other > 0))
        if self.auto:
            self._move(math.sqrt(task / other), first, optimizer)
        return torch.tensor(dot / math.sqrt(task * other)), torch.tensor(math.sqrt(other / task))

    def receipt(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What stands in the log, first, last and mean: the weights with which losses were back-propagated, and how the gradients went
        together. An AssertionError where the weight is not the one that was asked."""
        found = {key: [float(line[key]) for line in lines if key in line] for key in ("weight", "gradient_ratio", "gradient_cosine")}
        asked, got = self.joint.weight, found["weight"]
        if asked != "auto" and self.joint.schedule == "constant" and got and not all(math.isclose(w, asked, rel_tol=0.01) for w in got):
            raise AssertionError(f"joint.weight={asked:g}: the loss beside the task was weighed {got[0]:g} to {got[-1]:g}")
        return {"joint": {k: {"first": v[0], "last": v[-1], "mean": round(sum(v) / len(v), 6)} for k, v in found.items() if v}}

    def _move(self, factor: float, first: Sequence[Tensor | None], optimizer: Optimizer) -> None:
        """`factor`: what would have made this step's gradients equally long."""
        before = float(self.weight) or 1.0
        wanted = min(before * factor * self.share, MOST)
        kept = MEMORY if float(self.weight) else 0.0
        now = math.exp(kept * math.log(before) + (1 - kept) * math.log(max(wanted, 1e-6)))
        self.weight.fill_(now)
        for alone, master in zip(first, optimizer.masters, strict=True):
            if master.grad is not None:
                alone = torch.zeros_like(master.grad) if alone is None else alone
                master.grad.sub_(alone).mul_(now / before).add_(alone)

"""What a student learns from and never back-propagates into: a slowly moving twin of it, a queue of what went before."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """An exponential moving average of a module (Tarvainen and Valpola 2017), called as that module is.

    The averages are fp32 buffers: a step of a thousandth is lost in bf16. What computes is `twin`, a copy in the student's precision
    that is written anew from the averages when they have moved; it keeps BatchNorm statistics of its own. Gradients stop here.
    """

    def __init__(self, student: nn.Module):
        super().__init__()
        self._twin = copy.deepcopy(student).requires_grad_(False)
        self.averages = nn.Module()
        for name, weight in self._twin.named_parameters():
            self.averages.register_buffer(name.replace(".", "/"), weight.detach().clone().float())
        self._written: torch.dtype | None = None  # the precision that the twin holds the averages in; None: they have moved since
        self.register_state_dict_post_hook(_without_copies)
        self.register_load_state_dict_post_hook(_afresh)

    @property
    def twin(self) -> Any:
        """The copy, up to date. Whoever calls it sees to `torch.no_grad()`; its weights take no gradient in any case."""
        weights: list[Tensor] = list(self._twin.parameters())
        if weights and self._written != weights[0].dtype:
            with torch.no_grad():
                torch._foreach_copy_(weights, list(self.averages.buffers()))
            self._written = weights[0].dtype
        return self._twin

    @torch.no_grad()
    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.twin(*inputs, **options)

    @torch.no_grad()
    def move(self, student: nn.Module, momentum: float) -> None:
        """average <- momentum * average + (1 - momentum) * student"""
        weights = [weight.detach().float() for weight in student.parameters()]
        torch._foreach_lerp_(list(self.averages.buffers()), weights, 1 - momentum)
        self._written = None


def _without_copies(teacher: Teacher, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """The twin's weights follow from the averages: neither saved nor asked for."""
    for name, _weight in teacher._twin.named_parameters():
        state.pop(f"{prefix}_twin.{name}", None)


def _afresh(teacher: Teacher, keys: Any) -> None:
    teacher._written = None
    copies = {name for name, _ in teacher._twin.named_parameters()}
    keys.missing_keys[:] = [k for k in keys.missing_keys if k.partition("_twin.")[2] not in copies]


class Queue(nn.Module):
    """The last `size` vectors, `values` [size, D]: the newest take the places of the oldest. Random unit vectors before the first."""

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.values: Tensor
        self.place: Tensor
        self.register_buffer("values", nn.functional.normalize(torch.randn(size, dim), dim=-1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """[N, D]: those of all ranks, alike on each."""
        size = len(self.values)
        rows = rows.detach()[-size:].to(self.values.dtype)
        places = (torch.arange(len(rows), device=rows.device) + self.place) % size
        self.values.index_copy_(0, places, rows)
        self.place.add_(len(rows)).remainder_(size)

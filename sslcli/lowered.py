"""bf16 weights beside fp32 masters: what a step multiplies is half as wide, what it sums and keeps is not."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORMS = (nn.LayerNorm, nn.RMSNorm)


class _Lookup(torch.autograd.Function):
    """Rows of a table [V, D]. The library's gradient on a CPU sums in bf16, where a frequent token's small gradients are lost (a third
    of it for a table of one row); this one sums in fp32, and is faster."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rows, ctx.padding = len(table), padding
        return F.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        table = torch.zeros(ctx.rows, grad.shape[-1]).index_add_(0, ids.flatten(), grad.flatten(0, -2).float())
        if ctx.padding is not None:
            table[ctx.padding] = 0
        return table.to(grad.dtype), None, None


class Lowered:
    """The parameters of `modules` lowered in place; `masters` [fp32] are what an optimizer moves and what gradients are summed in."""

    def __init__(self, modules: nn.Module, weights: Sequence[Tensor], precision: torch.dtype):
        self.masters = [w.detach().clone().float() for w in weights]
        on_cpu = bool(weights) and weights[0].device.type == "cpu"
        kept = _norms(modules) if on_cpu else set()  # their gradients are sums over all tokens, which a CPU takes in their own type
        for parameter in modules.parameters():  # buffers stay: rotary frequencies do not survive bf16
            if id(parameter) not in kept:
                parameter.data = parameter.data.to(precision)
        self.hooks = [w.register_post_accumulate_grad_hook(partial(_add, m)) for w, m in zip(weights, self.masters, strict=True)]
        self.tables = [m for m in modules.modules() if on_cpu and type(m) is nn.Embedding and m.max_norm is None]
        for table in self.tables:
            table.forward = partial(_look_up, table)  # type: ignore[method-assign]

    def undo(self) -> None:
        """Gradients stay where they come from, and tables are the library's again; the weights are the caller's to set."""
        for handle in self.hooks:
            handle.remove()
        for table in self.tables:
            del table.forward


def _look_up(table: nn.Embedding, ids: Tensor) -> Tensor:
    return _Lookup.apply(table.weight, ids, table.padding_idx)


def _norms(modules: nn.Module) -> set[int]:
    return {id(p) for m in modules.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}


def _add(master: Tensor, weight: Tensor) -> None:
    if master.grad is None:
        master.grad = weight.grad.float()  # type: ignore[union-attr]
    else:
        master.grad.add_(weight.grad)  # type: ignore[arg-type]
    weight.grad = None

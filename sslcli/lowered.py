"""bf16 weights beside fp32 masters: what a step multiplies is half as wide, what it sums and keeps is not."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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


def lookup(table: Tensor, ids: Tensor, padding: int | None) -> Tensor:
    """`padding`: the row that never learns."""
    return _Lookup.apply(table, ids, padding)


class _Normalise(torch.autograd.Function):
    """Layer normalisation over the last axis D. The library's gradients of gain and bias, sums over all tokens, are summed in bf16 on a
    CPU and miss by a tenth; these are summed in fp32, and so are mean and deviation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        gain, bias = gain.float(), None if bias is None else bias.float()
        y, mean, scale = torch.native_layer_norm(x, gain.shape, gain, bias, eps)
        ctx.save_for_backward(x, gain, bias, mean, scale)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, bias, mean, scale = ctx.saved_tensors
        asked = ctx.needs_input_grad[:3]
        found = torch.ops.aten.native_layer_norm_backward(grad.float(), x.float(), gain.shape, mean, scale, gain, bias, asked)
        return *(t.to(x.dtype) if wanted else None for t, wanted in zip(found, asked, strict=True)), None


class Lowered:
    """The parameters of `modules` lowered in place; `masters` [fp32] are what an optimizer moves and what gradients are summed in. Frozen
    ones have no master, only their old values, which come back in the end where nothing else has written to them."""

    def __init__(self, modules: nn.Module, weights: Sequence[Tensor], precision: torch.dtype):
        self.masters = [w.detach().clone().float() for w in weights]
        on_cpu = bool(weights) and weights[0].device.type == "cpu"
        learning = {id(w) for w in weights}
        self.frozen = [(p, p.data) for p in modules.parameters() if id(p) not in learning]
        for parameter in modules.parameters():  # buffers stay: rotary frequencies do not survive bf16
            parameter.data = parameter.data.to(precision)
        # on a CPU their gradients stay in one place: given back and asked for again in every step, they leave holes in the heap
        places = [torch.empty_like(m) if on_cpu else None for m in self.masters]
        hooked = zip(weights, self.masters, places, strict=True)
        self.hooks = [w.register_post_accumulate_grad_hook(partial(_add, m, place)) for w, m, place in hooked]
        self.replaced: list[nn.Module] = []
        for module in modules.modules() if on_cpu else ():
            if type(module) is nn.Embedding:
                self._replace(module, partial(_look_up, module))
            elif type(module) is nn.LayerNorm and module.elementwise_affine:
                self._replace(module, partial(_normalise, module))
        for module in modules.modules():
            if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and module.affine:
                self._replace(module, partial(_standardise, module))

    def _replace(self, module: nn.Module, forward: Callable[..., Tensor]) -> None:
        module.forward = forward
        self.replaced.append(module)

    def exact(self) -> dict[int, Tensor]:
        """By identity, the frozen parameters in fp32: as they were, or, of a teacher's twin, which moves without learning, as they are."""
        found = {}
        for parameter, old in self.frozen:
            still = torch.equal(parameter.data, old.to(parameter.device, parameter.dtype))
            found[id(parameter)] = old.to(parameter.device) if still else parameter.data.float()
        return found

    def undo(self) -> None:
        """Gradients stay where they come from, and modules are the library's again; the weights are the caller's to set."""
        for handle in self.hooks:
            handle.remove()
        exact = self.exact()
        for parameter, _ in self.frozen:
            parameter.data = exact[id(parameter)]
        for module in self.replaced:
            del module.forward


def _look_up(table: nn.Embedding, ids: Tensor) -> Tensor:
    return lookup(table.weight, ids, table.padding_idx)


def _normalise(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    if x.dtype != norm.weight.dtype:
        return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return _Normalise.apply(x, norm.weight, norm.bias, norm.eps)


def _standardise(norm: Any, x: Tensor) -> Tensor:
    """BatchNorm whose statistics, gain and bias are fp32 beside bf16 activations: the kernels want all of them alike."""
    momentum, held = norm.momentum or 0.0, (norm.running_mean, norm.running_var)
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        momentum = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
    of_batch = norm.training or norm.running_mean is None
    return F.batch_norm(x, *held, norm.weight.float(), norm.bias.float(), of_batch, momentum, norm.eps)


def _add(master: Tensor, place: Tensor | None, weight: Tensor) -> None:
    if master.grad is None:
        master.grad = weight.grad.float() if place is None else place.copy_(weight.grad)  # type: ignore[union-attr,arg-type]
    else:
        master.grad.add_(weight.grad)  # type: ignore[arg-type]
    weight.grad = None

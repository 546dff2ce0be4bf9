"""Losses as pure functions of tensors, and a solver for small convex ones."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 1 << 25  # logits held at once by `linear_cross_entropy`
TINY = torch.finfo(torch.float32).tiny


class _LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of `hidden @ weight.T + bias` without keeping the logits: each chunk of rows leaves its gradients behind.

    In bf16 the softmax is computed in fp32 inside the kernel and stored in bf16; the loss is summed in fp32.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor]:
        n = max(len(hidden), 1)
        rows = max(1, CHUNK // weight.shape[0])
        needs_weight = weight.requires_grad
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32 if n > rows else weight.dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and bias.requires_grad else None
        loss = torch.zeros((), device=hidden.device)
        correct = torch.zeros((), device=hidden.device)
        for start in range(0, len(hidden), rows):
            h, t = hidden[start : start + rows], target[start : start + rows]
            logits = F.linear(h, weight, bias)
            at = torch.arange(len(t), device=t.device)
            correct += (logits[at, t] == logits.amax(-1)).sum()
            p = torch.softmax(logits, -1)
            chosen = p[at, t]
            loss -= chosen.float().clamp(min=TINY).log().sum()
            p[at, t] = chosen - 1
            grad_hidden[start : start + rows] = p @ weight
            if grad_weight is not None:
                if n > rows:
                    grad_weight += p.t() @ h
                else:
                    grad_weight = p.t() @ h
            if grad_bias is not None:
                grad_bias += (torch.ones_like(p[:, :1]).t() @ p)[0]  # a product: `sum` would copy all of p to fp32
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.n, ctx.dtype = n, weight.dtype
        accuracy = correct / n
        ctx.mark_non_differentiable(accuracy)
        return loss / n, accuracy

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        scale = grad / ctx.n
        return (
            grad_hidden * scale.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * scale.to(grad_weight.dtype)).to(ctx.dtype),
            None if grad_bias is None else (grad_bias * scale).to(ctx.dtype),
            None,
        )


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor]:
    """(mean cross-entropy, accuracy) of the vocabulary logits of hidden [N, D] against target [N], in constant memory.

    Equals `F.cross_entropy(F.linear(hidden, weight, bias), target)`; the accuracy carries no gradient.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, bias, target)
    rows = max(1, CHUNK // weight.shape[0])
    loss = correct = torch.zeros((), device=hidden.device)
    for start in range(0, len(hidden), rows):
        logits = F.linear(hidden[start : start + rows], weight, bias).float()
        loss = loss + F.cross_entropy(logits, target[start : start + rows], reduction="sum")
        correct = correct + (logits.argmax(-1) == target[start : start + rows]).sum()
    n = max(len(hidden), 1)
    return loss / n, correct / n


def info_nce(queries: Tensor, keys: Tensor, temperature: float, first: int = 0) -> Tensor:
    """InfoNCE (van den Oord 2018) of queries [B, D] against keys [K, D], both of unit length; query i belongs to key `first + i`."""
    target = torch.arange(len(queries), device=queries.device) + first
    return F.cross_entropy(queries.float() @ keys.float().t() / temperature, target)


def ordinal_targets(target: Tensor, classes: int) -> Tensor:
    """Soft labels that fall with the distance of ranks (SORD, Diaz and Marathe 2019): [B] -> [B, classes]."""
    ranks = torch.arange(classes, device=target.device)
    return torch.softmax(-(target[:, None] - ranks[None, :]).abs().float(), -1)


def settle(parameters: Sequence[Tensor], loss: Callable[[], Tensor], decay: float, most: int = 200) -> None:
    """Minimise `loss() + decay * |matrices|^2` over a few parameters in place (L-BFGS, all data at once: a head on frozen features)."""
    parameters = list(parameters)
    engine = torch.optim.LBFGS(parameters, max_iter=most, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        engine.zero_grad()
        value = loss() + decay * sum(p.square().sum() for p in parameters if p.ndim > 1)
        value.backward()
        return value

    engine.step(closure)
    engine.zero_grad()

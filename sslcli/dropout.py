"""Dropout on a CPU: the library draws its random numbers one by one; these come in bulk, 15 bits each, and are compared as integers."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 1 << 15
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of a value -> the integer of its width


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        dropped = min(round(rate * LEVELS), LEVELS - 1)
        seed = int(torch.randint(1 << 62, ()))  # of the library's generator: what seeds a step seeds this too
        bits = np.random.SFC64(seed).random_raw(-(-x.numel() // 4)).view(np.int16)[: x.numel()]
        drawn = torch.from_numpy(bits).view(x.shape).bitwise_right_shift_(1)  # from -LEVELS / 2: differences of two fit in 16 bits
        kept = drawn.neg_().add_(dropped - LEVELS // 2 - 1).bitwise_right_shift_(15)  # all ones where it is kept, else all noughts
        whole = torch.tensor(LEVELS / (LEVELS - dropped), dtype=x.dtype).view(WORDS[x.itemsize])
        scale = kept.to(whole.dtype).bitwise_and_(whole).view(x.dtype)
        ctx.save_for_backward(scale)
        return x * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.saved_tensors[0], None


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Each value is zero with probability `rate` (to 1/32768), else divided by what is left of 1."""
    if not training or rate == 0.0:
        return x
    quick = x.device.type == "cpu" and rate < 1.0 and not torch.compiler.is_compiling()
    return _Drop.apply(x, rate) if quick else F.dropout(x, rate, training)


class Dropout(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)


def quicken(modules: nn.Module) -> nn.Module:
    """The same modules; all dropout inside draws in bulk from now on."""
    for module in modules.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout
    return modules

"""Noise on one tensor of a batch, example by example: its unit, its direction, its ball."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


class Perturbed:
    """`x`: [B, T, D], [B, C, s, s], or a batch padded as `mask` [B, T] as one row [1, N, D], its real tokens first. `pixels`: mean and
    deviation by which values between 0 and 1 were normalised; noise is then one of those values, and never leads out of their range.

    `value` is the noise, in fp32; its gradient is what the last pass left.
    """

    def __init__(self, x: Tensor, mask: Tensor | None, pixels: tuple[Sequence[float], Sequence[float]] | None = None):
        self.owner: Tensor | None = None  # of each real token of a packed batch, its example
        self.real: Tensor | None = None  # [B, T, 1]: tokens that are no padding
        self.examples, values = len(x), x[0].numel()
        count = torch.full((len(x),), float(values), device=x.device)
        if mask is not None and x.ndim == 3:
            if x.shape[:2] == mask.shape:
                self.real = mask[..., None]
                count = mask.sum(1) * float(x.shape[-1])
            elif len(x) == 1:
                self.owner, self.examples = mask.nonzero()[:, 0], len(mask)
                count = mask.sum(1) * float(x.shape[-1])
        self.root = count.clamp(min=1).sqrt()  # [B], the square root of how many values an example has
        self.value = torch.zeros_like(x, dtype=torch.float32).requires_grad_()
        self.shown = self.value.detach()  # what the network saw of it
        self.scale: Tensor | None = None
        self.moved = False  # at zero, it is added for its gradient alone
        self.range: tuple[Tensor, Tensor] | None = None
        if pixels is None:
            self.unit = (self._length(x.float()) / self.root).clamp(min=1e-12)
        else:
            mean, std = (torch.tensor(v, device=x.device).view(-1, 1, 1) for v in pixels)
            self.unit, self.scale, shown = torch.ones_like(self.root), 1 / std, x.float() * std + mean
            self.range = (-shown).clamp(max=0), (1 - shown).clamp(min=0)  # what was outside may stay there

    def __call__(self, x: Tensor) -> Tensor:
        noise = self.value if self.scale is None else self.value * self.scale
        changed = x + noise.to(x.dtype)
        if self.moved:
            with torch.no_grad():
                seen = changed.float() - x.float()
                self.shown = seen if self.scale is None else seen / self.scale
        return changed

    def size(self, noise: Tensor, norm: str) -> Tensor:
        """Of each example, in its unit: [B]."""
        return (self._length(noise) / self.root if norm == "l2" else self._largest(noise)) / self.unit

    @torch.no_grad()
    def follow(self, size: float, norm: str, steepest: bool) -> None:
        gradient, self.value.grad, self.moved = self.value.grad, None, True
        if gradient is None:
            return
        if self.real is not None:
            gradient = gradient * self.real
        if norm == "l2":
            step = gradient * self._each(self.unit * self.root * size / self._length(gradient).clamp(min=1e-30))
        elif steepest:
            step = gradient.sign() * self._each(self.unit * size)
        else:
            step = gradient * self._each(self.unit * size / self._largest(gradient).clamp(min=1e-30))
        self.value.add_(step)

    @torch.no_grad()
    def within(self, radius: float, norm: str) -> None:
        most = self.unit * radius
        if norm == "l2":
            self.value.mul_(self._each((most * self.root / self._length(self.value).clamp(min=1e-30)).clamp(max=1.0)))
        else:
            self.value.clamp_(-self._each(most), self._each(most))
        if self.range is not None:
            self.value.clamp_(*self.range)

    def _length(self, x: Tensor) -> Tensor:
        """The l2 norm of each example, [B]."""
        if self.owner is not None:
            squares = torch.linalg.vector_norm(x[0, : len(self.owner)], dim=-1).square()
            return torch.zeros(self.examples, device=x.device).index_add_(0, self.owner, squares).sqrt()
        tokens = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        if self.real is not None:
            tokens = tokens * self.real
        return torch.linalg.vector_norm(tokens.flatten(1), dim=1)

    def _largest(self, x: Tensor) -> Tensor:
        if self.owner is not None:
            largest = x[0, : len(self.owner)].abs().amax(-1)
            return torch.zeros(self.examples, device=x.device).scatter_reduce_(0, self.owner, largest, "amax")
        return (x if self.real is None else x * self.real).abs().flatten(1).amax(1)

    def _each(self, values: Tensor) -> Tensor:
        """[B] -> what multiplies every value of an example."""
        if self.owner is not None:
            return F.pad(values[self.owner], (0, self.value.shape[1] - len(self.owner)))[None, :, None]
        return values.view(-1, *[1] * (self.value.ndim - 1))

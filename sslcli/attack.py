"""The worst input near an input, looked for by projected gradient descent (Madry et al. 2018): pictures, and embeddings of words."""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslcli.adversarial.pgd import PGD
from sslcli.core import Backbone, Batch, Output, Task
from sslcli.noise import Inside

PIXELS = (2 / 255, 8 / 255)  # radii, where the user names none: the largest change of a pixel between 0 and 1,
EMBEDDED = (0.01, 0.03, 0.1)  # and of a text's embeddings, a share of their length
STRIDE = 2.5  # what the steps add up to, in radii: so that they can turn
TOKENS = 4096  # padded tokens of one pass that keeps what a gradient needs


class Attack:
    """Within which radii (null: a few that suit texts, or pictures), in how many steps, and on how many examples (null: on all)."""

    def __init__(
        self,
        *,
        radii: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)] | None,
        steps: Annotated[int, Field(ge=1, le=100)],
        rows: Annotated[int, Field(ge=1)] | None,
    ):
        self.radii, self.steps, self.rows = radii, steps, rows

    def chosen(self, count: int) -> np.ndarray:
        """Numbers of the examples that are disturbed, in ascending order: the same ones in every evaluation of the same data."""
        some = np.random.default_rng(0).permutation(count)[: self.rows]
        return np.sort(some)


class OnEmbeddings:
    """Every row of a batch has noise of its own on what the embedding of words gives (Miyato et al. 2017), at most `radius` times as long
    as its embeddings, driven from zero to where its loss is high. No text may be written so: it tells how near another answer lies."""

    def __init__(self, task: Task, model: Backbone, radius: float, steps: int):
        self.task: Any = task
        self.model, self.radius, self.noise = model, radius, Inside(model, task, "l2", None, False)
        self.pgd = PGD(on="embedding", norm="l2", radius=radius, steps=steps, step_size=STRIDE * radius / steps)

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [B, C] of the pass of each row's highest loss, the clean pass among them, and the size [B] that its noise had there.
        The network's own gradients are not touched."""
        rows = max(1, TOKENS // batch["ids"].shape[1])
        parts = [{k: v[i : i + rows] if v.ndim else v for k, v in batch.items()} for i in range(0, len(batch["ids"]), rows)]
        found = [self._worst(part) for part in parts]
        return torch.cat([said for said, _ in found]), torch.cat([size for _, size in found])

    def _worst(self, batch: Batch) -> tuple[Tensor, Tensor]:
        passes: list[tuple[Tensor, Tensor, Tensor]] = []

        def forward() -> Output:
            said = self.task.logits(self.model, batch)
            each = losses(said, batch["label"])
            sizes = self.noise.sizes()
            assert sizes is not None, "a pass over texts goes through their embedding"
            passes.append((each.detach(), said.detach(), sizes))
            return Output(each.sum())

        with torch.enable_grad(), self.noise.around(forward) as again:
            for _ in self.pgd(again, self.noise):
                pass
        each, said, sizes = (torch.stack(values) for values in zip(*passes, strict=True))
        if float(sizes.max()) > self.radius * 1.01 + 1e-6:  # rounding aside
            raise AssertionError(f"PGD left its radius of {self.radius:.4f}: {float(sizes.max()):.4f}")
        worst, row = each.argmax(0), torch.arange(len(batch["ids"]), device=each.device)
        return said[worst, row], sizes[worst, row]

    def remove(self) -> None:
        self.noise.remove()


def pgd(logits: Callable[[Tensor], Tensor], clean: Tensor, label: Tensor, radius: float, steps: int, keys: np.ndarray) -> Tensor:
    """Pictures [B, C, S, S] between 0 and 1, each pixel moved by at most `radius` to where the loss is high: signed gradient steps from
    a random start. label: [B], or [B, C] of 0 and 1."""
    start = [np.random.Generator(np.random.Philox(key=int(k))).uniform(-1, 1, clean[0].shape).astype(np.float32) for k in keys]
    pictures = (clean + radius * torch.from_numpy(np.stack(start)).to(clean.device)).clamp(0, 1)
    for _ in range(steps):
        with torch.enable_grad():
            pictures = pictures.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(losses(logits(pictures), label).sum(), pictures)
        moved = pictures.detach() + STRIDE * radius / steps * gradient.sign()
        pictures = torch.minimum(torch.maximum(moved, clean - radius), clean + radius).clamp(0, 1)
    return pictures.detach()


def losses(logits: Tensor, label: Tensor) -> Tensor:
    """[B], of logits [B, C] and labels [B], or [B, C] of 0 and 1."""
    if label.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, label.float(), reduction="none").sum(1)
    return F.cross_entropy(logits, label, reduction="none")

"""A label is the mean of its texts' vectors, and a text belongs to the nearest (Snell et al. 2017). Nothing is trained."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sslcli.classifiers.classifier import Setting, vectors
from sslcli.classifiers.linear import Linear
from sslcli.core import Backbone
from sslcli.losses import settle

COLD = 0.1  # where the temperature is looked for, as a share of the mean distance; few texts move it by little


class Prototype(Linear):
    """-|x - c|^2 / 2t is linear in x but for |x|^2, which is the same for all labels: the head is a linear layer."""

    kind, pooled, mixable = "prototype", True, False

    def __init__(self, model: Any, tokenizer: Any, setting: Setting):
        super().__init__(model, tokenizer, setting)
        self.only("single", "ordinal")
        model.requires_grad_(False)
        self.head.requires_grad_(False)

    def begin(self, model: Backbone, stream: Any) -> None:
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            known, label = vectors(model, stream)
        x = F.layer_norm(known, known.shape[-1:], eps=self.head.eps)  # type: ignore[arg-type]
        means, left_out = prototypes(x, label, len(self.setting.labels))
        heat = temperature(left_out, label)
        out: Any = self.head.out
        with torch.no_grad():
            out.weight.copy_(means / heat)
            out.bias.copy_(-means.square().sum(-1) / (2 * heat))


@torch.no_grad()
def prototypes(x: Tensor, label: Tensor, labels: int) -> tuple[Tensor, Tensor]:
    """(means [C, D], -|x - c|^2 / 2 [N, C]): each of x [N, D] is left out of its own mean. -inf where that leaves no text."""
    member = F.one_hot(label, labels).to(x.dtype)
    count = member.sum(0)
    means = member.t() @ x / count.clamp(min=1)[:, None]
    apart = -torch.cdist(x, means).square() / 2
    others = (count[label] - 1).clamp(min=1)
    own = apart.gather(1, label[:, None])[:, 0] * (count[label] / others).square()  # x - (n c - x) / (n - 1) = (x - c) n / (n - 1)
    own = own.masked_fill(count[label] < 2, -torch.inf)
    return means, apart.scatter(1, label[:, None], own[:, None]).masked_fill(count == 0, -torch.inf)


def temperature(scores: Tensor, label: Tensor) -> float:
    """That of the least cross-entropy of scores [N, C], its logarithm drawn towards that of COLD as one text would."""
    usable = scores.gather(1, label[:, None])[:, 0].isfinite()
    some, cold = scores[usable].double().clamp(min=-1e12), COLD * float(-scores[scores.isfinite()].mean())
    if not usable.any():
        return cold
    log = some.new_zeros((), requires_grad=True)
    with torch.enable_grad():
        settle([log], lambda: F.cross_entropy(some / (cold * log.exp()), label[usable]) + log.square() / (2 * len(some)), 0.0)
    return cold * float(log.detach().exp())

"""How much of the labels a linear layer reads from frozen features."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sslcli.frozen import linear

RIDGES = torch.logspace(-4, 2, 13, dtype=torch.float64)  # times the mean eigenvalue of the features' covariance


def ridge(vectors: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor, float]:
    """(weight [C, D], bias [C], accuracy leaving one out): least squares on one-hot labels [N], in closed form.

    The ridge is the one that is right most often when each row is left out in turn, which the hat matrix tells without refitting.
    """
    x, y = vectors.double(), F.one_hot(label, classes).double()
    center, target = x.mean(0), y.mean(0)
    x, y = x - center, y - target
    values, axes = torch.linalg.eigh(x.t() @ x / len(x))
    values = values.clamp(min=values[-1] * 1e-12)
    rotated = x @ axes  # [N, D], uncorrelated
    moments = rotated.t() @ y / len(x)
    best = (-1.0, values)
    for share in RIDGES.to(x.device):
        shrunk = 1 / (values + share * values.mean())
        leverage = rotated.square() @ shrunk / len(x) + 1 / len(x)  # 1 / N: the mean is fitted too
        residual = (y - rotated @ (shrunk[:, None] * moments)) / (1 - leverage.clamp(max=1 - 1e-9))[:, None]
        right = float(((y - residual + target).argmax(-1) == label).double().mean())
        best = max(best, (right, shrunk), key=lambda found: found[0])
    weight = (axes @ (best[1][:, None] * moments)).t()
    return weight.to(vectors.dtype), (target - weight @ center).to(vectors.dtype), best[0]


def logistic(vectors: Tensor, label: Tensor, classes: int, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """(weight [C, D], bias [C]) of multinomial logistic regression on standardised features, by L-BFGS; `strength` as C in scikit-learn."""
    return linear(vectors, classes, lambda logits: F.cross_entropy(logits, label), strength)


def accuracy(weight: Tensor, bias: Tensor, vectors: Tensor, gold: Tensor) -> float:
    return float((F.linear(vectors, weight, bias).argmax(-1) == gold).float().mean())

"""How much of the labels a linear layer reads from frozen features."""

from torch import Tensor
from torch.nn import functional as F

from sslcli.frozen import left_out, linear, principal


def ridge(vectors: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor, float]:
    """(weight [C, D], bias [C], accuracy leaving one out): least squares on one-hot labels [N], in closed form, with the ridge that is
    right most often when each row is left out in turn."""
    target = F.one_hot(label, classes)
    found = [(float((said.argmax(-1) == label).double().mean()), layer) for _, layer, said in left_out(vectors, target)]
    right, layer = max(found, key=lambda f: f[0])
    center, _, axes = principal(vectors)
    weight = (axes @ layer).t()
    return weight.to(vectors.dtype), (target.double().mean(0) - weight @ center).to(vectors.dtype), right


def logistic(vectors: Tensor, label: Tensor, classes: int, strength: float = 0.3) -> tuple[Tensor, Tensor]:
    """(weight [C, D], bias [C]) of multinomial logistic regression on whitened features: see frozen.linear."""
    return linear(vectors, F.one_hot(label, classes).float(), F.cross_entropy, strength=strength)


def accuracy(weight: Tensor, bias: Tensor, vectors: Tensor, gold: Tensor) -> float:
    return float((F.linear(vectors, weight, bias).argmax(-1) == gold).float().mean())

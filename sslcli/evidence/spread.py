"""How a network uses the space of its vectors, told without labels: what collapses shows here first."""

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-7


def rankme(vectors: Tensor) -> float:
    """RankMe (Garrido et al. 2023): exp of the entropy of the singular values of [N, D], from 1 (collapse) to min(N, D)."""
    values = torch.linalg.svdvals(vectors.float())
    shares = values / values.sum() + EPSILON
    return float(torch.exp(-(shares * shares.log()).sum()))


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of unit vectors of two views of a picture (Wang and Isola 2020): small is good."""
    return float((F.normalize(first.float(), dim=-1) - F.normalize(second.float(), dim=-1)).square().sum(-1).mean())


def uniformity(vectors: Tensor) -> float:
    """log of the mean Gaussian potential of pairs of unit vectors, t=2 (Wang and Isola 2020): the more negative the more uniform."""
    return float(torch.pdist(F.normalize(vectors.float(), dim=-1)).square().mul(-2).exp().mean().log())

"""Losses of views against naive loops and the formulas as published."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sslcli import losses


def units(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("first", [0, 3])
def test_nt_xent_is_a_loop_over_pairs(first: int) -> None:
    """SimCLR, equation 1: the sum in the denominator leaves out the vector itself and nothing else."""
    everyone = units(2, 8, 6)
    views = everyone[:, first : first + 4]
    flat, expected, right = everyone.flatten(0, 1), 0.0, 0
    for view in range(2):
        for i in range(4):
            own, partner = view * 8 + first + i, (1 - view) * 8 + first + i
            scores = {k: math.exp(float(flat[own] @ flat[k]) / 0.3) for k in range(16) if k != own}
            expected -= math.log(scores[partner] / sum(scores.values())) / 8
            right += max(scores, key=scores.__getitem__) == partner
    loss, accuracy = losses.nt_xent(views, everyone, 0.3, first)
    assert float(loss) == pytest.approx(expected, rel=1e-5) and float(accuracy) == right / 8


def test_negative_cosine_is_that_and_stops_the_gradient() -> None:
    predicted, target = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    cosines = [(p @ t / (p.norm() * t.norm())).item() for p, t in zip(predicted, target, strict=True)]
    loss = losses.negative_cosine(predicted, target)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-sum(cosines) / 5, rel=1e-5) and predicted.grad is not None and target.grad is None


def test_vicreg_terms_are_loops() -> None:
    first, second = torch.randn(6, 4), torch.randn(6, 4) * 0.3
    invariance = sum((float(first[i, j]) - float(second[i, j])) ** 2 for i in range(6) for j in range(4)) / 24
    variance = covariance = 0.0
    for z in (first, second):
        mean = [float(z[:, j].mean()) for j in range(4)]
        shared = [[sum((float(z[n, i]) - mean[i]) * (float(z[n, j]) - mean[j]) for n in range(6)) / 5 for j in range(4)] for i in range(4)]
        variance += sum(max(0.0, 1 - math.sqrt(shared[j][j] + 1e-4)) for j in range(4)) / 4 / 2
        covariance += sum(shared[i][j] ** 2 for i in range(4) for j in range(4) if i != j) / 4
    assert [float(x) for x in losses.vicreg_terms(first, second)] == pytest.approx([invariance, variance, covariance], rel=1e-5)


def test_barlow_twins_is_a_loop_over_the_correlation() -> None:
    first, second = torch.randn(7, 5), torch.randn(7, 5)
    a, b = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (first, second))
    invariance = redundancy = 0.0
    for i in range(5):
        for j in range(5):
            c = sum(float(a[n, i] * b[n, j]) for n in range(7)) / 7
            invariance, redundancy = (invariance + (1 - c) ** 2, redundancy) if i == j else (invariance, redundancy + c**2)
    assert [float(x) for x in losses.barlow_twins(first, second)] == pytest.approx([invariance, redundancy], rel=1e-5)


def test_sinkhorn_is_the_published_loop() -> None:
    """The pseudocode in the appendix of SwAV, and what it is for: every row whole, every column its share."""
    scores = units(12, 6) @ units(4, 6, seed=1).t()
    q = torch.exp(scores / 0.05).t()
    q /= q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / 4
        q = q / q.sum(0, keepdim=True) / 12
    assert torch.allclose(losses.sinkhorn(scores, 0.05, 3), (q / q.sum(0, keepdim=True)).t(), atol=1e-5)
    codes = losses.sinkhorn(scores, 0.05, 200)
    assert torch.allclose(codes.sum(1), torch.ones(12), atol=1e-5) and torch.allclose(codes.sum(0), torch.full((4,), 3.0), atol=1e-3)
    far = losses.sinkhorn(scores * 200, 0.05, 3)
    assert torch.isfinite(far).all(), "scores far apart do not divide nought by nought"


def test_dinos_loss_is_the_published_one() -> None:
    """Algorithm 1 of DINO and `DINOLoss` of its code, written out: two teacher views, five student views, centre and temperatures."""
    torch.manual_seed(0)
    student, teacher, centre = torch.randn(5, 3, 8), torch.randn(2, 3, 8), torch.randn(8)
    expected, terms = 0.0, 0
    for i in range(2):
        t = F.softmax((teacher[i] - centre) / 0.04, dim=-1)
        for v in range(5):
            if v != i:
                expected += float(torch.sum(-t * F.log_softmax(student[v] / 0.1, dim=-1), dim=-1).mean())
                terms += 1
    targets = F.softmax((teacher - centre) / 0.04, -1)
    assert float(losses.across_views(list(targets), list(student / 0.1))) == pytest.approx(expected / terms, rel=1e-5)


def test_swavs_loss_is_the_published_one() -> None:
    """Of its code: the mean over assigned views of the mean over the other views."""
    torch.manual_seed(0)
    scores, codes = torch.randn(4, 3, 6), torch.softmax(torch.randn(2, 3, 6), -1)
    expected = 0.0
    for i in range(2):
        subloss = 0.0
        for v in (v for v in range(4) if v != i):
            subloss -= float(torch.mean(torch.sum(codes[i] * F.log_softmax(scores[v] / 0.1, dim=1), dim=1)))
        expected += subloss / 3 / 2
    assert float(losses.across_views(list(codes), list(scores / 0.1))) == pytest.approx(expected, rel=1e-5)


def test_gaussian_divergence_is_torchs() -> None:
    mean, log_variance = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0)).sum((1, 2))
    assert torch.allclose(losses.gaussian_divergence(mean, log_variance), expected, atol=1e-5)


def test_spread_and_entropy_tell_a_collapse() -> None:
    assert float(losses.spread(torch.randn(4000, 32))) == pytest.approx(1, abs=0.02)
    assert float(losses.spread(torch.randn(1, 32).expand(50, 32) * torch.rand(50, 1))) == pytest.approx(0, abs=1e-5)
    assert float(losses.entropy(torch.full((5,), 0.2))) == pytest.approx(math.log(5)) and float(losses.entropy(torch.eye(3)[0])) == 0

"""Pure losses against naive loops and the library's own."""

import math

import pytest
import torch
from torch.nn import functional as F

from sslcli import losses


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [1 << 25, 100])
def test_linear_cross_entropy_is_the_plain_one(monkeypatch, bias, chunk) -> None:
    """Loss, accuracy and every gradient, in one piece and in many."""
    monkeypatch.setattr(losses, "CHUNK", chunk)
    torch.manual_seed(0)
    hidden, weight = torch.randn(17, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    b, target = torch.randn(30, requires_grad=True) if bias else None, torch.randint(30, (17,))
    inputs = [x for x in (hidden, weight, b) if x is not None]
    expected = F.cross_entropy(F.linear(hidden, weight, b), target)
    wanted = torch.autograd.grad(expected * 3, inputs)
    loss, accuracy = losses.linear_cross_entropy(hidden, weight, b, target)
    found = torch.autograd.grad(loss * 3, inputs)
    assert torch.allclose(loss, expected, atol=1e-6)
    assert accuracy == (F.linear(hidden, weight, b).argmax(-1) == target).float().mean()
    for a, w in zip(found, wanted, strict=True):
        assert torch.allclose(a, w, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(losses.linear_cross_entropy(hidden, weight, b, target)[0], expected, atol=1e-6)


def test_linear_cross_entropy_in_bf16_is_near(monkeypatch) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32), torch.randn(500, 32) / 4
    target = torch.randint(500, (64,))
    exact = [x.clone().requires_grad_() for x in (hidden, weight)]
    rough = [x.bfloat16().requires_grad_() for x in (hidden, weight)]
    expected = F.cross_entropy(F.linear(*exact), target)
    loss, _ = losses.linear_cross_entropy(*rough, None, target)
    expected.backward()
    loss.backward()
    assert abs(float(loss) - float(expected)) < 0.01 * float(expected)
    for a, b in zip(exact, rough, strict=True):
        assert F.cosine_similarity(a.grad.flatten(), b.grad.float().flatten(), dim=0) > 0.999


def test_info_nce_is_a_loop_over_pairs() -> None:
    torch.manual_seed(1)
    queries, keys = F.normalize(torch.randn(4, 6), dim=-1), F.normalize(torch.randn(9, 6), dim=-1)
    expected = 0.0
    for i in range(4):
        scores = [math.exp(float(queries[i] @ keys[j]) / 0.1) for j in range(9)]
        expected -= math.log(scores[2 + i] / sum(scores)) / 4
    assert float(losses.info_nce(queries, keys, 0.1, first=2)) == pytest.approx(expected, rel=1e-5)


def test_ordinal_targets_fall_with_distance() -> None:
    soft = losses.ordinal_targets(torch.tensor([1, 3]), 5)
    assert torch.allclose(soft.sum(-1), torch.ones(2))
    assert soft[0].argmax() == 1 and soft[0, 0] == soft[0, 2] and soft[1, 4] > soft[1, 1]


def test_settle_finds_what_scikit_learn_finds() -> None:
    """Multinomial logistic regression: a convex problem has one answer."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    torch.manual_seed(0)
    x, y = torch.randn(120, 10), torch.randint(4, (120,))
    head = torch.nn.Linear(10, 4)
    losses.settle(list(head.parameters()), lambda: F.cross_entropy(head(x), y), 1 / (2 * 0.5 * len(x)))
    reference = LogisticRegression(C=0.5, tol=1e-8, max_iter=5000).fit(x.numpy(), y.numpy())
    assert np.allclose(head.weight.detach().numpy(), reference.coef_, atol=2e-3)

"""Neighbours, probes and spread against the field's own code and formulas; the watch keeps to its share of the time."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from sslcli.errors import BadInput
from sslcli.evidence import neighbours, probe, spread
from sslcli.frozen import RIDGES, linear, only_last, whitening
from tests.splits import Small


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    found = load_digits()
    return torch.tensor(found.data).float(), torch.tensor(found.target)


# neighbours


@pytest.mark.parametrize("k", [1, 5, 20])
def test_votes_of_neighbours_are_scikit_learns(digits, k) -> None:
    x, y = digits
    model = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07), algorithm="brute").fit(x[:1000], y[:1000])
    similarity, rows = neighbours.nearest(x[1000:], x[:1000], k)
    votes = neighbours.votes(similarity, y[:1000][rows], 10, 0.07)
    assert torch.allclose(votes, torch.tensor(model.predict_proba(x[1000:])).float(), atol=2e-4)
    assert neighbours.accuracy(x[:1000], y[:1000], x[1000:], y[1000:], k) == pytest.approx(model.score(x[1000:], y[1000:]), abs=1e-3)


def test_pieces_of_the_queries_change_nothing(digits, monkeypatch) -> None:
    x, _ = digits
    whole = neighbours.nearest(x[:300], x[300:700], 7)
    monkeypatch.setattr(neighbours, "CHUNK", 400 * 11)
    parts = neighbours.nearest(x[:300], x[300:700], 7)
    assert torch.allclose(whole[0], parts[0], atol=1e-6) and (whole[1] == parts[1]).float().mean() > 0.999


def test_leaving_one_out_never_finds_itself(digits) -> None:
    x, y = digits[0][:200], digits[1][:200]
    own = torch.arange(200)
    similarity, rows = neighbours.nearest(x, x, 3, own)
    assert (rows != own[:, None]).all() and (similarity[:, :-1] >= similarity[:, 1:]).all()
    right = 0
    for i in range(200):  # as if it had never been there
        others = torch.cat([own[:i], own[i + 1 :]])
        near, at = neighbours.nearest(x[i : i + 1], x[others], 3)
        right += int(neighbours.votes(near, y[others][at], 10, 0.07).argmax() == y[i])
    assert neighbours.accuracy(x, y, k=3) == pytest.approx(right / 200)
    assert neighbours.nearest(x[:4], x[:4], 9, torch.arange(4))[1].shape == (4, 3), "no more neighbours than there are others"


# probes


def test_the_ridge_probe_is_scikit_learns_and_its_leaving_one_out_is_exact(digits) -> None:
    x, y = digits[0][:150].double(), digits[1][:150]
    weight, bias, left_out = probe.ridge(x, y, 10)
    onehot = F.one_hot(y, 10).double()
    covariance = torch.cov(x.t(), correction=0)
    scale = float(torch.linalg.eigvalsh(covariance).clamp(min=0).mean())
    scores, layers = [], []
    for share in RIDGES:
        model = Ridge(alpha=share * scale * len(x)).fit(x, onehot)
        right = 0
        for i in range(len(x)):
            rest = np.arange(len(x)) != i
            left = Ridge(alpha=share * scale * len(x)).fit(x[rest], onehot[rest])
            right += int(left.predict(x[i : i + 1])[0].argmax() == int(y[i]))
        scores.append(right / len(x))
        layers.append(model)
    assert left_out == pytest.approx(max(scores), abs=1e-9)
    assert any(np.allclose(weight, m.coef_, atol=1e-6) and np.allclose(bias, m.intercept_, atol=1e-6) for m in layers)


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_the_logistic_probe_is_scikit_learns_on_whitened_features(digits, strength) -> None:
    x, y = digits
    center, projection = whitening(x[:800], F.one_hot(y[:800], 10).float(), F.cross_entropy)
    white = (x.double() - center) @ projection
    model = LogisticRegression(C=strength, max_iter=2000, tol=1e-8).fit(white[:800], y[:800])
    weight, bias = probe.logistic(x[:800], y[:800], 10, strength)
    ours = F.linear(x[800:], weight, bias).softmax(-1)
    assert (ours - torch.tensor(model.predict_proba(white[800:])).float()).abs().mean() < 0.005
    assert probe.accuracy(weight, bias, x[800:], y[800:]) == pytest.approx(model.score(white[800:], y[800:]), abs=0.01)


def test_small_variances_are_evened_out_as_far_as_it_helps(digits) -> None:
    """What tells classes apart in directions a hundred times smaller than the rest is found; noise is not blown up."""
    torch.manual_seed(0)
    x, y = digits
    x = (x - x.mean(0)) / x.std()
    loud = torch.cat([x, 100 * torch.randn(len(x), 16)], 1) @ torch.linalg.qr(torch.randn(80, 80))[0] + 50
    for features, least in ((x, 0.91), (loud, 0.88)):
        assert probe.accuracy(*probe.logistic(features[:900], y[:900], 10), features[900:], y[900:]) > least
    few = torch.cat([torch.nonzero(y[:900] == c)[:8, 0] for c in range(10)])
    evened = probe.accuracy(*probe.logistic(loud[few], y[few], 10), loud[900:], y[900:])
    scaler = StandardScaler().fit(loud[few])
    plain = LogisticRegression(max_iter=3000).fit(scaler.transform(loud[few]), y[few]).score(scaler.transform(loud[900:]), y[900:])
    assert evened > 0.7 > plain + 0.3


def test_what_rounding_would_drown_is_not_relied_on(digits) -> None:
    """Labels stand in directions of variance 1e-4 without noise, and in others of variance 1 that are noisy by themselves."""
    torch.manual_seed(0)
    x, y = digits
    x = (x - x.mean(0)) / x.std()
    tiny, loud = 0.01 * x, x + 0.7 * torch.randn_like(x)
    features, noise = torch.cat([tiny, loud], 1), 0.03 * torch.randn(1797, 128)
    target = F.one_hot(y[:900], 10).float()
    blind, aware = (linear(features[:900], target, F.cross_entropy, n) for n in (None, noise[:256]))
    rounded = (features + noise)[900:]
    assert probe.accuracy(*blind, features[900:], y[900:]) > 0.85 > 0.5 > probe.accuracy(*blind, rounded, y[900:])
    assert probe.accuracy(*aware, rounded, y[900:]) > 0.7


def test_a_constant_feature_and_one_of_a_large_offset_do_not_hurt(digits) -> None:
    x, y = digits[0][:300].clone(), digits[1][:300]
    target = F.one_hot(y, 10).float()
    weight, bias = linear(x, target, F.cross_entropy)
    moved = torch.cat([x + 1000, torch.full((300, 1), 7.0)], 1)
    other = linear(moved, target, F.cross_entropy)
    same = (F.linear(x, weight, bias).argmax(-1) == F.linear(moved, *other).argmax(-1)).float().mean()
    assert torch.isfinite(other[0]).all() and same > 0.98


# spread


def test_rankme_is_its_formula() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(100, 12)
    values = np.linalg.svd(vectors.numpy(), compute_uv=False)
    shares = values / values.sum() + 1e-7
    assert spread.rankme(vectors) == pytest.approx(float(np.exp(-(shares * np.log(shares)).sum())), rel=1e-4)
    assert spread.rankme(torch.linalg.qr(torch.randn(64, 16))[0]) == pytest.approx(16, rel=1e-3)
    assert spread.rankme(torch.randn(64, 1) @ torch.randn(1, 16)) == pytest.approx(1, rel=1e-3)


def test_alignment_and_uniformity_are_their_formulas() -> None:
    torch.manual_seed(0)
    x, y = F.normalize(torch.randn(30, 5), dim=-1), F.normalize(torch.randn(30, 5), dim=-1)
    assert spread.alignment(x * 3, y) == pytest.approx(float((x - y).norm(dim=1).pow(2).mean()), rel=1e-5)
    pairs = [float(torch.exp(-2 * (x[i] - x[j]).pow(2).sum())) for i, j in itertools.combinations(range(30), 2)]
    assert spread.uniformity(x * 3) == pytest.approx(float(np.log(np.mean(pairs))), rel=1e-4)


# freezing


def test_only_the_last_blocks_learn() -> None:
    model = Small()
    still = only_last(model, 1)
    learning = {
        n.split(".")[0] + (n.split(".")[1] if n.startswith("blocks") else "") for n, p in model.named_parameters() if p.requires_grad
    }
    assert learning == {"blocks2", "norm"}
    model.train()
    for module in still:
        module.eval()
    assert (
        not model.blocks[0][1].training and not model.blocks[0][3].training and model.blocks[2][1].training and model.blocks[2][3].training
    )
    assert only_last(model, 0)[0] is model and not any(p.requires_grad for p in model.parameters())
    only_last(model, 3)
    assert not model.embedding.weight.requires_grad and model.blocks[0][0].weight.requires_grad
    with pytest.raises(BadInput, match="3 blocks"):
        only_last(model, 4)

"""Neighbours, probes and spread against the field's own code and formulas; the watch keeps to its share of the time."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from sslcli.data.pixels import Pixels
from sslcli.errors import BadInput
from sslcli.evidence import neighbours, probe, spread
from sslcli.evidence.baseline import baseline
from sslcli.evidence.watch import SHARE, Watch, labels_of, transfer, vectors_of
from sslcli.frozen import RIDGES, labelled, linear, only_last, rounding, whitening
from sslcli.losses import spread as deviation
from tests.splits import Small, split

NAMES = [str(i) for i in range(10)]


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    found = load_digits()
    return torch.tensor(found.data).float(), torch.tensor(found.target)


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, list[str]]:
    found = load_digits()
    return (found.images / 16 * 255).astype(np.uint8)[:, None], [str(t) for t in found.target]


@pytest.fixture
def processor() -> Pixels:
    return Pixels(8, 1, [0.3], [0.37], False)


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


def test_rounding_is_measured_and_leaves_the_weights_alone(tmp_path: Path, pictures, processor) -> None:
    from functools import partial

    from sslcli.core import Places
    from sslcli.data.stream import Stream

    store = split(tmp_path / "a", pictures[0][:600], pictures[1][:600], NAMES)

    def read(rows: np.ndarray, keys: np.ndarray) -> dict[str, torch.Tensor]:
        return {**processor.read(store, rows, keys), "label": torch.zeros(len(rows))}

    stream, model = Stream(Places(600), partial(read), 64, 0), Small().eval()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert rounding(model, processor, stream) is None
    with torch.autocast("cpu", torch.bfloat16):
        found = rounding(model, processor, stream)
        exact, _ = labelled(model, processor, stream, 10_000)
    assert found is not None and found.shape == (200, 32) and 1e-4 < float(found.abs().mean()) < 0.05
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert torch.equal(exact, vectors_of(model, processor, store)), "vectors are those of the weights, whatever autocast says"


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


# watch


class Clock:
    """Time that passes when it is told to, and a little with every look at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def test_the_watch_scores_with_labels_and_without(tmp_path: Path, pictures, processor) -> None:
    images, gold = pictures
    model = Small().train()
    for name, store in (
        ("probe", split(tmp_path / "a", images, gold, NAMES)),
        (None, split(tmp_path / "b", images, ["x"] * len(gold), ["x"])),
    ):
        clock = Clock()
        watch = Watch(processor, store, clock=clock)
        assert watch.metric == name
        clock.now += 1000
        scores = watch(model)
        wanted = {"knn", "probe"} if name else {"alignment"}
        assert set(scores) == {"rankme", "feature_std", "uniformity", *wanted} and model.training
        ((_, rows),) = watch.sample
        found = vectors_of(model.eval(), processor, store, rows)
        assert scores["rankme"] == pytest.approx(spread.rankme(found), rel=1e-3)
        assert scores["feature_std"] == pytest.approx(float(deviation(found)), rel=1e-3)
        model.train()
        if name:
            assert scores["knn"] > 0.5 and scores["probe"] > 0.8, "even an untrained network says something of digits"
            assert len(rows) == len(set(rows.tolist())) >= 256
        else:
            assert scores["alignment"] == pytest.approx(0, abs=1e-6), "without an augmentation both views are the picture"


def test_the_watch_takes_held_out_pictures_first(tmp_path: Path, pictures, processor) -> None:
    images, gold = pictures
    valid, train = split(tmp_path / "a", images[:90], gold[:90], NAMES), split(tmp_path / "b", images[90:], gold[90:], NAMES)
    clock = Clock()
    watch = Watch(processor, valid, train, clock=clock)
    clock.now += 1e-3
    watch._afford(Small(), 0.0)
    assert [len(rows) for _, rows in watch.sample] == [90, 256 - 90], "all that are held out, then as many others as are allowed"
    clock.now += 1000
    assert watch(Small())["probe"] > 0.5
    unlabelled = Watch(processor, split(tmp_path / "c", images[:90], ["?"] * 90, NAMES), train)
    assert unlabelled.metric == "probe" and len(unlabelled.pool) == 1, "pictures without labels have no part in a probe"


def test_the_watch_keeps_to_its_share(tmp_path: Path, pictures, processor) -> None:
    images, gold = pictures
    clock = Clock()
    watch = Watch(processor, split(tmp_path / "a", images, gold, NAMES), clock=clock)
    look = watch._look

    def slow(model: Small) -> dict[str, float]:
        clock.now += 2.0
        return look(model)

    watch._look = slow  # type: ignore[method-assign]
    looks = 0
    for _ in range(100):
        clock.now += 10  # of training
        looks += bool(watch(Small()))
        trained = clock.now - watch.spent
        assert watch.spent <= max(SHARE * trained, 2.1), "after the first look, whose cost was not known, never more than its share"
    assert 5 <= looks <= 16 and watch.spent <= SHARE * (clock.now - watch.spent) + 0.1


def test_the_last_network_is_looked_at_whatever_it_costs(tmp_path: Path, pictures, processor) -> None:
    """Else the network of the one early look that a quick run can afford would count as its best, and be delivered."""
    images, gold = pictures
    clock = Clock()
    watch = Watch(processor, split(tmp_path / "a", images, gold, NAMES), clock=clock)
    look = watch._look

    def slow(model: Small) -> dict[str, float]:
        clock.now += 2.0
        return look(model)

    watch._look = slow  # type: ignore[method-assign]
    clock.now += 1
    assert watch(Small()), "the first costs nothing that is known"
    clock.now += 1
    assert not watch(Small()) and watch(Small(), last=True)


def test_the_whole_protocol_at_the_end(tmp_path: Path, pictures, processor) -> None:
    images, gold = pictures
    train, test = split(tmp_path / "a", images[:1000], gold[:1000], NAMES), split(tmp_path / "b", images[1000:], gold[1000:], NAMES)
    model = Small().eval()
    scores = transfer(model, processor, train, test)
    bank, asked = vectors_of(model, processor, train), vectors_of(model, processor, test)
    known, true = (torch.from_numpy(labels_of(s)[0]) for s in (train, test))
    assert scores["knn"] == pytest.approx(neighbours.accuracy(bank, known, asked, true), abs=1e-6)
    some = [g if i % 2 else "?" for i, g in enumerate(gold[:1000])]
    half = transfer(model, processor, split(tmp_path / "d", images[:1000], some, NAMES), test)
    odd = torch.arange(1, 1000, 2)
    assert half["knn"] == pytest.approx(neighbours.accuracy(bank[odd], known[odd], asked, true), abs=1e-6), "half of the labels missing"
    low, high = scores["probe_interval"]
    assert low < scores["probe"] < high
    assert transfer(model, processor, split(tmp_path / "c", images[:9], ["x"] * 9, ["x"]), test) == {}


# baselines


def test_raw_pixels_are_a_baseline(tmp_path: Path, pictures, processor) -> None:
    from sslcli import metrics

    images, gold = pictures
    train, test = split(tmp_path / "a", images[:1000], gold[:1000], NAMES), split(tmp_path / "b", images[1000:], gold[1000:], NAMES)

    class Classifies:
        labels, processor = NAMES, None

        def score(self, guess: list, gold: list) -> dict:
            return metrics.classification([NAMES.index(x) for x in gold], [NAMES.index(x) for x in guess], NAMES)

    task = Classifies()
    task.processor = processor
    found = baseline(task, train, test)  # type: ignore[arg-type]
    assert found is not None and found["method"] == "raw pixels, 5-NN by correlation" and "report" not in found
    x = images.reshape(len(images), -1).astype(float)
    model = KNeighborsClassifier(5, metric="correlation", algorithm="brute").fit(x[:1000], gold[:1000])
    assert found["accuracy"] == pytest.approx(model.score(x[1000:], gold[1000:]), abs=0.005) and found["majority_accuracy"] < 0.2

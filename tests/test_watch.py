"""Beside pretraining on pictures: what the watch looks at, when, and what it costs; baselines."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from sslcli.data.pixels import Pixels
from sslcli.evidence import neighbours, spread
from sslcli.evidence.baseline import baseline
from sslcli.evidence.watch import SHARE, Watch, labels_of, transfer, vectors_of
from sslcli.frozen import labelled, rounding
from sslcli.losses import spread as deviation
from sslcli.resume import Standing
from tests.splits import Small, split

NAMES = [str(i) for i in range(10)]


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, list[str]]:
    found = load_digits()
    return (found.images / 16 * 255).astype(np.uint8)[:, None], [str(t) for t in found.target]


@pytest.fixture
def processor() -> Pixels:
    return Pixels(8, 1, [0.3], [0.37], False)


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
        wanted = {"knn", "probe", "probe_noise"} if name else {"alignment"}
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


def test_of_scores_that_cannot_be_told_apart_the_latest_is_chosen() -> None:
    def chosen(scores: list[float], noise: float, higher: bool = True) -> tuple[int, int]:
        at = Standing()
        for at.done, score in enumerate(scores, 1):
            at.judged(score, higher, noise)
        return at.best["step"], at.best["waited"]

    assert chosen([0.30, 0.34, 0.31, 0.32], 0.05) == (4, 2), "two looks without a new best score"
    assert chosen([0.30, 0.34, 0.31, 0.28], 0.05) == (3, 2), "0.28 is worse than the best, beyond noise"
    assert chosen([0.40, 0.37, 0.34, 0.31], 0.05) == (2, 3), "noise is counted from the best score, not from the chosen one"
    assert chosen([0.30, 0.34, 0.34, 0.33], 0.0) == (2, 2) == chosen([3.0, 2.0, 2.0, 2.5], 0.0, higher=False)
    assert chosen([3.0, 2.0, 2.1, 2.5], 0.2, higher=False) == (3, 2)


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


def slow_watch(tmp_path: Path, pictures: tuple[np.ndarray, list[str]], processor: Pixels) -> tuple[Watch, Clock]:
    """One whose looks take two seconds."""
    images, gold = pictures
    clock = Clock()
    watch = Watch(processor, split(tmp_path / "a", images, gold, NAMES), clock=clock)
    look = watch._look

    def slow(model: Small) -> dict[str, float]:
        clock.now += 2.0
        return look(model)

    watch._look = slow  # type: ignore[method-assign]
    return watch, clock


def test_the_watch_keeps_to_its_share(tmp_path: Path, pictures, processor) -> None:
    watch, clock = slow_watch(tmp_path, pictures, processor)
    looks = 0
    for _ in range(100):
        clock.now += 10  # of training
        looks += bool(watch(Small()))
        trained = clock.now - watch.spent
        assert watch.spent <= max(SHARE * trained, 2.1), "after the first look, whose cost was not known, never more than its share"
    assert 5 <= looks <= 16 and watch.spent <= SHARE * (clock.now - watch.spent) + 0.1


def test_the_last_network_is_looked_at_whatever_it_costs(tmp_path: Path, pictures, processor) -> None:
    """Else the network of the one early look that a quick run can afford would count as its best, and be delivered."""
    watch, clock = slow_watch(tmp_path, pictures, processor)
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

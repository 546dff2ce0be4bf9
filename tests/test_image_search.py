"""Retrieval of pictures: scores by hand, galleries, whitening, metrics learnt and their formulas."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.nn import functional as F

from sslcli import metrics
from sslcli.data.examples import examples_of
from sslcli.data.store import Store
from sslcli.errors import BadInput
from sslcli.evidence.baseline import baseline
from sslcli.evidence.watch import vectors_of
from sslcli.losses import supervised_contrastive
from sslcli.tasks.image_retrieval import learnt_whitening, pca_whitening, proxy_anchor
from tests.picture_tasks import NAMES, begun, digit_splits, judged, retriever, train
from tests.splits import split


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    return digit_splits(tmp_path_factory.mktemp("splits"))


def test_average_precision_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    similarity, relevant = random.random((40, 60)), random.random((40, 60)) < 0.2
    relevant[3] = False
    order = np.argsort(-similarity, 1)
    found = metrics.average_precision(np.take_along_axis(relevant, order, 1))
    wanted = [average_precision_score(r, s) if r.any() else 0.0 for r, s in zip(relevant, similarity, strict=True)]
    assert found == pytest.approx(np.array(wanted))
    scores = metrics.retrieval(np.arange(20), found[:20])
    assert [scores[f"recall@{k}"] for k in (1, 5, 10)] == [0.05, 0.25, 0.5] and scores["map"] == pytest.approx(found[:20].mean())
    low, high = scores["map_interval"]
    assert low < scores["map"] < high


def test_retrieval_scores_are_by_hand(data) -> None:
    model, task = retriever(loss="none")
    begun(model, task, data[0])
    assert not any(p.requires_grad for p in [*model.parameters(), *task.parameters()])
    scores, lines = judged(task, model, data[1])
    with torch.no_grad():
        vectors = F.normalize(task.head(vectors_of(model, task.processor, data[1])), dim=-1).numpy()
    gold = data[1]["label"].values[:, 0]
    first, precisions = [], []
    for i in range(len(gold)):
        others = np.arange(len(gold)) != i
        similarity, relevant = vectors[others] @ vectors[i], gold[others] == gold[i]
        precisions.append(average_precision_score(relevant, similarity))
        first.append(int(relevant[np.argsort(-similarity)].argmax()))
    assert scores["map"] == pytest.approx(np.mean(precisions), abs=1e-4)
    assert [scores[f"recall@{k}"] for k in (1, 5, 10)] == pytest.approx([np.mean(np.array(first) < k) for k in (1, 5, 10)], abs=5e-3)
    assert scores["queries"] == 400 and scores["without_match"] == 0 and scores["recall@1"] > 0.7
    line = lines[7]
    assert line["nearest"][0]["id"] != 7 and line["prediction"] == line["nearest"][0]["gold"] and len(line["nearest"]) == 10
    assert [n["similarity"] for n in line["nearest"]] == sorted((n["similarity"] for n in line["nearest"]), reverse=True)
    cheap = baseline(task, *data)
    assert cheap is not None and 0.5 < cheap["map"] < 1 and cheap["recall@1"] > 0.9


def test_a_gallery_is_searched_and_unknown_labels_count_for_nothing(tmp_path: Path, data) -> None:
    model, task = retriever(loss="none")
    begun(model, task, data[0])
    images = task.processor.take(data[1], np.arange(60)).numpy()
    gold = [json.loads(examples_of(data[1]).text(i))["gold"] for i in range(60)]
    queries = split(tmp_path / "queries", images, [*gold[:55], *["strange"] * 5], NAMES)
    task.gallery = data[1]
    scores, lines = judged(task, model, queries)
    assert [line["nearest"][0]["id"] for line in lines] == list(range(60)), "in a gallery that holds it a picture finds itself"
    assert lines[0]["nearest"][0]["similarity"] == pytest.approx(1, abs=1e-3)
    assert scores["recall@1"] == 1 and (scores["queries"], scores["without_match"]) == (55, 5) and lines[57]["rank"] == -1
    index = list(task.index_lines())
    assert [entry["id"] for entry in index] == list(range(400)) and index[3]["gold"] == json.loads(examples_of(data[1]).text(3))["gold"]
    assert all(near["id"] != entry["id"] for entry in index for near in entry["nearest"])
    assert json.loads(json.dumps(index[0], ensure_ascii=False)) == index[0]
    alone = split(tmp_path / "alone", images[:3], ["a", "b", "c"], NAMES)
    task.gallery = None
    with pytest.raises(BadInput, match="gallery"):
        judged(task, model, alone)


def test_whitening_changes_what_is_found_not_what_it_is_called(data) -> None:
    model, task = retriever(loss="none", whitening=True)
    begun(model, task, data[0])
    scores, _ = judged(task, model, data[1])
    assert task._index is not None and scores["map"] > 0.3
    known = task._index.vectors
    assert torch.allclose(known.norm(dim=1), torch.ones(len(known)), atol=1e-5)
    task.gallery = data[1]  # the same pictures through the other door
    again, _ = judged(task, model, Store(data[1].path))
    assert again["recall@1"] == 1


@pytest.mark.parametrize(("loss", "temperature"), [("normface", 0.05), ("proxy_anchor", 0.05), ("supcon", 0.1)])
def test_a_metric_is_learnt(data, loss, temperature) -> None:
    model, task = retriever(loss=loss, temperature=temperature, start="random")
    stream = begun(model, task, data[0])
    before = judged(task, model, data[1])[0]["map"]
    losses = train(model, task, stream, 30, 3e-3)
    after = judged(task, model, data[1])[0]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) and after["map"] > before + 0.1
    assert task.couples_rows == (loss != "normface")


def test_a_solved_start_is_a_better_one(data) -> None:
    found = {}
    for start in ("probe", "random"):
        model, task = retriever(start=start, dimensions=9)
        begun(model, task, data[0])
        found[start] = judged(task, model, data[1])[0]["map"]
        assert task._index.vectors.shape[1] == 9
    assert found["probe"] > found["random"] + 0.1


def test_supcon_is_its_formula() -> None:
    supcon = lambda *given, **more: supervised_contrastive(*given, **more)[0]  # noqa: E731
    torch.manual_seed(0)
    vectors, label = F.normalize(torch.randn(7, 5), dim=-1), torch.tensor([0, 0, 1, 1, 1, 2, 0])
    total, counted = 0.0, 0
    for i in range(7):
        others = [j for j in range(7) if j != i]
        positives = [j for j in others if label[j] == label[i]]
        if not positives:
            continue
        below = sum(math.exp(float(vectors[i] @ vectors[j]) / 0.1) for j in others)
        total += -sum(math.log(math.exp(float(vectors[i] @ vectors[p]) / 0.1) / below) for p in positives) / len(positives)
        counted += 1
    assert float(supcon(vectors, label, vectors, label, 0.1)) == pytest.approx(total / counted, rel=1e-5)
    parts = supcon(vectors[:3], label[:3], vectors, label, 0.1), supcon(vectors[3:], label[3:], vectors, label, 0.1, first=3)
    assert float((3 * parts[0] + 3 * parts[1]) / 6) == pytest.approx(total / counted, rel=1e-5), "row 5 has no positive and counts for none"
    vectors.requires_grad_()
    supcon(vectors, label, vectors, label, 0.1).backward()
    assert torch.isfinite(vectors.grad).all()


def test_proxy_anchor_is_its_formula() -> None:
    torch.manual_seed(0)
    cosine, label = torch.rand(6, 4) * 2 - 1, torch.tensor([0, 0, 1, 1, 1, 3])
    pull = [math.log(1 + sum(math.exp(-32 * (float(cosine[i, p]) - 0.1)) for i in range(6) if label[i] == p)) for p in (0, 1, 3)]
    push = [math.log(1 + sum(math.exp(32 * (float(cosine[i, p]) + 0.1)) for i in range(6) if label[i] != p)) for p in range(4)]
    assert float(proxy_anchor(cosine, label)) == pytest.approx(sum(pull) / 3 + sum(push) / 4, rel=1e-5)
    cosine.requires_grad_()
    proxy_anchor(cosine, label).backward()
    assert torch.isfinite(cosine.grad).all()


def test_whitenings_do_what_they_are_called() -> None:
    torch.manual_seed(0)
    label = torch.arange(4).repeat(200)
    turned = torch.linalg.qr(torch.randn(6, 6))[0]
    x = torch.randn(800, 6) * torch.linspace(1, 3, 6) @ turned + 2 * torch.randn(4, 6)[label]
    center, projection = pca_whitening(x)
    covariance = torch.cov(((x - center) @ projection.t()).t())
    assert torch.allclose(covariance, covariance.diag().diag(), atol=1e-3) and covariance.diag().max() < 1.01
    center, projection = learnt_whitening(x, label, 6)
    white = (x - center) @ projection.t()
    inside = white - torch.stack([white[label == c].mean(0) for c in range(4)])[label]
    within = torch.cov(inside.t())
    assert torch.allclose(within, within.diag().diag(), atol=0.05), "round inside classes"
    spread = white.var(0)
    assert (spread[:-1] >= spread[1:] - 1e-4).all(), "the directions that tell most come first"
    assert learnt_whitening(x, label, 9)[1].shape == (9, 6) and learnt_whitening(x, label, 2)[1].shape == (2, 6)

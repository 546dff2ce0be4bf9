"""Classification and retrieval of pictures: scores by reference, each way of tuning does what it says, state comes back."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from sslcli import metrics
from sslcli.core import Task
from sslcli.data import chance
from sslcli.data.examples import examples_of
from sslcli.data.pixels import Pixels
from sslcli.data.store import Store
from sslcli.data.stream import Stream, in_order
from sslcli.errors import BadInput
from sslcli.evidence.baseline import baseline
from sslcli.evidence.watch import vectors_of
from sslcli.losses import supervised_contrastive
from sslcli.tasks.image_classification import ImageClassification
from sslcli.tasks.image_retrieval import ImageRetrieval, learnt_whitening, pca_whitening, proxy_anchor
from tests.conftest import CONFIGS
from tests.splits import Small, split

NAMES = [str(i) for i in range(10)]
FACTS: dict[str, Any] = {"labelling": "single", "train": {"per_label": dict.fromkeys(NAMES, 10)}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    """Digits: 1,000 to learn from, 400 to be scored on."""
    found, folder = load_digits(), tmp_path_factory.mktemp("splits")
    images, gold = (found.images / 16 * 255).astype(np.uint8)[:, None], [str(t) for t in found.target]
    return split(folder / "train", images[:1000], gold[:1000], NAMES), split(folder / "test", images[1000:1400], gold[1000:1400], NAMES)


def pixels(augment: Any = None) -> Pixels:
    return Pixels(8, 1, [0.3], [0.37], False, augment)


def config(name: str, **changes: Any) -> dict[str, Any]:
    node = yaml.safe_load((CONFIGS / "task" / f"{name}.yaml").read_text())
    return {k: v for k, v in node.items() if k not in ("kind", "modality")} | changes


def classifier(augment: Any = None, facts: Any = FACTS, names: list[str] = NAMES, **changes: Any) -> tuple[Small, ImageClassification]:
    torch.manual_seed(0)
    model = Small()
    return model, ImageClassification(model, pixels(augment), names, facts, **config("image_classification", **changes))


def retriever(augment: Any = None, **changes: Any) -> tuple[Small, ImageRetrieval]:
    torch.manual_seed(0)
    model = Small()
    return model, ImageRetrieval(model, pixels(augment), NAMES, FACTS, **config("image_retrieval", **changes))


def begun(model: Small, task: Any, store: Store) -> Stream:
    stream = Stream(task.rows(store), partial(task.read, store), task.batch_size, 0)
    model.eval()
    task.eval()
    task.begin(model, stream)
    return stream


def train(model: Small, task: Task, stream: Stream, steps: int, lr: float = 2e-3) -> list[float]:
    learning = [p for p in [*model.parameters(), *task.parameters()] if p.requires_grad]
    engine = torch.optim.AdamW(learning, lr)
    losses = []
    for step in range(steps):
        model.train()
        task.train()
        (batch,) = stream.batches(step)
        output = task(model, batch)
        output.loss.backward()
        engine.step()
        engine.zero_grad()
        losses.append(float(output.loss.detach()))
    return losses


def judged(task: Any, model: Small, store: Store) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """As evaluation.judge: (scores, the lines of predictions.jsonl)."""
    model.eval()
    task.eval()
    if hasattr(task, "look"):
        task.look(model, store)
    examples, lines = examples_of(store), {}
    for rows in in_order(task.rows(store), 4096):
        batch = task.read(store, rows, chance.keys(0, 0, rows))
        for row, said in zip(rows.tolist(), task.predict(model, batch), strict=True):
            example = json.loads(examples.text(row))
            lines[row] = {"id": row, **example, **task.merge([said], example["gold"])}
    ordered = [lines[i] for i in range(store.count)]
    return task.score([task.kept(p) for p in ordered], [p["gold"] for p in ordered]), ordered


# metrics


def test_top_k_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    scores, gold = random.random((300, 12)), random.integers(0, 12, 300)
    ranks = (scores > scores[np.arange(300), gold][:, None]).sum(1)
    found = metrics.within(ranks, (1, 5), "top")
    for k in (1, 5):
        assert found[f"top{k}"] == pytest.approx(top_k_accuracy_score(gold, scores, k=k, labels=range(12)))
        low, high = found[f"top{k}_interval"]
        assert low <= found[f"top{k}"] <= high


def test_calibration_error_is_the_naive_loop() -> None:
    random = np.random.default_rng(0)
    sure = np.concatenate([random.random(500), [0.0, 1.0, 1 / 15, 2 / 15]])
    right = random.random(504) < sure**2
    total = 0.0
    for i in range(15):
        inside = [(c, r) for c, r in zip(sure, right, strict=True) if i / 15 < c <= (i + 1) / 15 or (i == 0 and c == 0)]
        if inside:
            total += len(inside) / 504 * abs(float(np.mean([r for _, r in inside])) - float(np.mean([c for c, _ in inside])))
    assert metrics.calibration_error(sure, right) == pytest.approx(total, abs=1e-12)
    assert metrics.calibration_error([1.0, 1.0], [True, True]) == 0


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


# classification


def test_neighbours_vote_as_scikit_learns(data) -> None:
    train_, test = data
    model, task = classifier(tune="knn")
    begun(model, task, train_)
    assert not [p for p in [*model.parameters(), *task.head.parameters()] if p.requires_grad], "nothing is left for steps to do"
    scores, lines = judged(task, model, test)
    bank, asked = vectors_of(model, task.processor, train_), vectors_of(model, task.processor, test)
    known, true = (s["label"].values[:, 0] for s in data)
    reference = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07), algorithm="brute").fit(bank, known)
    assert scores["accuracy"] == pytest.approx(reference.score(asked, true), abs=0.01)
    theirs = reference.predict_proba(asked)
    ours = np.array([list(line["probabilities"].values()) for line in lines])
    assert np.abs(ours - theirs).mean() < 0.002
    other = classifier(tune="knn")[1]
    other.load_state_dict(task.state_dict())
    assert judged(other, model, test)[0] == scores, "what was remembered is part of the state"


def test_the_probe_is_solved_before_the_first_step(data) -> None:
    train_, test = data
    model, task = classifier(tune="probe")
    before = {n: p.clone() for n, p in model.named_parameters()}
    begun(model, task, train_)
    assert not any(p.requires_grad for p in [*model.parameters(), *task.parameters()])
    scores, _ = judged(task, model, test)
    assert scores["accuracy"] > 0.75 and all((p == before[n]).all() for n, p in model.named_parameters())
    assert scores["accuracy"] == scores["top1"] <= scores["top5"] and scores["ece"] < 0.2
    assert set(scores) == {
        *(f"{k}{i}" for k in ("accuracy", "macro_f1", "top1", "top5") for i in ("", "_interval")),
        *("ece", "ece_adaptive", "brier", "nll", "report"),
    }


def test_full_tuning_begins_at_the_probe_and_goes_beyond(data) -> None:
    train_, test = data
    model, probe = classifier(tune="probe")
    begun(model, probe, train_)
    solved = judged(probe, model, test)[0]["accuracy"]
    model, task = classifier()
    stream = begun(model, task, train_)
    first = judged(task, model, test)[0]["accuracy"]
    losses = train(model, task, stream, 60)
    after = judged(task, model, test)[0]["accuracy"]
    assert first == solved > 0.75 and after > first and np.mean(losses[-8:]) < np.mean(losses[:8])
    model, task = classifier(start="random")
    begun(model, task, train_)
    assert judged(task, model, test)[0]["accuracy"] < 0.4


def test_frozen_blocks_stay_and_keep_their_statistics(data) -> None:
    model, task = classifier(tune=1)
    stream = begun(model, task, data[0])
    before = {n: t.clone() for n, t in model.state_dict().items()}
    train(model, task, stream, 3)
    changed = {n.rsplit(".", 1)[0] for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"blocks.2.0", "blocks.2.1", "norm"}, "only the last block and what follows, statistics included"
    model, task = classifier(tune=0)
    stream = begun(model, task, data[0])
    train(model, task, stream, 2)
    assert all(torch.equal(t, classifier(tune=0)[0].state_dict()[n]) for n, t in model.state_dict().items())
    assert task.head.weight.requires_grad


def test_a_ranking_is_by_hand_what_the_scores_say(data) -> None:
    _, test = data
    model, task = classifier()
    scores, lines = judged(task, model, test)
    for line in lines[:20]:
        ranked = sorted(NAMES, key=lambda n: -line["probabilities"][n])
        assert line["prediction"] == ranked[0] and abs(line["rank"] - ranked.index(line["gold"])) <= 1
    assert scores["top5"] == pytest.approx(np.mean([line["rank"] < 5 for line in lines]))
    bare = task.score([line["prediction"] for line in lines], [line["gold"] for line in lines])
    assert bare["accuracy"] == scores["accuracy"] and "ece" not in bare, "bare labels are scored too"


def test_mixed_pictures_have_mixed_targets(data) -> None:
    class Half:
        """Every picture mixed with the next one, half and half."""

        draws = 1

        def views(self, pictures: torch.Tensor, draws: torch.Tensor, mirror: bool) -> list[torch.Tensor]:
            return [pictures.float() / 255]

        def mix(self, images: torch.Tensor, target: torch.Tensor, draws: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return (images + images.roll(1, 0)) / 2, (target + target.roll(1, 0)) / 2

    model, task = classifier(Half())
    model.eval()
    batch = task.read(data[0], np.arange(8), chance.keys(0, 0, np.arange(8)))
    task.train()
    output = task(model, batch)
    plain = task.processor.views(batch)[0]
    logits = task.logits(model, {"pixels": (plain + plain.roll(1, 0)) / 2})
    label = batch["label"]
    wanted = (F.cross_entropy(logits, label) + F.cross_entropy(logits, label.roll(1, 0))) / 2
    assert torch.allclose(output.loss, wanted, atol=1e-6)
    task.eval()
    assert torch.allclose(task(model, batch).loss, F.cross_entropy(task.logits(model, {"pixels": plain}), label), atol=1e-6)


def test_weights_and_smoothing_are_pytorchs(data) -> None:
    facts = {"labelling": "single", "train": {"per_label": {"0": 10, "1": 40}}}
    names = ["0", "1"]
    _, task = classifier(facts=facts, names=names, class_weights="balanced")
    logits, label = torch.randn(6, 2), torch.tensor([0, 1, 1, 0, 1, 1])
    target = F.one_hot(label, 2).float()
    weighed = F.cross_entropy(logits, label, weight=torch.tensor([2.5, 0.625]), reduction="none")
    assert torch.allclose(task._losses(logits, target), weighed)
    _, task = classifier(facts=facts, names=names, label_smoothing=0.2)
    assert torch.allclose(task._losses(logits, target), F.cross_entropy(logits, label, label_smoothing=0.2, reduction="none"))
    for change in ({"class_weights": "balanced"}, {"label_smoothing": 0.1}):
        with pytest.raises(ValueError, match="several labels"):
            classifier(facts={**facts, "labelling": "multi"}, names=names, **change)


@pytest.mark.parametrize("tune", ["full", "probe", "knn"])
def test_several_labels_a_picture(tmp_path: Path, tune) -> None:
    """Whether a digit is even, and whether it is above four."""
    found, names = load_digits(), ["even", "large"]
    images = (found.images / 16 * 255).astype(np.uint8)[:, None]
    gold = [[n for n, yes in zip(names, (t % 2 == 0, t > 4), strict=True) if yes] for t in found.target.tolist()]
    train_, test = split(tmp_path / "a", images[:1000], gold[:1000], names), split(tmp_path / "b", images[1000:], gold[1000:], names)
    facts = {"labelling": "multi", "train": {"per_label": {}}}
    model, task = classifier(facts=facts, names=names, tune=tune)
    stream = begun(model, task, train_)
    if tune == "full":
        losses = train(model, task, stream, 20)
        assert losses[-1] < losses[0]
    scores, lines = judged(task, model, test)
    assert scores["micro_f1"] > 0.7 and scores["map"] > 0.75 and 0 < scores["accuracy"] < 1
    truth = np.array([[n in line["gold"] for n in names] for line in lines])
    sure = np.array([[line["probabilities"][n] for n in names] for line in lines])
    assert scores["map"] == pytest.approx(average_precision_score(truth, sure, average="macro"), abs=1e-5)
    cheap = baseline(task, train_, test)
    assert cheap is not None and cheap["micro_f1"] > 0.8


# retrieval


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


@pytest.mark.parametrize("name", ["image_classification", "image_retrieval"])
def test_bf16_weights_and_unseen_labels(tmp_path: Path, data, name) -> None:
    """Weights in bf16 as training keeps them: scores come out, and nearly the same."""
    model, task = classifier() if name == "image_classification" else retriever()
    begun(model, task, data[0])
    before = judged(task, model, data[1])[0]
    for parameter in [*model.parameters(), *task.parameters()]:
        parameter.data = parameter.data.bfloat16()
    for module in model.modules():  # as the backbones do: normalisation in fp32
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.LayerNorm):
            module.float()
            module.register_forward_pre_hook(lambda _, x: (x[0].float(),))
            module.register_forward_hook(lambda _, __, y: y.bfloat16())
    after = judged(task, model, data[1])[0]
    assert after[task.metric] == pytest.approx(before[task.metric], abs=0.05)
    task.train()
    output = task(model, task.read(data[0], np.arange(16), chance.keys(0, 0, np.arange(16))))
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and torch.isfinite(output.loss)


@pytest.mark.parametrize("name", ["image_classification", "image_retrieval"])
def test_the_yaml_is_the_signature(name) -> None:
    from sslcli import schema
    from tests.conftest import parts

    (part,) = [p.values[0] for p in parts("task", Task, "image") if p.id == name]
    model = Small()
    task = part.build(model, pixels(), NAMES, FACTS)
    assert task.metric in ("macro_f1", "map") and part.cls.coder(part.config).columns == ("image", "label")
    for bad in ("half", -1):
        problems: list[str] = []
        node = {"kind": name, **config(name, tune=bad)}
        schema._check_part("task", Task, node, (), problems)
        assert problems and problems[0].startswith("task.tune")

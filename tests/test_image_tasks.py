"""Classification and retrieval of pictures: scores by reference, each way of tuning does what it says, state comes back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from sslcli import metrics
from sslcli.core import Task
from sslcli.data import chance
from sslcli.data.store import Store
from sslcli.evidence.baseline import baseline
from sslcli.evidence.watch import vectors_of
from tests.picture_tasks import FACTS, NAMES, begun, classifier, config, digit_splits, judged, pixels, retriever, train
from tests.splits import Small, split


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    return digit_splits(tmp_path_factory.mktemp("splits"))


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
    nobody = (theirs == 0).sum(1) > 5  # labels that got no vote are alike: the earlier ones come first, as scikit-learn sorts them
    assert nobody.mean() > 0.2 and scores["top5"] == pytest.approx(top_k_accuracy_score(true, ours, k=5, labels=range(10)), abs=0.01)
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
    mixed, weights = torch.rand(6, 2).softmax(-1), torch.tensor([2.5, 0.625])
    assert torch.allclose(task._losses(logits, mixed), F.cross_entropy(logits, mixed, weight=weights, reduction="none"))
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

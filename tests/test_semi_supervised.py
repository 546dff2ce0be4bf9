"""Learning from unlabelled rows beside a task: the losses by their formulas, labels that are never read, rounds, refusals, resumed runs."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sslcli.augment import Augment
from sslcli.core import Objective
from sslcli.errors import BadInput
from sslcli.optim import Optimizer
from sslcli.run import Run
from sslcli.unlabelled import OfTask
from tests.conftest import TINY, log, parts, rows, write_jsonl
from tests.picture_tasks import NAMES, classifier
from tests.test_resume import tensors
from tests.tiny_networks import digits

SMALL = [*TINY, "data.max_length=16", "trainer.batch_size=8", "trainer.log_every=1", "baseline=false", "leaks=false"]
STEPS = ["trainer.steps=6", "trainer.save_every=3", "trainer.deterministic=true", "joint.batch_size=8"]
LOW = "objective.threshold=0.2"  # a network that has learnt nothing is sure of nothing


def low(objective: str) -> list[str]:
    return [] if objective == "label_propagation" else [LOW]


def part(group: str, abstract: type, name: str, **changes: object):
    (found,) = [p.values[0] for p in parts(group, abstract, "image") if p.id == name]
    found.config |= changes
    return found


def of_pictures(name: str, view: str = "light", **changes: object):
    """An objective of pictures beside the task of a tiny network."""
    model, task = classifier(part("augment", Augment, view).build())
    task.head.weight.data.mul_(10)
    return part("objective", OfTask, name, **changes).build(model, task.processor, task, digits()), model.train(), task.train()


def batch(objective: OfTask, count: int = 32) -> dict[str, torch.Tensor]:
    """Of a store without labels, which the task reads none of."""
    rows_, keys = np.arange(count), np.arange(count).astype(np.uint64)
    return objective._look.read(objective.task.processor.read(digits(), rows_, keys), rows_, keys)


@pytest.mark.parametrize("temperature", [None, 0.4])
def test_the_loss_is_the_formula(temperature) -> None:
    """Sure rows alone count, over all rows; the target is the one-hot label (FixMatch) or the sharpened distribution (UDA)."""
    objective, model, task = of_pictures("fixmatch", temperature=temperature)
    found = batch(objective)
    weak = task.logits(model.eval(), {"pixels": task.processor.views(found)[0]}).detach()
    confidence, label = weak.softmax(-1).max(-1)
    objective.threshold = float(confidence.median())
    sure = confidence >= objective.threshold
    assert 0 < int(sure.sum()) < len(sure)
    target = F.one_hot(label, 10).float() if temperature is None else (weak / temperature).softmax(-1)
    torch.manual_seed(1)  # of dropout, which the strong view alone has
    said = objective(model.train(), found)
    torch.manual_seed(1)
    strong = task.logits(model, objective._look.strong(found))
    by_hand = -(target * strong.log_softmax(-1)).sum(-1)[sure].sum() / len(sure)
    assert float(said.loss.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-5)
    assert float(said.logs["confident"]) == pytest.approx(float(sure.float().mean()))
    wanted = torch.autograd.grad(by_hand, task.head.weight)[0]
    assert torch.allclose(torch.autograd.grad(said.loss, task.head.weight)[0], wanted, atol=1e-6), "no gradient through the weak view"
    assert model.training and task.training and not list(objective.parameters())


def test_strong_views_are_others_than_weak_ones_and_depend_on_keys_alone() -> None:
    objective, *_ = of_pictures("fixmatch", "randaugment")
    found, again = batch(objective), batch(objective)
    weak, strong = objective._look.weak(found)["pixels"], objective._look.strong(found)["pixels"]
    assert not torch.allclose(weak, strong) and torch.equal(strong, objective._look.strong(again)["pixels"])


def test_sure_rows_are_balanced_over_labels() -> None:
    """The surest of many, the few several times; windows of an example go together."""
    objective, *_ = of_pictures("noisy_student", threshold=0.5)
    owners = SimpleNamespace(values=np.repeat(np.arange(9), 2)[:, None])
    label = np.array([0, 0, 0, 0, 0, 1, 2, 2, 2])
    confidence = np.array([0.6, 0.9, 0.7, 0.4, 0.8, 0.9, 0.95, 0.3, 0.99])
    used = objective.learn({"owner": owners}, label, confidence)
    assert used.tolist() == [False, True, False, False, True, True, True, False, True]
    assert sorted(objective._rows.tolist()) == sorted([2, 3, 8, 9, 10, 11, 10, 11, 12, 13, 16, 17])
    assert objective.found["confident"] == pytest.approx(7 / 9, abs=1e-4) and objective.missing == NAMES[3:]
    objective.balance = False
    assert objective.learn({"owner": owners}, label, confidence).sum() == 7
    objective.threshold, left_out = 0.0, np.where(label == 1, -1, label)  # no neighbour has a label
    assert objective.learn({"owner": owners}, left_out, confidence).tolist() == (label != 1).tolist()
    objective.threshold = 0.999
    with pytest.raises(BadInput, match="the surest is at"):
        objective.learn({"owner": owners}, label, confidence)


def test_pseudo_labels_that_are_nearly_all_of_one_label_are_doubted() -> None:
    objective, *_ = of_pictures("fixmatch")
    for share, doubted in ((0.7, True), (0.4, False)):
        objective.found = {"confident": 0.8, "pseudo_labels": {"3": share, "4": 1 - share - 0.2, "5": 0.2}}
        assert ("70% of the unlabelled rows above objective.threshold were taken for 3" in (objective.doubt() or "")) == doubted


@pytest.fixture
def command(tmp_path) -> list[str]:
    labelled = write_jsonl(tmp_path / "few.jsonl", rows(18))
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": r["text"]} for r in rows(60, 3)])
    return ["finetune", f"data.train={labelled}", f"data.unlabelled={corpus}", *SMALL]


@pytest.mark.parametrize("objective", ["uda", "self_training", "label_propagation"])
def test_labels_of_unlabelled_rows_are_never_read(ssl, command, tmp_path, objective) -> None:
    """Wrong ones, unknown ones or none: the same weights, bit by bit."""
    names = {"none": [{}] * 60, "wrong": [{"label": f"other {i}"} for i in range(60)]}
    for name, labels in names.items():
        write_jsonl(tmp_path / "corpus.jsonl", [{"text": r["text"], **more} for r, more in zip(rows(60, 3), labels, strict=True)])
        done = ssl(*command, f"objective={objective}", *STEPS, *low(objective), f"run.dir={name}")
        assert done.code == 0, done.err
    deep = "rounds/2" if objective == "self_training" else ""
    assert tensors(tmp_path / "none" / deep) == tensors(tmp_path / "wrong" / deep)
    assert len({line["input"] for line in lines("none")} if deep else [1]) == (60 if deep else 1)


def lines(run: str) -> list[dict]:
    return [json.loads(line) for line in Path(f"{run}/pseudo_labels.jsonl").read_text().split("\n") if line]


@pytest.mark.parametrize("objective", ["uda", "self_training", "label_propagation"])
def test_resumed_bit_by_bit(ssl, command, monkeypatch, objective) -> None:
    run = [*command, f"objective={objective}", *STEPS, *low(objective), *(["objective.rounds=1"] if objective == "self_training" else [])]
    assert ssl(*run, "run.dir=whole").code == 0
    plain, seen = Optimizer.step, []

    def step(self, world, at):
        seen.append(at)
        if len(seen) == (10 if objective == "self_training" else 4):  # in the second round
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, world, at)

    with monkeypatch.context() as patch:
        patch.setattr(Optimizer, "step", step)
        done = ssl(*run, "run.dir=cut")
        assert done.code == 75 and "run.dir=cut resume=auto" in done.err.replace("\n", " "), done.err
    assert ssl("finetune", "run.dir=cut", "resume=auto").code == 0
    assert tensors(Path("cut")) == tensors(Path("whole"))
    keep = lambda name: [{k: v for k, v in line.items() if k != "seconds"} for line in log(name)]  # noqa: E731
    assert keep("cut") == keep("whole") and {"objective.loss", "objective.agreement"} <= set(log("whole")[0])


def test_consistency_is_told(ssl, command) -> None:
    """Over typos, as chosen; the share above the threshold, agreement and pseudo-labels stand in the receipts."""
    done = ssl(*command, "objective=uda", "augment@objective.strong=typos", "objective.strong.rate=0.3", *STEPS, LOW, "run.dir=a")
    assert done.code == 0, done.err
    assert "consistency beside the task" in done.err and "unlabelled  60 examples" in done.err
    receipt = json.loads(Path("a/receipts.json").read_text())["consistency"]
    assert receipt["rows"] == 60 and 0 < receipt["confident"] <= 1 and 0 <= receipt["agreement"] <= 1
    assert sum(receipt["pseudo_labels"].values()) == pytest.approx(1, abs=0.01) and set(receipt["pseudo_labels"]) <= {"cat", "dog", "ship"}
    assert ssl("evaluate", "run=a", f"data.test={command[1].partition('=')[2]}").code == 0
    done = ssl(*command, "objective=uda", *STEPS, "objective.threshold=0.999", "run.dir=b")
    assert done.code == 0 and "no unlabelled row reached objective.threshold=0.999" in done.err


def test_rounds_are_run_folders_and_a_finished_run_can_teach(ssl, command) -> None:
    done = ssl(*command, "objective=self_training", "objective.rounds=1", *STEPS, LOW, "trainer.time_limit=20m", "run.dir=a")
    assert done.code == 0, done.err
    for number in (0, 1):  # a limit is of all rounds together
        assert "time_limit: 600.0" in Path(f"a/rounds/{number}/config.yaml").read_text()
    assert "(the labels alone)" in done.err and json.loads(Path("a/metrics.json").read_text())["rounds"]["delivered"] == 1
    alone = ssl(*[w for w in command if "unlabelled" not in w], *STEPS[:3], "run.dir=alone")
    assert alone.code == 0 and tensors(Path("alone")) == tensors(Path("a/rounds/0")), "round 0 is the task alone"
    teacher = ["objective=self_training", "objective.teacher=alone", *STEPS, LOW]
    assert ssl(*command, *teacher, "run.dir=b").code == 0
    assert tensors(Path("b")) == tensors(Path("a/rounds/1")) and lines("b") == lines("a")
    receipt = json.loads(Path("b/receipts.json").read_text())["self_training"]
    assert receipt["examples"] == 60 and receipt["used"] == sum(line["used"] for line in lines("b"))
    assert all(line["confidence"] >= 0.2 for line in lines("b") if line["used"])
    assert ssl(*command, "objective=self_training", *STEPS, "--dry-run", "run.dir=c").code == 0 and not Path("c").exists()


def test_texts_that_are_left_out_take_no_label(ssl, command, tmp_path) -> None:
    """They have no vector, and so no neighbours; lines of text may hold what splits lines elsewhere."""
    long = [{"text": "much too long " * 20 + r["text"]} for r in rows(12, 5)]
    odd = [{"text": r["text"] + "\u2028and more"} for r in rows(12, 6)]
    write_jsonl(tmp_path / "corpus.jsonl", [{"text": r["text"]} for r in rows(40, 3)] + long + odd)
    labelled = write_jsonl(tmp_path / "few.jsonl", [*rows(18), {**rows(1, 7)[0], "text": long[0]["text"]}])
    run = ["finetune", f"data.train={labelled}", *command[2:], "data.too_long=drop", "objective=label_propagation", *STEPS]
    done = ssl(*run, "run.dir=a")
    assert done.code == 0, done.err
    found = lines("a")
    left_out = [line for line in found if line["input"].startswith("much too long")]
    assert len(found) == 64 and len(left_out) == 12
    assert all(line["label"] is None and not line["confidence"] and not line["used"] for line in left_out)
    assert json.loads(Path("a/receipts.json").read_text())["label_propagation"]["used"] <= 52
    assert Run(dir="a", keep=1).lines("pseudo_labels.jsonl") == found


def test_seeds_have_rounds_of_their_own(typed, command) -> None:
    done = typed(*command, "objective=self_training", "objective.rounds=1", *STEPS, LOW, "trainer.seeds=2", "run.dir=a")
    assert done.code == 0 and Path("a/seeds/1/rounds/1/model").is_dir() and Path("a/model").is_dir(), done.err


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["data.unlabelled=null"], "data.unlabelled: missing; consistency learns from rows beyond the labelled ones"),
        (["task.head=prototype"], "objective: consistency: task.head=prototype has no layer that is trained"),
        (["task.labelling=multi"], "objective: consistency: it learns where a text or a picture has one label"),
        (["objective.treshold=0.5"], "objective.treshold: no such key; did you mean objective.threshold?"),
        (["objective.strong.rate=2"], "objective.strong.rate=2: "),
        (["augment@objective.strong=mixup"], "strong: changes no text"),
        (["augment@objective.strong=tipos"], "augment=tipos: no such augment; did you mean typos?"),
        (["data.unlabelled=nowhere.txt"], "data.unlabelled=nowhere.txt: no such file"),
    ],
)
def test_what_cannot_be_learnt_from_is_told_in_a_line(ssl, command, changed, said) -> None:
    done = ssl(*command, "objective=uda", *changed, "run.dir=a")
    assert done.code == 2 and said in done.err and "Traceback" not in done.err and not Path("a/metrics.jsonl").exists(), done.err


def test_a_teacher_of_other_labels_is_refused(ssl, command, tmp_path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", [{**r, "label": r["label"].upper()} for r in rows(18)])
    assert ssl("finetune", f"data.train={other}", *SMALL, "trainer.steps=2", "run.dir=t").code == 0
    done = ssl(*command, "objective=self_training", "objective.teacher=t", *STEPS, "run.dir=a")
    assert done.code == 2 and "objective.teacher=t: has other labels (CAT, DOG, SHIP" in done.err, done.err


def test_pretraining_has_no_task(ssl, corpus) -> None:
    done = ssl("pretrain", "objective=uda", f"data.train={corpus}", "run.dir=a")
    assert done.code == 2 and "in ssl finetune" in done.err and not Path("a").exists()


@pytest.mark.parametrize("name", ["fixmatch", "noisy_student", "image_propagation"])
def test_pictures(ssl, name) -> None:
    run = ("finetune", "data=digits", "data.shots=2", f"objective={name}", "model=resnet_nano", "objective.threshold=0.01")
    small = ("joint.batch_size=16", "trainer.steps=3", "trainer.batch_size=8", "trainer.log_every=1", "baseline=false", "leaks=false")
    done = ssl(*run, *small, *(("objective.rounds=1",) if name == "noisy_student" else ()), "run.dir=a")
    assert done.code == 0, done.err
    assert "unlabelled  1,438 pictures" in done.err and log("a")[0]["objective.loss"] > 0


def test_every_one_is_of_a_task() -> None:
    found = [p.id for modality in ("text", "image") for p in parts("objective", OfTask, modality)]
    assert found == ["label_propagation", "self_training", "uda", "fixmatch", "image_propagation", "noisy_student"]
    assert not set(found) & {p.id for modality in ("text", "image") for p in parts("objective", Objective, modality)}

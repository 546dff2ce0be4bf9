"""Few labels: contrastive tuning, prototypes; what they solve against loops and by hand, how they resume and leave."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sslcli import losses
from sslcli.classifiers.contrastive import similarities
from sslcli.classifiers.prototype import prototypes, temperature
from sslcli.commands.finished import Finished
from sslcli.core import Places
from sslcli.data.stream import Stream
from tests.conftest import TINY, rows, write_jsonl
from tests.test_resume import stop_at

FEW = [*TINY, "baseline=false", "trainer.batch_size=8", "trainer.log_every=1"]


def test_supervised_contrastive_is_a_loop_over_pairs() -> None:
    torch.manual_seed(0)
    everyone, labels = F.normalize(torch.randn(9, 5), dim=-1), torch.tensor([0, 1, 0, 2, 1, 0, 3, 1, 3])
    rows_, label, first = everyone[2:7], labels[2:7], 2
    expected, counted = 0.0, 0
    for i in range(5):
        others = [j for j in range(9) if j != first + i]
        total = sum(math.exp(float(rows_[i] @ everyone[j]) / 0.2) for j in others)
        likes = [j for j in others if labels[j] == label[i]]
        if not likes:
            continue
        counted += 1
        expected -= sum(float(rows_[i] @ everyone[j]) / 0.2 - math.log(total) for j in likes) / len(likes)
    loss, accuracy = losses.supervised_contrastive(rows_, label, everyone, labels, 0.2, first)
    assert counted == 4 and float(loss) == pytest.approx(expected / counted, rel=1e-5) and 0 <= float(accuracy) <= 1


def test_rows_without_a_like_teach_nothing_and_break_nothing() -> None:
    z = F.normalize(torch.randn(3, 4), dim=-1).requires_grad_()
    loss, _ = losses.supervised_contrastive(z, torch.arange(3), z, torch.arange(3), 0.1)
    loss.backward()
    assert float(loss.detach()) == 0 and torch.isfinite(z.grad).all()


def test_similarities_are_means_over_pairs() -> None:
    torch.manual_seed(0)
    x, label = torch.randn(7, 4), torch.tensor([0, 1, 0, 2, 1, 0, 3])
    cosine = F.cosine_similarity(x[:, None], x[None], dim=-1)
    pairs = [(i, j) for i in range(7) for j in range(i)]
    for found, alike in zip(similarities(x, label), (True, False), strict=True):
        of = [float(cosine[i, j]) for i, j in pairs if bool(label[i] == label[j]) == alike]
        assert found == pytest.approx(sum(of) / len(of), rel=1e-4)


@pytest.mark.parametrize("count", [24, 25, 7])
def test_two_of_a_label_come_together(count) -> None:
    kinds = np.random.default_rng(0).integers(0, 3, count)
    lengths = np.random.default_rng(1).integers(1, 9, count)
    stream = Stream(Places(count, lengths, kinds=kinds), lambda *_: {}, 4, 1)
    epochs = [[stream.rows(e * stream.steps_per_epoch + i) for i in range(stream.steps_per_epoch)] for e in range(2)]
    for batches in epochs:
        assert sorted(np.concatenate(batches).tolist()) == list(range(count)), "every row once"
        assert all(lengths[b].tolist() == sorted(lengths[b]) for b in batches), "alike in length side by side: little padding"
        alone = sum(int(n == 1) for b in batches for n in np.bincount(kinds[b]))
        assert alone <= sum(n % 2 for n in np.bincount(kinds))
    assert count < 10 or [b.tolist() for b in epochs[0]] != [b.tolist() for b in epochs[1]]


def test_prototypes_are_means_and_each_text_is_left_out_of_its_own() -> None:
    torch.manual_seed(0)
    x, label = torch.randn(8, 4, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])
    means, scores = prototypes(x, label, 5)
    for c in range(4):
        assert torch.allclose(means[c], x[label == c].mean(0))
    for i in range(8):
        for c in range(5):
            others = [j for j in range(8) if label[j] == c and j != i]
            expected = -float((x[i] - x[others].mean(0)).square().sum()) / 2 if others else -math.inf
            assert float(scores[i, c]) == pytest.approx(expected, rel=1e-6)
    heat = temperature(scores, label)
    usable = label != 2
    losses_ = [float(F.cross_entropy(scores[usable] / t, label[usable])) for t in (heat, 1e3, 1e-2)]
    assert heat > 0 and losses_[0] <= min(losses_[1:]) + 0.2


def test_one_text_a_label_has_a_temperature_too() -> None:
    _, scores = prototypes(torch.eye(3), torch.arange(3), 3)
    assert temperature(scores, torch.arange(3)) > 0


@pytest.mark.parametrize("head", ["prototype", "contrastive"])
def test_heads_for_few_labels_learn_leave_and_come_back(ssl, tmp_path: Path, head: str) -> None:
    train, test = write_jsonl(tmp_path / "train.jsonl", rows(36)), write_jsonl(tmp_path / "test.jsonl", rows(45, seed=3))
    done = ssl(
        "finetune", f"task.head={head}", f"data.train={train}", f"data.test={test}", *FEW, "trainer.steps=12", "optimizer.lr=3e-3",
        "run.dir=run",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.result["test"]["accuracy"] > 0.9
    assert done.result["train"]["steps"] == (0 if head == "prototype" else 12)
    lines = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    again = ssl("evaluate", "run=run", "out=again")
    assert again.code == 0 and again.result["test"]["accuracy"] == done.result["test"]["accuracy"], again.err
    from transformers import pipeline

    classify = pipeline("text-classification", "run/model")
    for line in lines[:5]:
        found = classify(line["input"])[0]
        assert found["label"] == line["prediction"] and found["score"] == pytest.approx(line["probabilities"][line["prediction"]], abs=2e-3)
    assert ssl("export", "run=run", "format=hf", "out=dist").code == 0


def test_contrastive_tuning_resumes_to_the_same_model(ssl, tmp_path: Path, monkeypatch) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", rows(36))
    words = ["finetune", "task.head=contrastive", f"data.train={train}", *FEW, "trainer.steps=8", "trainer.save_every=4"]
    assert ssl(*words, "run.dir=whole").code == 0
    stop_at(monkeypatch, 5)
    assert ssl(*words, "run.dir=cut").code == 75 and not Path("cut/model").exists()
    assert ssl(*words, "run.dir=cut", "resume=auto").code == 0
    one, other = (Path(d, "model", "model.safetensors").read_bytes() for d in ("whole", "cut"))
    assert one == other


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task.head=contrastive", "task.labelling=multi"], "task: head=contrastive: is for one label a text"),
        (["task.head=prototype", "task.labelling=multi"], "task: head=prototype: is for one label a text"),
        (["task.head=contrastive", "augment=mixup"], "augment: mixes texts of several labels, which head=contrastive cannot learn from"),
        (["task.head=contrastive", "data.shots=1"], "no label has two texts to compare"),
        (["task.head=contrastive", "model=gpt_tiny"], "bring a classifier of their own; use head=linear"),
    ],
)
def test_a_head_that_does_not_go_is_one_line(ssl, tmp_path: Path, overrides, said) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", rows(36))
    sizes = TINY if "model=gpt_tiny" not in overrides else ["tokenizer.vocabulary=400"]
    done = ssl("finetune", f"data.train={train}", *sizes, *overrides, "trainer.steps=2", "run.dir=run")
    assert done.code == 2 and said in done.err and done.err.count("error:") == 1, done.err


def test_fewer_shots_than_asked_are_told_before_the_first_step(ssl, tmp_path) -> None:
    """One line that names the labels, the rarest first; none where there are enough."""
    few = write_jsonl(tmp_path / "few.jsonl", [r for i, r in enumerate(rows(30)) if r["label"] != "dog" or i < 5])
    small = [f"data.train={few}", *TINY, "trainer.steps=1", "baseline=false", "leaks=false"]
    done = ssl("finetune", *small, "data.shots=11", "run.dir=a")
    assert done.code == 0 and "train: data.shots=11, but there are fewer rows of dog (2), ship (9): all of these are used" in done.err
    assert done.err.index("fewer rows") < done.err.index("model  ")
    assert json.loads(Path("a/data.json").read_text())["fewer_shots"] == {"asked": 11, "found": {"dog": 2, "ship": 9}}
    assert "fewer rows" not in ssl("finetune", *small, "data.shots=2", "run.dir=b").err


def test_the_usual_head_is_the_same_when_a_run_is_opened_again(ssl, tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "few.jsonl", rows(12, seed=1))
    words = ["finetune", f"data.train={train}", "baseline=false", "errors=false", "leaks=false", "trainer.steps=1"]
    assert ssl(*words, *TINY, "run.dir=base").code == 0
    beside = {"adversarial=fgm": "linear", "augment=mixup": "linear", "peft=bitfit": "linear", "seed=0": "contrastive"}
    for i, (word, kind) in enumerate(beside.items()):
        done = ssl(*words, "from=base", word, f"run.dir=run{i}")
        assert done.code == 0, done.err
        assert ("contrastive, as labels are few" in done.err) == (kind == "contrastive"), word
        opened = Finished.open(Path(f"run{i}"), [])
        assert opened.goal.classifier.kind == kind, word


def test_options_of_steps_are_told_where_none_is_taken(ssl, labelled: Path) -> None:
    words = ["finetune", f"data.train={labelled}", *TINY, "task.head=prototype", "trainer.seeds=1", "baseline=false", "errors=false"]
    done = ssl(*words, "trainer.steps=5", "adversarial=fgm", "run.dir=run")
    assert done.code == 0 and "no step is taken: without effect trainer.steps=5, adversarial=fgm" in done.err, done.err

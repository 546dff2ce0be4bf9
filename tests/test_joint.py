"""A self-supervised loss beside a task's: the gradient is the weighted sum, the weight what was asked, and nothing is lost on the way."""

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY, log, rows, write_jsonl
from tests.test_adversarial import far
from tests.test_resume import log as timeless
from tests.test_resume import stop_at, tensors

SMALL = [*TINY, "data.max_length=16", "trainer.batch_size=16", "trainer.log_every=1", "baseline=false"]
EXACT = [*SMALL, "dropout=0", "task.dropout=0", "trainer.precision=fp32"]


@pytest.fixture
def command(labelled, tmp_path) -> list[str]:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": r["text"]} for r in rows(120, 3)])
    joint = [f"data.unlabelled={corpus}", "objective=masked_lm", "joint.batch_size=8"]
    return ["finetune", f"data.train={labelled}", *joint]


def test_the_gradient_is_the_weighted_sum(ssl, command, gradients, monkeypatch) -> None:
    """Of the task alone and of two weights: linear in the weight. With weight=auto both are equally long in what they share."""
    monkeypatch.setattr("sslcli.trainer.met", lambda *_: None)  # alone it would learn the words of its examples, not the corpus's
    task = [w for w in command if not w.startswith(("objective", "joint", "data.unlabelled"))]
    assert ssl(*task, *EXACT, "trainer.steps=1", "run.dir=alone").code == 0
    for weight in ("0.3", "0.6", "auto"):
        done = ssl(*command, *EXACT, "trainer.steps=1", f"joint.weight={weight}", f"run.dir=w{weight}")
        assert done.code == 0, done.err
    alone, third, twice, balanced = gradients
    assert far({n: 2 * third[n] - twice[n] for n in alone}, alone) < 1e-6
    shared = [n for n in alone if n.startswith("model.")]
    flat = lambda g: torch.cat([g[n].flatten() for n in shared])  # noqa: E731
    other = flat(balanced) - flat(alone)
    assert float(other.norm()) == pytest.approx(float(flat(alone).norm()), rel=1e-4)
    cosine = float(torch.nn.functional.cosine_similarity(flat(alone), other, dim=0))
    for run in ("w0.3", "wauto"):
        assert log(run)[0]["gradient_cosine"] == pytest.approx(cosine, abs=1e-4)
    assert {"task.loss", "task.accuracy", "objective.loss", "objective.accuracy"} <= set(log("w0.3")[0])
    assert log("w0.3")[0]["objective.loss"] == pytest.approx(log("w0.6")[0]["objective.loss"], rel=1e-5)


@pytest.mark.parametrize(("schedule", "middle"), [("constant", 2.0), ("linear", 1.0), ("cosine", 1.0)])
def test_the_weight_follows_its_schedule(ssl, command, schedule, middle) -> None:
    done = ssl(*command, *SMALL, "joint.weight=2", f"joint.schedule={schedule}", "trainer.steps=4", "trainer.eval_every=4", "run.dir=a")
    assert done.code == 0, done.err
    weights = [line["weight"] for line in log("a") if "weight" in line]
    assert weights[0] == 2.0 and weights[2] == pytest.approx(middle) and (schedule == "constant" or weights[3] < weights[1])
    assert json.loads(Path("a/receipts.json").read_text())["joint"]["weight"]["first"] == 2.0


def test_resumed_with_an_adversary_and_an_automatic_weight(ssl, command, monkeypatch) -> None:
    run = [
        *command,
        *SMALL,
        "joint.weight=auto",
        "adversarial=fgm",
        "trainer.steps=6",
        "trainer.save_every=3",
        "trainer.deterministic=true",
    ]
    assert ssl(*run, "run.dir=whole").code == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert ssl(*run, "run.dir=cut").code == 75
    assert ssl("finetune", "run.dir=cut", "resume=auto").code == 0
    assert tensors(Path("cut")) == tensors(Path("whole"))
    assert timeless(Path("cut")) == timeless(Path("whole"))
    assert all(line["task.noise"] > 0 and "objective.noise" not in line for line in log("whole") if "task.loss" in line)


def test_the_head_of_pretraining_is_used_again_and_the_task_is_delivered(ssl, command, tmp_path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    common = [f"data.train={corpus}", *SMALL[:-1], "trainer.steps=40", "optimizer.lr=3e-3"]
    assert ssl("pretrain", "objective=masked_lm", *common, "run.dir=lm").code == 0
    small = [w for w in SMALL if not w.startswith(("model", "tokenizer"))]
    done = ssl(*command, *small, "from=lm", "trainer.steps=3", "run.dir=task")
    assert done.code == 0, done.err
    assert "masked_lm beside the task" in done.err and "the head that from= brings" in done.err and "unlabelled  120 documents" in done.err
    learnt = [line["loss"] for line in log("lm") if "loss" in line]
    assert log("task")[0]["objective.loss"] < learnt[0] - 0.5, "it goes on where pretraining ended"
    assert not [
        p for p in Path("task/model").glob("*.safetensors") if p.stat().st_size > 2 * Path("lm/model/model.safetensors").stat().st_size
    ]
    assert ssl("evaluate", "run=task", f"data.test={tmp_path / 'labelled.jsonl'}").code == 0
    words = [w for w in command if not w.startswith("data.unlabelled")]
    done = ssl(*words, *small, "from=task", "trainer.steps=2", "run.dir=next")
    assert done.code == 0 and "a new head" in done.err and "unlabelled  90 documents" in done.err, done.err


def test_what_needs_an_objective_is_refused_without_one(ssl, labelled) -> None:
    for key in ("joint.weight=0.3", f"data.unlabelled={labelled}"):
        done = ssl("finetune", f"data.train={labelled}", *SMALL, key, "run.dir=a")
        assert done.code == 2 and "add objective=<name>" in done.err and "Traceback" not in done.err
    done = ssl("finetune", f"data.train={labelled}", *SMALL, "objective=masked_lm", "joint.weight=0", "run.dir=a")
    assert done.code == 2 and "joint.weight=0" in done.err


def test_pictures(ssl) -> None:
    done = ssl(
        *("finetune", "data=digits", "data.shots=2", "augment=simclr", "objective=simclr", "objective.hidden=16", "objective.dim=8"),
        *("joint.batch_size=16", "trainer.steps=2", "trainer.batch_size=8", "trainer.log_every=1", "baseline=false", "run.dir=a"),
    )
    assert done.code == 0, done.err
    assert "unlabelled  1,438 pictures" in done.err and log("a")[0]["objective.loss"] > 0

"""Temperature, thresholds and abstention against planted truth, brute force and simulation; what leaves the house is calibrated."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sslcli import metrics
from sslcli.calibration import CONFIDENCE, Calibration, abstention, fit, fold, last_linear, refuse_too_few, temperature, threshold
from sslcli.errors import BadInput
from tests.conftest import TINY, rows, write_jsonl

RANDOM = np.random.default_rng(0)


def drawn(count: int, classes: int, heat: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are too sure by `heat`, and labels drawn from what they should have said."""
    logits = RANDOM.normal(size=(count, classes)) * 2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return logits * heat, (p.cumsum(1) > RANDOM.random((count, 1))).argmax(1)


@pytest.mark.parametrize("heat", [0.4, 1.0, 3.0])
def test_a_planted_temperature_is_found(heat) -> None:
    logits, target = drawn(10_000, 5, heat)
    assert temperature(logits, target) == pytest.approx(heat, rel=0.06)
    marks = (RANDOM.random(logits.shape) < 1 / (1 + np.exp(-logits / heat))).astype(np.int64)
    assert temperature(logits, marks) == pytest.approx(heat, rel=0.06), "of several labels"


def test_the_temperature_is_that_of_least_loss() -> None:
    logits, target = drawn(3000, 4, 2.0)
    grid = np.exp(np.linspace(-1, 2, 3001))
    logs = [logits / t - np.log(np.exp(logits / t).sum(1, keepdims=True)) for t in grid]
    losses = [-x[np.arange(3000), target].mean() + math.log(t) ** 2 / (2 * 0.25 * 3000) for t, x in zip(grid, logs, strict=True)]
    assert temperature(logits, target) == pytest.approx(grid[int(np.argmin(losses))], rel=2e-3)


def test_a_few_examples_that_are_all_right_do_not_ask_for_certainty() -> None:
    logits = np.array([[1.0, 0.0]] * 6)
    assert 0.3 < temperature(logits, np.zeros(6, np.int64)) < 1


def test_adaptive_error_is_the_naive_loop() -> None:
    sure, right = RANDOM.random(1000), RANDOM.random(1000) < 0.6
    order = np.argsort(sure, kind="stable")
    total = 0.0
    for part in np.array_split(order, 15):
        total += len(part) / 1000 * abs(right[part].mean() - sure[part].mean())
    assert metrics.adaptive_calibration_error(sure, right) == pytest.approx(total, abs=1e-12)


def test_thresholds_are_the_best_there_are() -> None:
    for _ in range(20):
        p = RANDOM.random(60).round(2)
        gold = (RANDOM.random(60) < p * 0.4).astype(np.int64)
        gold[:5] = 1

        def f1(cut: float, p=p, gold=gold) -> float:
            given = p > cut
            return 2 * (given & (gold > 0)).sum() / max(1, given.sum() + gold.sum())

        assert f1(threshold(p, gold)) == pytest.approx(max(f1(c) for c in np.linspace(-0.005, 1, 202)))
    assert threshold(np.array([0.9, 0.1]), np.array([1, 0])) == 0.5, "too few to say"


def test_the_bound_is_that_of_the_binomial() -> None:
    from scipy.stats import binom

    upper = metrics.binomial_upper(3, 50, 0.05)
    assert binom.cdf(3, 50, upper) == pytest.approx(0.05) and metrics.binomial_upper(0, 59, 0.05) <= 0.05 < metrics.binomial_upper(
        0, 58, 0.05
    )


def test_abstention_keeps_its_promise() -> None:
    """Confidences that are worth what they say: how often is the true error above the one that was asked for?"""
    risk, broken, found = 0.1, 0, 0
    grid = np.linspace(0.5, 1, 2001)
    for _ in range(300):
        sure = RANDOM.uniform(0.5, 1, 2000)
        cut = abstention(sure, RANDOM.random(2000) < sure, risk)
        found += math.isfinite(cut)
        broken += math.isfinite(cut) and (1 - grid[grid >= cut]).mean() > risk
    assert found > 250 and broken / 300 <= 1 - CONFIDENCE
    assert abstention(np.full(500, 0.9), np.ones(500, bool), 0.05) == 0.9, "equals are answered together"
    assert abstention(np.linspace(0.5, 1, 500), np.zeros(500, bool), 0.05) == math.inf


def test_a_promise_that_cannot_be_kept_is_refused_before_training() -> None:
    with pytest.raises(BadInput, match=r"task.risk=0.05: 40 held-out examples cannot promise that; at least (\d+)") as error:
        refuse_too_few(40, 0.05)
    least = int(str(error.value).split("at least ")[1].split()[0])
    refuse_too_few(least, 0.05)
    with pytest.raises(BadInput):
        refuse_too_few(least - 1, 0.05)
    with pytest.raises(BadInput, match="there are none"):
        refuse_too_few(None, 0.05)
    assert math.isfinite(abstention(np.ones(least), np.ones(least, bool), 0.05))


def test_scores_are_those_of_plain_formulas() -> None:
    logits, target = drawn(500, 3, 2.0)
    labels = ["a", "b", "c"]
    fitted = fit(logits, target, labels, 0.2)
    cool = logits / fitted.temperature
    p = np.exp(cool) / np.exp(cool).sum(1, keepdims=True)
    said = [fitted.verdict(z, labels, labels[y], False) for z, y in zip(cool, target, strict=True)]
    scores = fitted.scores(p.argmax(1) == target, [fitted.kept(s, False)[1:] for s in said])
    assert scores["nll"] == pytest.approx(-np.log(p[np.arange(500), target]).mean(), abs=1e-5)
    assert scores["nll"] == pytest.approx(fitted.facts["nll"], abs=1e-5)
    assert scores["brier"] == pytest.approx(((p - np.eye(3)[target]) ** 2).sum(1).mean(), abs=1e-5)
    assert scores["ece"] == pytest.approx(fitted.facts["ece"], abs=1e-4)
    assert scores["ece_before"] == pytest.approx(fitted.facts["ece_before"], abs=1e-4) and scores["ece"] < scores["ece_before"]
    answered = p.max(1) >= fitted.confident
    assert scores["abstained"] == pytest.approx(1 - answered.mean()) and 0 < scores["abstained"] < 1
    assert scores["error_on_answered"] == pytest.approx((p.argmax(1) != target)[answered].mean())


def test_several_labels_are_scored_label_by_label() -> None:
    logits = RANDOM.normal(size=(400, 3)) * 4
    marks = (RANDOM.random(logits.shape) < 1 / (1 + np.exp(-logits / 2 + 0.5))).astype(np.int64)
    fitted = fit(logits, marks, ["a", "b", "c"], None)
    assert fitted.facts["macro_f1"] >= fitted.facts["macro_f1_before"] and fitted.thresholds != [0.5] * 3
    said = [fitted.verdict(z / fitted.temperature, ["a", "b", "c"], [], True) for z in logits]
    scores = fitted.scores(marks, [fitted.kept(s, True)[1:] for s in said])
    assert scores["ece"] == pytest.approx(fitted.facts["ece"], abs=1e-4) and scores["nll"] == pytest.approx(fitted.facts["nll"], abs=1e-4)
    assert scores["ece_before"] == pytest.approx(fitted.facts["ece_before"], abs=1e-4)


def test_the_last_layer_takes_the_temperature() -> None:
    head = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3), torch.nn.Dropout(0.5)).eval()
    x = torch.randn(5, 4)
    before, layer = head(x), last_linear(head, 3)
    assert layer is head[2] and last_linear(head, 7) is None
    fold(layer, 2.5)
    assert torch.allclose(head(x) * 2.5, before, atol=1e-6)


@pytest.mark.parametrize("confident", [None, 0.7, math.inf])
def test_the_file_says_it_all(tmp_path: Path, confident) -> None:
    kept = Calibration(1.7, [0.2, 0.5], confident, {"rows": 3, "risk": 0.1})
    kept.save(tmp_path, ["b", "a"])
    assert Calibration.load(tmp_path, ["b", "a"]) == kept
    assert Calibration.load(tmp_path, ["a", "b"]).thresholds == [0.5, 0.2], "by name, not by place"
    assert Calibration.load(tmp_path / "none", ["a"]) == Calibration()


def hard(count: int, seed: int = 0) -> list[dict]:
    """Every third label is of chance."""
    found = rows(count, seed)
    return [r if i % 3 else {**r, "label": ("cat", "dog", "ship")[i % 7 % 3]} for i, r in enumerate(found)]


def test_a_run_is_calibrated_and_so_is_what_leaves_it(ssl, tmp_path: Path) -> None:
    data = [f"data.{s}={write_jsonl(tmp_path / f'{s}.jsonl', hard(n, n))}" for s, n in (("train", 150), ("valid", 200), ("test", 120))]
    done = ssl(
        "finetune", *data, *TINY, "trainer.steps=30", "baseline=false", "run.dir=run", "task.risk=0.4", "dropout=0", "optimizer.lr=0.003"
    )
    assert done.code == 0 and "calibrated on 200 held-out examples: temperature" in done.err, done.err
    told, test = json.loads(Path("run/model/calibration.json").read_text()), done.result["test"]
    assert told["temperature"] > 1.05 and told["nll"] < told["nll_before"] and told["folded"]
    assert test["nll"] < 1.2 and {"ece", "ece_before", "brier", "abstained", "error_on_answered"} <= test.keys()
    recorded = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    assert test["abstained"] == pytest.approx(np.mean([r["abstained"] for r in recorded]))
    assert all(r["abstained"] == (max(r["probabilities"].values()) < told["abstain_below"]) for r in recorded)
    assert json.loads(Path("run/receipts.json").read_text())["calibration"]["temperature"] == told["temperature"]

    again = ssl("evaluate", "run=run", "out=again")
    numbers = {k: v for k, v in test.items() if isinstance(v, float)}
    assert again.code == 0 and {k: again.result["test"][k] for k in numbers} == pytest.approx(numbers, abs=2e-3), "evaluation obeys it"
    for format in ("hf", "torch"):
        assert ssl("export", "run=run", f"format={format}", f"out={format}").code == 0
        assert json.loads(Path(format, "calibration.json").read_text()) == told
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    plain = AutoModelForSequenceClassification.from_pretrained("hf")
    coded = AutoTokenizer.from_pretrained("hf")([r["input"] for r in recorded], padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = plain(**coded).logits.softmax(-1)
    ours = torch.tensor([list(r["probabilities"].values()) for r in recorded])
    assert torch.allclose(ours, theirs, atol=1e-3), "plain transformers gives the calibrated probabilities"


def test_without_held_out_examples_it_says_so(ssl, labelled: Path) -> None:
    done = ssl("finetune", f"data.train={labelled}", "data.shots=5", *TINY, "trainer.steps=2", "baseline=false", "run.dir=run")
    assert done.code == 0 and "not calibrated: no examples were held out" in done.err
    assert json.loads(Path("run/model/calibration.json").read_text())["temperature"] is None
    done = ssl("finetune", f"data.train={labelled}", "data.shots=5", *TINY, "task.risk=0.1", "run.dir=other")
    assert done.code == 2 and "task.risk=0.1: needs held-out examples" in done.err
    done = ssl("finetune", f"data.train={labelled}", *TINY, "task.labelling=multi", "task.risk=0.1", "run.dir=other")
    assert done.code == 2 and "risk and labelling=multi" in done.err


def test_few_held_out_examples_choose_no_weights(typed, labelled: Path, tmp_path: Path) -> None:
    """Of 45, which checkpoint is best is mostly chance; who asks for patience gets it all the same."""
    quick = [*TINY, "trainer.steps=4", "trainer.eval_every=1", "trainer.seeds=1", "baseline=false", "leaks=false", "errors=false"]
    found = {}
    for name, count, more in (("few", 45, []), ("asked", 45, ["trainer.patience=9"]), ("many", 50, [])):
        valid = write_jsonl(tmp_path / f"{name}.jsonl", rows(count, seed=9))
        done = typed("finetune", f"data.train={labelled}", f"data.valid={valid}", *quick, *more, f"run.dir={name}")
        assert done.code == 0, done.err
        found[name] = (done.result["train"]["best_step"] is None, "too few to choose weights by" in done.err)
    assert found == {"few": (True, True), "asked": (False, False), "many": (False, False)}
    windows = ["data.too_long=window", "data.max_length=16"]  # of an example that is long; examples are what is counted
    long = write_jsonl(tmp_path / "long.jsonl", [{**row, "text": " ".join([row["text"]] * 9)} for row in rows(30, seed=9)])
    done = typed("finetune", f"data.train={labelled}", f"data.valid={long}", *quick, *windows, "run.dir=windows")
    assert done.code == 0 and done.result["train"]["best_step"] is None and "30 examples are too few" in done.err, done.err

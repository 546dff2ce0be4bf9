"""Labels saved: planted curves are read back, flat ones are not taken for a gain, and the verb goes from runs to a sentence."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from sslcli.commands.curve import _starts
from sslcli.evidence import efficiency, saved
from sslcli.evidence.efficiency import Curve, Reading, apart, counts_of, read, resampled, rises
from sslcli.evidence.verdict import Origin, compared
from sslcli.objectives.label_propagation import LabelPropagation
from sslcli.report.sentences import EN
from sslcli.schema import Part
from tests.conftest import TINY, rows, write_jsonl
from tests.planted import BUDGETS, planted

NAMES = ("pretrained", "from scratch")


def told(curves: dict[str, Curve], budgets: np.ndarray = BUDGETS, at: float | None = None) -> tuple[Reading, str]:
    """As `ssl curve` reads them."""
    drawn = resampled(curves)
    reading = read(drawn, budgets, *NAMES, (NAMES[1], at or float(budgets[-1])))
    return reading, saved.told(reading, NAMES, rises(drawn) or apart(drawn), budgets, None)["verdict"]


def test_isotonic_is_that_of_scikit_learn() -> None:
    values = np.random.default_rng(0).normal(size=(50, 7)) + np.linspace(0, 1, 7)
    ours = efficiency.isotonic(values)
    for row, fitted in zip(values, ours, strict=True):
        np.testing.assert_allclose(fitted, IsotonicRegression().fit_transform(np.arange(7), row), atol=1e-12)


def test_needed_labels_by_hand() -> None:
    places, values = np.log([1.0, 10, 100]), np.array([[0.1, 0.5, 0.9]])
    assert np.exp(efficiency.needed(places, values, np.array([0.5]))) == pytest.approx(10)
    assert np.exp(efficiency.needed(places, values, np.array([0.7]))) == pytest.approx(math.sqrt(1000))
    assert efficiency.needed(places, values, np.array([0.95])) == np.inf  # never reached
    assert efficiency.needed(places, values, np.array([0.05])) == -np.inf  # with fewer than the fewest


@pytest.mark.parametrize("kind", ["single", "several", "labels like tags", "without a match", "tags"])
def test_counts_add_up_to_the_score(tmp_path: Path, kind: str) -> None:
    pairs = {
        "single": ([("a", "a"), ("b", "a"), ("a", "b"), ("b", "b")], 0.5),
        "several": ([(["x"], ["x", "y"]), (["y", "z"], ["y"])], 2 * 2 / (3 + 3)),
        "labels like tags": ([(["A-side"], ["A-side", "B-side"]), (["O"], ["O"])], 2 * 2 / (2 + 3)),
        "without a match": ([("a", "a"), ("b", "a"), ("a", None)], 0.5),
        "tags": ([(["B-PER", "I-PER", "O"], ["B-PER", "I-PER", "O"]), (["B-LOC", "O"], ["B-PER", "O"])], 2 * 1 / (2 + 2)),
    }[kind]
    words = ["some", "words"] if kind == "tags" else "some words"
    lines = [{"prediction": said, "gold": gold, "input": words, "rank": -1 if gold is None else 0} for said, gold in pairs[0]]
    write_jsonl(tmp_path / "p.jsonl", lines)
    assert efficiency.score(counts_of(tmp_path / "p.jsonl").sum(0)) == pytest.approx(pairs[1])


@pytest.mark.parametrize("truth", [4.0, 2.5])
def test_intervals_cover_what_was_planted(truth: float) -> None:
    found = [told(planted(seed, truth))[0] for seed in range(20)]
    assert sum(r.saved_interval[0] <= 1 - 1 / truth <= r.saved_interval[1] for r in found) >= 18
    assert abs(np.median([r.saved for r in found]) - (1 - 1 / truth)) < 0.08


def test_a_large_saving_is_told_and_a_harm_too() -> None:
    assert [told(planted(seed, 8.0, noise=0.006))[1] for seed in range(5)] == ["saved"] * 5
    assert [told(planted(seed, 0.2, noise=0.006))[1] for seed in range(5)] == ["hurt"] * 5


@pytest.mark.parametrize("flat", [False, True], ids=["unrelated corpus", "shuffled labels"])
def test_nothing_is_not_taken_for_a_gain(flat: bool) -> None:
    found = [told(planted(seed, 1.0, flat=flat))[1] for seed in range(10)]
    assert "saved" not in found


def test_as_many_labels_save_exactly_nothing() -> None:
    """exp(log(200)) is not 200: nothing is not a little less than nothing."""
    logs = np.log(np.array([200.0] * 9))
    assert efficiency._saved(logs, logs + np.inf, np.array([20, 200]))[1][0] == 0.0
    assert efficiency._saved(logs, logs, np.array([20, 200])) == (0.0, (0.0, 0.0))


def test_beyond_the_budgets_only_the_side_is_known() -> None:
    curves = planted(0, 1000.0, noise=0.003)
    reading = read(resampled(curves), BUDGETS, *NAMES, (NAMES[0], float(BUDGETS[-1])))
    assert reading.many == np.inf and reading.many_interval == (float(BUDGETS[-1]), np.inf)
    words = saved.told(reading, NAMES, True, BUDGETS, 0.5)["sentence"]
    assert f"more than {BUDGETS[-1]:,}" in words and f">= {BUDGETS[-1]:,}" in words and "worth" not in words
    assert saved.plain({"x": [reading.many, 1.0]}) == {"x": [None, 1.0]}


def test_far_ahead_from_the_fewest_labels_on() -> None:
    """The start never comes to what pretraining has with the fewest labels, and neither curve need rise."""
    random, budgets = np.random.default_rng(0), np.array([8, 16, 32, 64])
    for one, other in (((0.82, 0.9), (0.13, 0.18)), ((0.85, 0.85), (0.15, 0.15))):
        truth = {"pretrained": np.linspace(*one, 4), "from scratch": np.linspace(*other, 4)}
        drawn = {name: (random.random((3, 4, 60)) < p[:, None]).astype(float) for name, p in truth.items()}
        scores = resampled({name: Curve(np.stack([x, np.ones_like(x)], -1)) for name, x in drawn.items()})
        reading = read(scores, budgets, *NAMES, (NAMES[1], 64.0))
        found = saved.told(reading, NAMES, rises(scores) or apart(scores), budgets, 0.5)
        assert apart(scores) and found["verdict"] == "saved" and found["labels_saved"] == 56 and found["at_least"]
        assert "pretrained with at most 8 labels" in found["sentence"] and "at least 56 labels saved" in found["sentence"]
        assert "worth at least 28.00" in found["sentence"] and found["money_saved"] == 28


def test_money_and_shares_in_the_sentence() -> None:
    reading = Reading(0.8, 64, (50, 80), 410, (410, 410), 1 - 64 / 410, (0.8, 0.88))
    words = saved.told(reading, NAMES, True, BUDGETS, 0.5)["sentence"]
    assert words == (
        "pretrained with 64 labels (95 % interval 50 to 80) = from scratch with 410; 84% of the labels saved (80% to 88%); "
        "worth 173.00 at 0.50 a label"
    )


def test_a_verdict_is_paired_by_rows() -> None:
    random = np.random.default_rng(0)
    start = (random.random(400) < 0.6).astype(float)
    better = np.maximum(start, random.random(400) < 0.1)  # never worse on any row
    counts = [np.stack([x, np.ones(400)], -1) for x in (better, start)]
    found = compared(*counts)
    assert found["verdict"] == "helped" and found["difference_interval"][0] > 0
    assert compared(*counts[::-1])["verdict"] == "hurt"
    assert compared(counts[0], counts[0])["verdict"] == "no difference"


def test_the_verb_from_runs_to_a_sentence(ssl, tmp_path: Path, corpus: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs run in this process here: a process each is the sweep's business."""
    from sslcli.commands import sweep

    class Now:
        def __init__(self, words: list[str], **_: object):
            self.returncode = ssl(*words[3:]).code

        def poll(self) -> int:
            return self.returncode

    test = write_jsonl(tmp_path / "test.jsonl", rows(30, seed=1))
    assert ssl("pretrain", f"data.train={corpus}", *TINY, "trainer.steps=3", "run.dir=lm").code == 0
    assert Origin.of("lm") == Origin("lm", None, 0)
    words = ["from=lm", f"data.train={labelled}", "curve.labels=[2,8,all]", "curve.seeds=2", "trainer.steps=2", "curve.label_price=2"]
    assert "data.test: missing" in ssl("curve", *words).err
    assert "data.shots: curve.labels says" in ssl("curve", *words, f"data.test={test}", "data.shots=3").err
    refused = ssl("curve", *words, f"data.test={test}", "task=text_similarity")
    assert refused.code == 2 and "task=text_similarity: a curve counts right answers" in refused.err and not Path("lm-curve").exists()
    refused = ssl("curve", *words, f"data.test={test}", "objective=label_propagation")
    assert refused.code == 2 and "curve.labels: with all rows labelled none are left for objective=" in refused.err
    refused = ssl("curve", *words, f"data.test={test}", "curve.unlabelled=pretrained")
    assert refused.code == 2 and "no loss learns from unlabelled rows" in refused.err and not Path("lm-curve").exists()
    monkeypatch.setattr(sweep.warm, "POSSIBLE", False)
    monkeypatch.setattr(sweep.subprocess, "Popen", Now)
    done = ssl("curve", *words, f"data.test={test}")
    assert done.code == 0, done.err
    found = json.loads(Path("lm-curve/curve.json").read_text())
    assert done.result["sentence"] == found["sentence"] and found["sentence"] in done.err
    assert found["steps"] == [2, 2] and "runs of 2 steps; from scratch may want more: the same with trainer.steps=6 " in done.err
    arms = found["arms"]
    assert [p["labels"] for p in arms["pretrained"]] == [6, 24, 90] == [p["labels"] for p in arms["from scratch"]]
    assert all(0 <= end <= 1 for row in arms.values() for p in row for end in p["interval"])
    assert len(arms) == 3 and all(len(p["scores"]) == 2 for row in arms.values() for p in row)  # and TF-IDF
    for start, shots, _, seed, score, run in found["runs"]:
        metrics, config = json.loads(Path(run, "metrics.json").read_text()), Path(run, "config.yaml").read_text()
        assert metrics["test"]["accuracy"] == pytest.approx(score) and f"seed: {seed}" in config
        assert ("init: random" in config) == (start == "from scratch") and (shots == "all" or f"shots: {shots}" in config)
    assert Path("lm-curve/curve.csv").read_text().count("\n") == 13 and Path("lm-curve/curve.png").stat().st_size > 1000
    before = Path("lm-curve/000/metrics.json").stat().st_mtime_ns
    assert ssl("curve", *words, f"data.test={test}").code == 0  # nothing is run again
    assert Path("lm-curve/000/metrics.json").stat().st_mtime_ns == before


def test_unlabelled_rows_may_be_for_the_pretrained_start_alone() -> None:
    own = [
        "objective=label_propagation",
        "objective.reach=0.9",
        "augment@objective.strong=typos",
        "joint.weight=2",
        "data.unlabelled=more.txt",
    ]
    passed, objective = ["data.train=a.csv", *own, "data.unlabelled=more.txt"], Part("objective", LabelPropagation, {})
    both = _starts("runs/x", passed, objective, "both")
    assert both == {"pretrained": [*passed, "from=runs/x"], "from scratch": [*passed, "from=runs/x", "init=random"]}
    one = _starts("runs/x", passed, objective, "pretrained")
    assert list(one) == ["pretrained and label_propagation", "from scratch"]
    assert list(one.values()) == [[*passed, "from=runs/x"], ["data.train=a.csv", "objective=null", "from=runs/x", "init=random"]]


def test_a_start_that_gets_worse_with_more_labels_was_not_trained_to_its_end() -> None:
    points = [{"labels": n, "score": s, "interval": [s - 0.01, s + 0.01]} for n, s in ((200, 0.62), (300, 0.724), (2000, 0.693))]
    said = saved.unripe(points, "from scratch")
    assert said is not None and "0.724 with 300 labels and 0.693 with 2,000" in said
    assert saved.unripe(points[:2], "from scratch") is None and saved.unripe(points[::-1][:2], "from scratch") is None
    assert saved.unripe([{**p, "interval": [0.0, 1.0]} for p in points], "from scratch") is None, "within chance"


def test_finetune_says_whether_pretraining_helped(ssl, corpus: Path, labelled: Path) -> None:
    assert ssl("pretrain", f"data.train={corpus}", *TINY, "trainer.steps=3", "run.dir=lm").code == 0
    words = ["finetune", "from=lm", f"data.train={labelled}", "trainer.steps=2"]
    done = ssl(*words, "run.dir=a")
    found = done.result["verdict"]
    assert found["verdict"] in ("helped", "no difference", "hurt") and "frozen features" in done.err
    assert found["difference"] == pytest.approx(found["pretrained"] - found["start"], abs=1e-5) and found["rows"] > 0
    said = EN[found["verdict"]].split("{")[0]
    assert said in Path("a/report.html").read_text(encoding="utf-8"), "the page says it too"
    assert "verdict" not in ssl(*words, "run.dir=b", "verdict=false").result
    assert said not in Path("b/report.html").read_text(encoding="utf-8")
    assert "verdict" not in ssl(*words, "run.dir=c", "init=random").result
    refused = ssl(*words, "run.dir=d", "init=random", "verdict=true")
    assert refused.code == 2 and "verdict=true: from= is to name a pretraining run" in refused.err

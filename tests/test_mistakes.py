"""Error analysis: counts by hand, slices whose answer is planted, and labels that were flipped on purpose."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import hypergeom
from sklearn.datasets import load_digits

from sslcli.commands.analysis import told as said_of
from sslcli.errors import BadInput
from sslcli.evidence import suspicious
from sslcli.evidence.mistakes import BOUNDS, NOTHING, Mistakes, holm, slices
from sslcli.report.page import Page
from sslcli.report.record import Record
from sslcli.spreadsheet import write_table
from tests.conftest import TINY, rows, write_jsonl


def of(records: list[dict]) -> dict:
    return Mistakes.of(iter([{"id": i, **r} for i, r in enumerate(records)]), {}).summary()


def test_confusions_of_one_label_are_counted_with_their_shares() -> None:
    said = [("a", "a"), ("a", "b"), ("a", "b"), ("b", "a"), ("b", "b")]
    found = of([{"input": "x", "gold": g, "prediction": p, "loss": 1.0} for g, p in said])
    assert [(c["gold"], c["prediction"], c["count"]) for c in found["confusions"]] == [("a", "b", 2), ("b", "a", 1)]
    assert found["confusions"][0]["share_of_errors"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["confusions"][0]["share_of_label"] == pytest.approx(2 / 3, abs=1e-6)
    assert (found["wrong"], found["rows"], found["value"]) == (3, 5, 0.4)


def test_confusions_of_several_labels_and_of_tags() -> None:
    several = of(
        [
            {"input": "x", "gold": g, "prediction": p, "probabilities": {"a": 0.1, "b": 0.9}}
            for g, p in ((["a"], ["b"]), (["a", "b"], ["b"]), ([], ["b"]), (["a"], ["a"]), ([], []))
        ]
    )
    assert {(c["gold"], c["prediction"]): c["count"] for c in several["confusions"]} == {
        ("a", "b"): 1,
        ("a", NOTHING): 1,
        (NOTHING, "b"): 1,
    }
    words = {
        "input": ["in", "New", "York", "Bob"],
        "gold": ["O", "B-LOC", "I-LOC", "B-PER"],
        "prediction": ["O", "B-LOC", "B-LOC", "O"],
        "loss": 2.0,
    }
    tagged = of([words])
    assert {(c["gold"], c["prediction"]): c["share_of_label"] for c in tagged["confusions"]} == {("LOC", BOUNDS): 0.5, ("PER", "O"): 1.0}
    assert tagged["worst"][0]["gold"] == "New/B-LOC, York/I-LOC, Bob/B-PER" and tagged["score"] == "f1"


def test_the_worst_rows_are_those_of_most_loss_with_their_place() -> None:
    records = [
        {"input": f"text {i}", "gold": "a", "prediction": "b", "loss": float(i % 97), "file": "t.csv", "record": i + 1} for i in range(300)
    ]
    worst = of(records)["worst"]
    assert [w["loss"] for w in worst] == sorted((float(i % 97) for i in range(300)), reverse=True)[:50]
    assert worst[0] == {"id": 96, "file": "t.csv", "record": 97, "input": "text 96", "gold": "a", "prediction": "b", "loss": 96.0}


def test_a_slice_is_judged_as_by_the_hypergeometric_distribution() -> None:
    right = np.repeat([1, 0, 1, 0], [12, 8, 70, 10])  # 12 of 20 here, 70 of 80 elsewhere
    here = np.arange(100) < 20
    found = slices(np.stack([right, np.ones(100)], 1), {"file": {"one": here, "other": ~here}})
    one = next(s for s in found if s["slice"] == "one")
    assert one["p"] == pytest.approx(hypergeom(100, 82, 20).cdf(12), abs=0.003)
    assert one["weak"] and one["p_adjusted"] == pytest.approx(2 * one["p"], abs=1e-5) and (one["score"], one["rest"]) == (0.6, 0.875)
    low, high = one["interval"]
    assert (low, high) == pytest.approx((0.3605, 0.8088), abs=1e-3)  # Clopper-Pearson of 12 of 20
    assert not next(s for s in found if s["slice"] == "other")["weak"]


def test_slices_of_chance_are_seldom_called_weak() -> None:
    """Ten random slices of rows that are right at random: any of them in about one of twenty draws."""
    alarms = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        counts = np.stack([random.random(400) < 0.8, np.ones(400)], 1).astype(float)
        which = random.integers(0, 10, 400)
        alarms += any(s["weak"] for s in slices(counts, {"file": {str(i): which == i for i in range(10)}}, seed))
    assert alarms <= 4  # 1 is expected; more than 4 in 0.3 % of such tests


def test_holm_is_the_textbooks() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and max(holm([0.9, 0.8])) == 1.0


def test_confident_learning_is_the_papers_example() -> None:
    """Thresholds are the mean self-confidence of each label; a row counts as of the likeliest class over its threshold."""
    p = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.1, 0.9], [0.3, 0.7], [0.55, 0.45]])
    found = suspicious.confident(p, np.array([0, 0, 0, 1, 1, 1]))
    # thresholds: (0.9 + 0.7 + 0.2) / 3 = 0.6, and (0.9 + 0.7 + 0.45) / 3 = 0.683; row 5 reaches neither
    assert [(f.row, f.suggested) for f in found] == [(2, 1)]
    assert found[0].margin == pytest.approx(0.6) and found[0].confidence == 0.8


def test_flipped_labels_are_found_and_clean_ones_are_left_alone() -> None:
    x, y = load_digits(return_X_y=True)
    x, y = suspicious.directions(x[:900]), y[:900].copy()
    clean = suspicious.confident(suspicious.out_of_fold(x, y, 10), y)
    flipped = np.random.default_rng(0).choice(900, 45, replace=False)
    y[flipped] = (y[flipped] + 1) % 10
    said = suspicious.out_of_fold(x, y, 10)
    found = [f.row for f in suspicious.confident(said, y)]
    right = set(found) & set(flipped)
    assert len(right) >= 25 and len(right) >= 0.9 * len(found) and len(clean) < 5
    assert np.allclose(said.sum(1), 1) and (suspicious.best([x, np.zeros_like(x)], y, 10) == said).all()


def test_no_row_is_judged_by_a_probe_that_saw_it_or_its_group() -> None:
    """Every row has a vector and a label of its own group: known only by who saw it."""
    group = np.repeat(np.arange(20), 5)
    label = np.random.default_rng(0).integers(0, 2, 20)[group]
    own = np.eye(20)[group]
    assert (suspicious.out_of_fold(own, label, 2)[np.arange(100), label] > 0.5).mean() > 0.9
    apart = suspicious.out_of_fold(own, label, 2, group)
    assert np.ptp(apart[:, 0].reshape(20, 5), axis=1).max() < 1e-6 and len({round(float(v), 6) for v in apart[:, 0]}) <= 5


def test_a_spreadsheet_works_out_nothing(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", ("a", "b"), [["=1+1", -3], ["@x", None]])
    assert list(csv.reader((tmp_path / "t.csv").open())) == [["a", "b"], ["'=1+1", "-3"], ["'@x", ""]]


def test_a_fine_tuning_and_an_evaluation_leave_their_errors(ssl, tmp_path: Path) -> None:
    """A label that is wrong in the training file is listed with its record; the page shows it in both languages; a column cuts slices."""
    train = [{**row, "origin": "web" if i % 2 else "mail"} for i, row in enumerate(rows(90))]
    train[40]["label"] = {"cat": "dog", "dog": "ship", "ship": "cat"}[train[40]["label"]]
    write_jsonl(tmp_path / "train.jsonl", train)
    write_jsonl(tmp_path / "test.jsonl", [{**row, "origin": "web" if i % 2 else "mail"} for i, row in enumerate(rows(60, 5))])
    common = ["data=files", "data.train=train.jsonl", "data.test=test.jsonl", "data.columns.source=origin"]
    done = ssl("finetune", *common, *TINY, "trainer.steps=5", "baseline=false", "leaks=false", "run.dir=run")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "run/errors.json").read_text())
    assert {s["slice"] for s in found["slices"] if s["by"] == "source"} == {"web", "mail"} and found["rows"] == 60
    listed = list(csv.DictReader((tmp_path / "run/suspicious.csv").open()))
    assert (listed[0]["file"], listed[0]["record"], listed[0]["suggested"]) == ("train.jsonl", "41", rows(90)[40]["label"])
    assert "train.jsonl:41" in done.err and found["suspicious"]["checked"] == 150
    for language in ("en", "zh"):
        page = Page(language=language).html([Record.open(tmp_path / "run")])
        assert "train.jsonl:41" in page and ("Labels to look at" in page) == (language == "en")
    (tmp_path / "run/errors.json").write_text(json.dumps({**found, "suspicious": {**found["suspicious"], "judged": False}}))
    page = Page(language="en").html([Record.open(tmp_path / "run")])
    assert "train.jsonl:41" not in page and "too little to judge" in page
    other = ssl("evaluate", "run=run", "data.test=test.jsonl", "out=other")
    assert other.code == 0 and json.loads((tmp_path / "other/errors.json").read_text())["suspicious"]["checked"] == 60


def test_a_source_that_is_not_there_is_one_line(ssl, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", rows(30))
    done = ssl("finetune", "data=files", "data.train=train.jsonl", "data.columns.source=orign", *TINY, "run.dir=run")
    assert done.code == BadInput.code and "no column orign" in done.err and "data.columns.source" in done.err


def test_a_probe_that_is_mostly_wrong_names_nobody() -> None:
    summary = {"wrong": 1, "rows": 4, "of": "test", "score": "accuracy", "confusions": [], "slices": []}
    row = {"part": "test", "file": "a.csv", "record": 7, "label": "x", "suggested": "y", "text": "a text"}
    sure, weak = ({"count": 1, "checked": 4, "agrees": a, "judged": a > 0.5, "first": [row]} for a in (0.8, 0.49))
    assert "a.csv:7: x, looks like y" in said_of(summary, sure)[-1]
    assert said_of(summary, weak)[-1].endswith("agrees with 49% only, too little to judge: most of these are its own errors")

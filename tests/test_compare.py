"""Comparisons: a sweep over the values of one key that ends in one table, with differences to the first of them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from sslcli.commands.job import Job
from sslcli.commands.sweep import _comparison, _jobs, unfit
from sslcli.commands.sweep_table import report
from sslcli.comparison import Comparison
from sslcli.config import compose
from sslcli.help import choices
from sslcli.log import Screen
from tests.conftest import CONFIGS, TINY

PRESETS = sorted(path.stem for path in (CONFIGS / "compare").glob("*.yaml"))


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_of_every_preset_composes(name: str) -> None:
    comparison, rest = _comparison([f"+compare={name}", "data.shots=8"], None)
    assert comparison is not None
    jobs = _jobs(rest, Path())
    assert [job.choice["seed"] for job in jobs[:3]] == ["0", "1", "2"] and len(jobs) == 3 * len(comparison.values)
    for value in comparison.values:
        composed = compose("finetune", ["data.shots=8", f"{comparison.axis}={value}"])
        assert not composed.problems
        node = composed.tree
        for key in comparison.axis.split("."):
            node = node.get(key)
        assert (node["kind"] if isinstance(node, dict) else str(node or "null").lower()) == value


def test_presets_leave_no_method_out() -> None:
    """A method that is added later is compared too."""
    from sslcli.tasks.text_classification import CLASSIFIERS

    assert set(Comparison.open("heads", None).values) == set(CLASSIFIERS) - {"zero_shot"}, "which learns nothing: fine-tuning refuses it"
    for name in set(PRESETS) & {"peft", "adversarial"}:
        assert set(Comparison.open(name, None).values) - {"null"} == set(choices()[name])


@pytest.mark.usefixtures("warm_sweeps")
def test_two_heads_are_compared_by_a_real_sweep(ssl, labelled: Path) -> None:
    words = ["finetune", "-m", "+compare=heads", f"data.train={labelled}", f"data.test={labelled}", *TINY, "trainer.steps=2"]
    done = ssl(*words, "task.head=linear,prototype", "seed=0,1", "sweep.dir=sweep")
    assert done.code == 0, done.err
    compared = json.loads(Path("sweep/compare.json").read_text())
    linear, prototype, cheap = compared["rows"]
    assert (compared["axis"], compared["plain"], compared["score"]) == ("task.head", "linear", "test_accuracy")
    assert linear["trainable_share"] == 1 and prototype["trainable_share"] == 0 and cheap["baseline"]
    rows = json.loads(Path("sweep/sweep.json").read_text())
    for head, row in (("linear", linear), ("prototype", prototype)):
        own = [r for r in rows if r["task.head"] == head]
        metrics = [json.loads((Path(r["run"]) / "metrics.json").read_text()) for r in own]
        assert row["mean"] == pytest.approx(np.mean([m["test"]["accuracy"] for m in metrics]))
        assert row["peak_memory_bytes"] == max(m["train"]["peak_memory_bytes"] for m in metrics)
        assert row["train_seconds"] == pytest.approx(np.mean([m["train"]["seconds"] for m in metrics]))
    with open("sweep/sweep.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert {"test_macro_f1", "trainable_share", "peak_memory_bytes", "train_seconds"} <= set(lines[0])
    for word in ("against", "0.00%", "100.00%", "test accuracy", f"{linear['mean']:.3f} ±"):
        assert word in " ".join(done.err.split()), (word, done.err)


@pytest.mark.usefixtures("warm_sweeps")
def test_a_method_of_a_list_that_does_not_fit_this_network_is_no_failure(ssl, labelled: Path) -> None:
    Path("own/compare").mkdir(parents=True)
    Path("own/compare/mine.yaml").write_text("axis: task.head\nvalues: [linear, prompt]\n")  # a prompt asks a pretrained language model
    words = ["finetune", "-m", f"data.train={labelled}", f"data.test={labelled}", *TINY, "trainer.steps=2", "seed=0", "--config-dir", "own"]
    done = ssl(*words, "+compare=mine", "sweep.dir=a")
    assert done.code == 0 and "bad input" in done.err and "asks a pretrained language model" in " ".join(done.err.split()), done.err
    assert ssl(*words, "+compare=mine", "task.head=linear,prompt", "sweep.dir=a").code == 1, "named by the user, it is one"


def test_only_a_method_can_be_unfit_not_what_else_was_swept() -> None:
    heads = Comparison("heads", "task.head", ["linear", "prompt"])
    codes = {("linear", "1"): 0, ("prompt", "1"): 2, ("linear", "-1"): 2, ("prompt", "-1"): 2, ("linear", "2"): 0, ("prompt", "2"): 4}
    jobs = [Job("", {"task.head": head, "optimizer.lr": lr}, [], Path(), 0, code) for (head, lr), code in codes.items()]
    assert [unfit(job, jobs, heads) for job in jobs] == [False, True, False, False, False, False]


def _made(root: Path, value: str, seed: int, score: float, code: int = 0, split: str = "test", key: str = "accuracy") -> Job:
    """A job as one that has ended left it."""
    job = Job(f"{value} {seed}", {"peft": value, "seed": str(seed)}, [], root / f"{value}-{seed}", 0, code)
    job.folder.mkdir(parents=True)
    if code:
        job.log.write_text(f"a line\nerror: {value} does not fit\n")
    else:
        own = {key: score, f"{key}_interval": [score - 0.1, score + 0.1], "ece": 0.1, "report": {}}
        cheap = {"method": "TF-IDF", key: 0.5 + seed / 100}
        train = {"seconds": 10.0 + seed, "peak_memory_bytes": 1000 + seed}
        (job.folder / "metrics.json").write_text(json.dumps({split: own, "baseline": cheap, "train": train}))
        sizes = {"parameters": 1000, "trainable": 20 if value == "lora" else 1000}
        (job.folder / "receipts.json").write_text(json.dumps({"parameters": sizes}))
    job.read()
    return job


def _compared(root: Path, jobs: list[Job]) -> tuple[dict, dict[str, dict]]:
    report(root, jobs, Comparison("peft", "peft", list(dict.fromkeys(job.choice["peft"] for job in jobs))), Screen(quiet=True))
    compared = json.loads((root / "compare.json").read_text())
    return compared, {row["peft"]: row for row in compared["rows"]}


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    """The interval is that of Student's paired test: where it does not hold 0, that test's p is under 0.05."""
    plain, lora = [0.70, 0.80, 0.90], [0.71, 0.83, 0.92]
    jobs = [_made(tmp_path, v, s, x) for v, scores in (("null", plain), ("lora", lora)) for s, x in enumerate(scores)]
    compared, rows = _compared(tmp_path, jobs)
    assert compared["plain"] == "null" and rows["null"]["difference"] is None
    low, high = stats.ttest_rel(lora, plain).confidence_interval(0.95)
    assert rows["lora"]["difference"] == pytest.approx(0.02) and rows["lora"]["difference_interval"] == pytest.approx([low, high])
    low, high = stats.ttest_1samp(lora, 0).confidence_interval(0.95)
    assert rows["lora"]["mean"] == pytest.approx(0.82) and rows["lora"]["interval"] == pytest.approx([low, high])
    assert (rows["lora"]["trainable_share"], rows["null"]["trainable_share"]) == (0.02, 1.0)
    assert (rows["lora"]["peak_memory_bytes"], rows["lora"]["train_seconds"]) == (1002, 11.0)
    assert rows["TF-IDF"]["mean"] == pytest.approx(0.51) and rows["TF-IDF"]["difference"] == pytest.approx(0.51 - 0.8)


@pytest.fixture
def over_seeds(monkeypatch: pytest.MonkeyPatch) -> list[list]:
    """Rows of the table of that name."""
    rows: list[list] = []
    monkeypatch.setattr(Screen, "table", lambda _, title, __, shown: rows.extend(shown if title.startswith("over seeds") else []))
    return rows


def test_the_baseline_is_beside_its_own_setting(tmp_path: Path, over_seeds) -> None:
    """Two numbers of labels: what a cheap method makes of 32 is not held against what a network made of two."""
    jobs = []
    for shots, cheap, score in (("2", 0.3, 0.5), ("32", 0.9, 0.95)):
        for value in ("null", "lora"):
            made = [_made(tmp_path / shots, value, seed, score) for seed in (0, 1)]
            for job in made:
                job.choice |= {"data.shots": shots}
                job.cheap = {"test_accuracy": cheap}
            jobs += made
    compared, _ = _compared(tmp_path, jobs)
    found = [(row["data.shots"], row["mean"], row["difference"]) for row in compared["rows"] if row.get("baseline")]
    assert found == [("2", 0.3, pytest.approx(-0.2)), ("32", 0.9, pytest.approx(-0.05))]
    report(tmp_path, jobs, None, Screen(quiet=True))
    cheap_rows = [row[:5] for row in over_seeds if row[0] == "baseline" and row[2] == "test_accuracy"]
    assert cheap_rows == [["baseline", shots, "test_accuracy", 2, pytest.approx(cheap)] for shots, cheap in (("2", 0.3), ("32", 0.9))]


def test_an_interval_over_seeds_holds_its_mean(tmp_path: Path, over_seeds) -> None:
    """Of scores that are no shares too."""
    jobs = [_made(tmp_path, "null", seed, loss, split="valid", key="loss") for seed, loss in ((0, 4.7), (1, 4.9))]
    jobs += [_made(tmp_path, "lora", seed, s, key="spearman") for seed, s in ((0, -0.2), (1, -0.18))]
    report(tmp_path, jobs, None, Screen(quiet=True))
    ends = {row[1]: (row[3], *map(float, row[4].split(" to "))) for row in over_seeds if row[0] != "baseline"}
    assert {"valid_loss", "test_spearman"} <= set(ends) and all(low < mean < high for mean, low, high in ends.values()), ends


def test_what_failed_is_left_out_of_both_sides(tmp_path: Path) -> None:
    jobs = [_made(tmp_path, "null", 0, 0.5), _made(tmp_path, "null", 1, 0.7), _made(tmp_path, "lora", 0, 0.6)]
    jobs += [_made(tmp_path, "lora", 1, 0.0, code=4), *(_made(tmp_path, "vera", s, 0.0, code=2) for s in (0, 1))]
    rows = _compared(tmp_path, jobs)[1]
    assert rows["lora"]["failed"] == {"1": "diverged"} and rows["lora"]["difference"] == pytest.approx(0.1)
    assert rows["lora"]["interval"] == pytest.approx([0.5, 0.7]) and rows["lora"]["difference_interval"] is None
    assert rows["vera"]["mean"] is None and rows["vera"]["failed"] == {"0": "bad input", "1": "bad input"}


def test_a_plain_value_that_failed_leaves_scores_alone(tmp_path: Path) -> None:
    rows = _compared(tmp_path, [_made(tmp_path, "null", 0, 0, code=8), _made(tmp_path, "lora", 0, 0.6)])[1]
    assert rows["lora"]["mean"] == 0.6 and rows["lora"]["difference"] is None


@pytest.mark.parametrize("key", ["top1", "f1", "spearman", "recall@1", "loss"])
def test_the_score_is_the_headline_of_its_kind(tmp_path: Path, key: str) -> None:
    compared, _ = _compared(tmp_path, [_made(tmp_path, v, 0, 0.5, split="valid", key=key) for v in ("null", "lora")])
    assert compared["score"] == f"valid_{key}"


def test_each_reason_is_said_once(tmp_path: Path, capsys) -> None:
    jobs = [_made(tmp_path, "null", 0, 0.5), *(_made(tmp_path, "vera", s, 0.0, code=2) for s in (0, 1))]
    report(tmp_path, jobs, None, Screen())
    shown = capsys.readouterr().err
    assert shown.count("error: vera does not fit") == 1 and "vera-0, vera-1 bad input" in shown


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["+compare=heads"], "+compare=heads: a comparison is several runs; add -m"),
        (["compare=heads"], "compare=heads: a comparison is several runs; add -m"),
        (["-m", "+compare=head"], "compare=head: no such comparison; did you mean heads?"),
        (["-m", "+compare=heads,heads"], "compare=heads,heads: no such comparison"),
        (["-m", "+compare=heads", "task.head=linear"], "task.head=linear: compare=heads needs several values of it, the plain one first"),
        (["-m", "+compare=heads", "data=digits"], "task.head: no such key"),
        (["-m", "+compare=mine", "--config-dir", "mine"], "mine.yaml: expected axis: <a key> and values:"),
    ],
)
def test_what_cannot_be_compared_is_one_line(ssl, tmp_path: Path, words: list[str], expected: str) -> None:
    (tmp_path / "mine" / "compare").mkdir(parents=True)
    (tmp_path / "mine" / "compare" / "mine.yaml").write_text("axis: seed\n")
    done = ssl("finetune", *words)
    assert done.code == 2 and expected in done.err and len(done.err.strip().splitlines()) == 1, done.err
    assert not Path("sweeps").exists() and not Path("runs").exists()


def test_a_comparison_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare" / "starts.yaml").write_text("axis: task.start\nvalues: [probe, random]\n")
    comparison, rest = _comparison(["+compare=starts", "optimizer.lr=1e-4,3e-4", "seed=5"], tmp_path)
    assert comparison == Comparison("starts", "task.start", ["probe", "random"])
    assert [job.choice for job in _jobs(rest, Path())][:2] == [
        {"optimizer.lr": "0.0001", "task.start": "probe"}, {"optimizer.lr": "0.0001", "task.start": "random"},
    ]  # fmt: skip


def test_help_and_completion_name_comparisons(ssl) -> None:
    from sslcli.completion import complete

    assert "heads" in ssl("finetune", "--help").out and "+compare=heads" in ssl("finetune", "--help").out
    assert "+compare=" in complete("ssl finetune +comp") and "+compare=heads" in complete("ssl finetune +compare=h")

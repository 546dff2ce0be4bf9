"""What to label next: planted pools whose best rows are known, files that people and Label Studio read, and refusals."""

import csv
import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sslcli.commands import label_next
from sslcli.commands.finished import Finished
from sslcli.distributed import World
from sslcli.evaluation import answers
from sslcli.evidence import features, leaked, teaching
from sslcli.log import counted
from tests.conftest import TINY, rows, write_jsonl


def test_margins_are_the_gap_to_the_second() -> None:
    assert teaching.margins(np.array([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])) == pytest.approx([0.2, 1.0])


def test_the_choice_is_uncertain_and_spread_out() -> None:
    """Ten far groups, of which five are uncertain, with many copies in one: each uncertain group is asked once."""
    random = np.random.default_rng(0)
    group = np.repeat(np.arange(10), [30] + [4] * 9)
    vectors = 10 * np.eye(10)[group] + 0.01 * random.standard_normal((len(group), 10))
    sure = np.where(group < 5, 0.55, 0.99)
    chosen = teaching.choose(vectors, np.stack([sure, 1 - sure], 1), 5)
    assert sorted(group[chosen]) == [0, 1, 2, 3, 4]


def test_as_many_as_are_there_are_chosen_once() -> None:
    vectors, p = np.zeros((30, 4)), np.full((30, 3), 1 / 3)
    for count in (7, 30, 50):
        chosen = teaching.choose(vectors, p, count)
        assert len(chosen) == min(count, 30) == len(set(chosen.tolist()))


def test_a_gain_is_seen_where_there_is_one_and_none_where_labels_are_noise() -> None:
    random = np.random.default_rng(0)
    centers = random.standard_normal((8, 32))
    label, gold = random.integers(0, 8, 80), random.integers(0, 8, 1500)
    known, asked = (centers[y] + 1.6 * random.standard_normal((len(y), 32)) for y in (label, gold))
    found, points = teaching.gain(known, label, asked, gold, 40)
    assert [n for n, _ in points] == [20, 28, 40, 56, 80] and found.verdict == "helps" and 0.005 < found.gain < 0.15
    noise, _ = teaching.gain(known, random.permutation(label), asked, gold, 40)
    assert noise.interval[0] < 0.02 and noise.gain < found.gain
    assert teaching.gain(known[:10], label[:10], asked, gold, 40) == (None, [])


def test_rows_are_chosen_listed_and_ready_for_label_studio(ssl, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", rows(45))
    pool = [{"text": r["text"]} for r in rows(60, 3)]
    pool += [pool[0], {"text": rows(45)[4]["text"].upper()}, {"text": "=1+1 the cat and the dog on a ship"}]
    write_jsonl(tmp_path / "pool.jsonl", pool)
    assert (
        ssl(
            "finetune", "data=files", "data.train=train.jsonl", *TINY, "trainer.steps=2", "errors=false", "baseline=false", "run.dir=run"
        ).code
        == 0
    )
    dry = ssl("label-next", "run=run", "data.unlabelled=pool.jsonl", "count=10", "--dry-run")
    assert dry.code == 0 and not (tmp_path / "run-label-next").exists()
    done = ssl("label-next", "run=run", "data.unlabelled=pool.jsonl", "count=61")
    assert done.code == 0, done.err
    assert "61 of 63 rows are new" in done.err and "cannot be told" in done.result["expected"]["sentence"]
    listed = list(csv.DictReader((tmp_path / "run-label-next/next.csv").open()))
    tasks = json.loads((tmp_path / "run-label-next/label_studio.json").read_text())
    assert len(listed) == len(tasks) == 61 and {r["file"] for r in listed} == {"pool.jsonl"}
    assert {int(r["record"]) for r in listed} == set(range(1, 61)) | {63}
    for row, task in zip(listed, tasks, strict=True):
        assert task["data"]["text"] == pool[int(row["record"]) - 1]["text"]
        result = task["predictions"][0]["result"][0]
        assert result["value"] == {"choices": [row["prediction"]]} and result["to_name"] == "text" and 0 <= float(row["score"]) <= 1
    formula = next(r for r in listed if r["record"] == "63")
    assert formula["input"].startswith("'=1+1")
    scores = [float(r["score"]) for r in listed]
    assert scores == sorted(scores, reverse=True)
    # one pass through the network is as good as two
    finished = Finished.open(Path("run"), [])
    store = finished.source().examples(finished.coder, finished.processor, finished.labels).stores["train"]
    counted_calls, plain = [], finished.model.encode
    finished.model.eval().encode = lambda batch: counted_calls.append(1) or plain(batch)
    vectors, logits = features.with_logits(finished.goal, finished.model, store)
    assert len(counted_calls) == 1  # few short texts are one batch
    assert np.allclose(vectors, features.of_examples(finished.goal, finished.model, store), atol=1e-6)
    assert np.allclose(
        logits, [x for _, x in answers(finished.goal, finished.model, store, World(0, 1, torch.device("cpu")), len(logits))], atol=1e-5
    )
    again = ssl("label-next", "run=run", "data.unlabelled=train.jsonl")
    assert again.code == 2 and "labelled already" in again.err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("x")
    refused = ssl("label-next", "run=run", "data.unlabelled=pool.jsonl", "out=mine")
    assert refused.code == 2 and "already holds something else" in refused.err
    misspelt = ssl("label-next", "run=run", "data.unlabeled=pool.jsonl")
    assert misspelt.code == 2 and "did you mean" in misspelt.err and "data.unlabelled" in misspelt.err


def test_one_is_said_as_one() -> None:
    assert [counted(n, "row", "are") for n in (1, 2000)] == ["1 row is", "2,000 rows are"] and counted(1, "bad record") == "1 bad record"
    leaks = {"of": "test", "rows": 1}
    assert leaked.sentence({"leaks": leaks}, ()) == "1 row of test also stands in the training data"


def test_no_text_of_the_pool_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred times longer texts, no more memory, while equal ones are told."""
    count, peaks = 300, []
    for longer in (1, 100):
        text = lambda i, longer=longer: json.dumps({"input": f"{i // 2} " + f"Row  {i // 2} " * 20 * longer})  # noqa: E731
        monkeypatch.setattr(label_next, "examples_of", lambda store, text=text: SimpleNamespace(count=count, text=text))
        tracemalloc.start()
        new = label_next._new(None, {"owner": SimpleNamespace(values=np.arange(count)[:, None])}, {})  # type: ignore[arg-type]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert new.tolist() == list(range(0, count, 2))
    assert peaks[1] - peaks[0] < count * len(text(0)) / 10, peaks


def test_pictures_are_chosen_too(ssl, tmp_path: Path) -> None:
    done = ssl(
        "finetune", "data=digits", "model=resnet_nano", "model.width=8", "data.shots=3", "task.tune=probe", "run.dir=run", "errors=false"
    )
    assert done.code == 0, done.err
    done = ssl("label-next", "run=run", "data.unlabelled=digits", "count=20")
    assert done.code == 0, done.err
    listed = list(csv.DictReader((tmp_path / "run-label-next/next.csv").open()))
    assert len(listed) == 20 and all(r["input"] for r in listed) and done.result["of"] > 1000

"""Tasks: every word gets a tag, labels of every kind, defaults that learn; fine-tuning a real pretrained model on real rows."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sslcli.data.examples import windows
from tests.conftest import SHARED, TINY, rows, write_jsonl


@pytest.mark.parametrize(("count", "limit"), [(5, 8), (8, 8), (9, 8), (100, 8), (1000, 30), (17, 16)])
def test_windows_own_every_token_once(count, limit) -> None:
    found = windows(count, limit)
    owned = [i for _, _, a, b in found for i in range(a, b)]
    assert owned == list(range(count))
    assert all(start <= a <= b <= end and end - start <= limit for start, end, a, b in found)
    if count > limit:  # away from the document's own ends there is context on both sides
        assert all(a - start >= limit // 8 - 1 for start, _, a, _ in found[1:])


def test_windows_do_not_cut_words() -> None:
    begins = np.array([0, 3, 4, 9, 12, 13, 20, 22, 27])
    back = lambda place: int(begins[np.searchsorted(begins, place, side="right") - 1])  # noqa: E731
    found = windows(30, 10, back)
    assert all(start in begins and a in begins for start, _, a, _ in found)
    assert [i for _, _, a, b in found for i in range(a, b)] == list(range(30))


def tagged(count: int, long: bool = False) -> list[dict]:
    records = []
    for r in rows(count):
        words = r["text"].split() * (12 if long else 1)
        records.append({"tokens": words, "tags": ["B-ANIMAL" if w in ("cat", "dog") else "B-SHIP" if w == "ship" else "O" for w in words]})
    return records


def test_every_word_of_a_long_document_gets_its_tag(ssl, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", tagged(200))
    write_jsonl(tmp_path / "test.jsonl", tagged(6, long=True))
    done = ssl(
        "finetune", "task=token_classification", "data.train=train.jsonl", "data.test=test.jsonl", *TINY,
        "optimizer.lr=5e-3", "trainer.steps=150", "run.dir=run",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "read in overlapping windows, nothing lost" in done.err
    predictions = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    assert all(len(p["prediction"]) == len(p["input"]) == len(p["gold"]) and min(p["probabilities"]) > 0 for p in predictions)
    scores = done.result["test"]
    assert scores["f1"] > 0.95 and scores["f1_interval"][0] <= scores["f1"] <= scores["f1_interval"][1]
    assert {"ANIMAL", "micro avg", "macro avg", "weighted avg"} <= set(scores["report"])
    assert "ANIMAL" in done.err and "weighted avg" in done.err, "the table is on the screen"


@pytest.mark.parametrize("scheme", ["BIOES", "IO", "broken BIO"])
def test_other_schemes_are_read(ssl, tmp_path: Path, scheme: str) -> None:
    changed = {"BIOES": {"B": "S"}, "IO": {"B": "I"}, "broken BIO": {"B": "I"}}[scheme]
    records = tagged(60)
    for i, record in enumerate(records):
        if scheme != "broken BIO" or i % 2:
            record["tags"] = [changed.get(t[0], t[0]) + t[1:] for t in record["tags"]]
    write_jsonl(tmp_path / "train.jsonl", records)
    done = ssl("finetune", "task=token_classification", "data.train=train.jsonl", *TINY, "trainer.steps=2", "run.dir=run")
    facts = json.loads(Path("run/data.json").read_text())
    assert facts["scheme"] == {"BIOES": "BIOES", "IO": "IO", "broken BIO": "BIO"}[scheme]
    assert facts["labels_in_order"] == ["O", "B-ANIMAL", "I-ANIMAL", "B-SHIP", "I-SHIP"]
    assert ("read as B (conlleval's rule)" in done.err) == (scheme == "broken BIO") == (facts["mended_tags"] > 0)


def test_several_labels_a_text(ssl, tmp_path: Path) -> None:
    records = [{"text": r["text"], "label": [r["label"], "odd"] if i % 2 else [r["label"]]} for i, r in enumerate(rows(120))]
    write_jsonl(tmp_path / "train.jsonl", records)
    done = ssl(
        "finetune",
        "data.train=train.jsonl",
        "data.test=train.jsonl",
        *TINY,
        "optimizer.lr=5e-3",
        "trainer.steps=60",
        "trainer.seeds=1",
        "run.dir=run",
    )
    assert done.code == 0, done.err
    scores = done.result["test"]
    assert {"accuracy", "macro_f1", "micro_f1"} <= set(scores) and scores["micro_f1"] > 0.6
    line = json.loads(Path("run/predictions.jsonl").read_text().splitlines()[0])
    assert isinstance(line["prediction"], list) and set(line["probabilities"]) == {"cat", "dog", "odd", "ship"}
    assert json.loads(Path("run/model/config.json").read_text())["problem_type"] == "multi_label_classification"


def test_labels_that_are_ranks(ssl, tmp_path: Path) -> None:
    order = {"cat": 1, "dog": 2, "ship": 10}
    write_jsonl(tmp_path / "train.jsonl", [{"text": r["text"], "label": order[r["label"]]} for r in rows(90)])
    done = ssl(
        "finetune",
        "data.train=train.jsonl",
        "data.test=train.jsonl",
        "task.labelling=ordinal",
        *TINY,
        "trainer.steps=40",
        "trainer.seeds=1",
        "run.dir=run",
    )
    assert done.code == 0, done.err
    assert json.loads(Path("run/data.json").read_text())["labels_in_order"] == ["1", "2", "10"], "by value, not by spelling"
    assert {"mae", "quadratic_kappa", "accuracy"} <= set(done.result["test"])
    write_jsonl(tmp_path / "words.jsonl", rows(30))
    done = ssl("finetune", "data.train=words.jsonl", "task.labelling=ordinal", *TINY)
    assert done.code == 2 and "data.labels=[low,middle,high]" in done.err


def test_rare_classes_may_weigh_more(ssl, tmp_path: Path) -> None:
    records = [r for r in rows(180) if r["label"] != "ship"] + [r for r in rows(180) if r["label"] == "ship"][:6]
    write_jsonl(tmp_path / "train.jsonl", records)
    recall = {}
    for weights in ("none", "balanced"):
        done = ssl(
            "finetune", "data.train=train.jsonl", "data.test=train.jsonl", f"task.class_weights={weights}", "task.start=random", *TINY,
            "trainer.steps=30", f"run.dir={weights}",
        )  # fmt: skip
        assert done.code == 0, done.err
        recall[weights] = done.result["test"]["report"].get("ship", {"recall": 0})["recall"]
    assert recall["balanced"] >= recall["none"]
    done = ssl("finetune", "data.train=train.jsonl", "task.labelling=multi", "task.class_weights=balanced", *TINY)
    assert done.code == 2 and "class_weights=balanced and labelling=multi" in done.err


def test_training_begins_at_the_linear_probe(ssl, labelled: Path, minilm: Path) -> None:
    """The head is solved before the first step, so one step of almost no length already scores."""
    scores = {}
    for start in ("probe", "random"):
        done = ssl(
            "finetune", f"from={minilm}", f"data.train={labelled}", f"data.test={labelled}", f"task.start={start}", "optimizer.lr=1e-6",
            "trainer.steps=1", "baseline=false", f"run.dir={start}",
        )  # fmt: skip
        assert done.code == 0, done.err
        scores[start] = done.result["test"]["accuracy"]
    assert scores["probe"] > 0.95 > 0.7 > scores["random"]


def test_the_best_checkpoint_is_the_one_delivered(ssl, labelled: Path) -> None:
    done = ssl(
        "finetune",
        f"data.train={labelled}",
        *TINY,
        "data.valid_fraction=0.3",
        "trainer.steps=30",
        "trainer.seeds=1",
        "trainer.eval_every=3",
        "run.dir=run",
    )
    assert done.code == 0, done.err
    valid = [r["valid"]["macro_f1"] for r in map(json.loads, Path("run/metrics.jsonl").read_text().splitlines()) if "valid" in r]
    assert done.result["valid"]["macro_f1"] == pytest.approx(max(valid))


def test_a_cheap_baseline_stands_beside_the_score(ssl, labelled: Path, tmp_path: Path) -> None:
    test = write_jsonl(tmp_path / "test.jsonl", rows(30, seed=5))
    done = ssl("finetune", f"data.train={labelled}", f"data.test={test}", *TINY, "trainer.steps=2", "run.dir=run")
    assert done.result["baseline"]["method"] == "TF-IDF with logistic regression" and done.result["baseline"]["accuracy"] > 0.9
    assert done.result["baseline"]["majority_accuracy"] == pytest.approx(1 / 3, abs=0.1)
    assert "TF-IDF with logistic regression: accuracy" in done.err


def test_every_prediction_stands_beside_its_own_input(ssl, labelled: Path, tmp_path: Path) -> None:
    test = write_jsonl(tmp_path / "test.jsonl", rows(50, seed=5))
    assert (
        ssl("finetune", f"data.train={labelled}", f"data.test={test}", *TINY, "trainer.steps=2", "baseline=false", "run.dir=run").code == 0
    )
    lines = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    assert [(r["input"], r["gold"]) for r in lines] == [(r["text"], r["label"]) for r in rows(50, seed=5)]
    assert [r["id"] for r in lines] == list(range(50))
    assert all(max(r["probabilities"], key=r["probabilities"].get) == r["prediction"] for r in lines)


@pytest.mark.skipif(SHARED is None, reason="the shared data sets are not on this machine (shared/data)")
def test_a_real_model_learns_real_questions(ssl, minilm: Path, shared: Path) -> None:
    """TREC questions, 8 labels a class: far above TF-IDF with the same labels."""
    train, test = shared / "trec" / "train.jsonl", shared / "trec" / "test.jsonl"
    done = ssl(
        "finetune",
        f"from={minilm}",
        f"data.train={train}",
        f"data.test={test}",
        "data.shots=8",
        "trainer.steps=20",
        "trainer.seeds=1",
        "run.dir=run",
    )
    assert done.code == 0, done.err
    assert done.result["test"]["accuracy"] > done.result["baseline"]["accuracy"] + 0.1
    assert torch.isfinite(torch.tensor(done.result["test"]["accuracy"]))

"""The verbs on pairs of texts: similarity and retrieval, what they score, what bad pairs are told."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.nn import functional as F

from sslcli.hf.pooling import read_pooling
from tests.conftest import SENTENCES, TINY, rows, write_jsonl
from tests.test_embeddings import scored_pairs


@pytest.mark.parametrize("loss", ["cosent", "mse"])
def test_similarity_is_learnt_and_leaves_a_model_that_pools_so(ssl, tmp_path: Path, loss) -> None:
    write_jsonl(tmp_path / "train.jsonl", scored_pairs(120))
    write_jsonl(tmp_path / "test.jsonl", scored_pairs(60))
    done = ssl(
        "finetune", "task=text_similarity", f"task.loss={loss}", "data.train=train.jsonl", "data.test=test.jsonl", "pooling=max", *TINY,
        "optimizer.lr=3e-3", "trainer.steps=60", "run.dir=run",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "columns text_a=sentence1, text_b=sentence2, score=score" in done.err
    scores = done.result["test"]
    assert scores["spearman"] > 0.6 and scores["spearman_interval"][0] <= scores["spearman"] <= scores["spearman_interval"][1]
    assert done.result["baseline"]["method"].startswith("TF-IDF") and "spearman" in done.result["baseline"]
    if loss == "mse":
        return
    assert read_pooling(tmp_path / "run" / "model") == "max" and (tmp_path / "run" / "model" / "modules.json").exists()
    line = json.loads(Path("run/predictions.jsonl").read_text().splitlines()[0])
    assert set(line["input"]) == {"text_a", "text_b"} and -1 <= line["prediction"] <= 1
    again = ssl("evaluate", "run=run", "data.test=test.jsonl", "out=again")
    assert again.code == 0 and again.result["test"]["spearman"] == pytest.approx(scores["spearman"], abs=1e-6)
    for form in ("hf", "torch"):
        out = ssl("export", "run=run", f"format={form}", f"out=dist-{form}")
        assert out.code == 0 and out.result["agreement"]["largest_difference"] < 1e-4, out.err
    assert read_pooling(tmp_path / "dist-hf") == "max"
    program = torch.export.load("dist-torch/model.pt2").module()
    assert program(torch.ones(3, 5, dtype=torch.long), torch.ones(3, 5, dtype=torch.long)).shape == (3, 32), "a vector a text"


def test_an_untouched_model_is_scored_without_a_step(ssl, tmp_path: Path, minilm: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    pairs = scored_pairs(40)
    write_jsonl(tmp_path / "test.jsonl", pairs)
    done = ssl(
        "finetune", "task=text_similarity", "task.loss=none", f"from={minilm}", "data.train=test.jsonl", "data.test=test.jsonl",
        "baseline=false", "run.dir=run",
    )  # fmt: skip
    assert done.code == 0 and done.result["train"]["steps"] == 0, done.err
    model, tokenizer = AutoModel.from_pretrained(minilm).eval(), AutoTokenizer.from_pretrained(minilm)

    def vector(text: str) -> torch.Tensor:
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    said = [float(F.cosine_similarity(vector(p["sentence1"]), vector(p["sentence2"]), dim=0)) for p in pairs]
    lines = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    assert [x["prediction"] for x in lines] == pytest.approx(said, abs=1e-4)
    assert done.result["test"]["spearman"] == pytest.approx(spearmanr(said, [p["score"] for p in pairs]).statistic, abs=0.01)


def passages(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "corpus.jsonl", [{"id": f"p{i}", "title": "x", "answer": text} for i, (text, _) in enumerate(SENTENCES)])
    kinds = [kind for _, kind in SENTENCES]
    queries = [
        {"query": f"{SENTENCES[i % 9][1]} {i}", "positives": [f"p{j}" for j in range(9) if kinds[j] == SENTENCES[i % 9][1]]}
        for i in range(45)
    ]
    write_jsonl(tmp_path / "train.jsonl", queries)
    write_jsonl(tmp_path / "test.jsonl", queries[:9])


def test_retrieval_is_learnt_and_its_scores_are_those_of_what_is_written(ssl, tmp_path: Path) -> None:
    passages(tmp_path)
    done = ssl(
        "finetune", "task=text_retrieval", "data.train=train.jsonl", "data.test=test.jsonl", "data.gallery=corpus.jsonl", *TINY,
        "optimizer.lr=3e-3", "trainer.steps=60", "run.dir=run",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "columns passage=answer, id=id" in done.err and "text_a=query, positives=positives" in done.err
    scores = done.result["test"]
    lines = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    ranks = []
    for line in lines:
        order = [n["id"] for n in line["nearest"]]
        ranks.append(next(i for i, name in enumerate(order) if name in line["gold"]))
        precision = np.mean([(k + 1) / (r + 1) for k, r in enumerate(i for i, name in enumerate(order) if name in line["gold"])])
        assert line["rank"] == ranks[-1] and line["average_precision"] == pytest.approx(precision, abs=1e-5)
    assert scores["mrr"] == pytest.approx(np.mean([1 / (r + 1) for r in ranks])) and scores["mrr"] > 0.8
    assert scores["recall@1"] == pytest.approx(np.mean([r < 1 for r in ranks])) and {"ndcg@10", "map", "recall@10"} <= set(scores)
    assert "mrr" in done.result["baseline"]
    again = ssl("evaluate", "run=run", "out=again")
    assert again.code == 0 and again.result["test"]["mrr"] == pytest.approx(scores["mrr"])
    assert ssl("export", "run=run", "format=torch", "out=dist").code == 0


def test_positives_may_be_texts_and_negatives_stand_beside(ssl, tmp_path: Path) -> None:
    pairs = [
        {"anchor": f"{kind} {i}", "positive": text, "negative": SENTENCES[(i + 3) % 9][0]} for i, (text, kind) in enumerate(SENTENCES * 5)
    ]
    write_jsonl(tmp_path / "train.jsonl", pairs)
    done = ssl("finetune", "task=text_retrieval", "data.train=train.jsonl", *TINY, "trainer.steps=3", "run.dir=run")
    assert done.code == 0, done.err
    facts = json.loads(Path("run/data.json").read_text())
    assert facts["gallery"]["examples"] == 9, "each passage once"
    assert facts["columns"]["train"] == {"text_a": "anchor", "positives": "positive", "negative": "negative"}


def test_pairs_are_read_from_their_columns(ssl, tmp_path: Path) -> None:
    records = [{"query": r["text"], "positive": r["text"][::-1], "negative": r["label"]} for r in rows(80)]
    write_jsonl(tmp_path / "pairs.jsonl", records)
    words = ["pretrain", "objective=simcse", "objective.pairs=true", "objective.symmetric=true", "data.train=pairs.jsonl", *TINY]
    done = ssl(*words, "trainer.steps=3", "trainer.batch_size=16", "run.dir=run")
    assert done.code == 0, done.err
    assert "text_a=query, text_b=positive, negative=negative" in done.err
    assert json.loads(Path("run/data.json").read_text())["train"]["documents"] % 3 == 0
    assert ssl("evaluate", "run=run").code == 0
    assert ssl("export", "run=run", "format=torch", "out=dist").code == 0


BAD = [
    ("a score that is none", {"score": "high"}, r"bad\.jsonl:21: .?score.? is .?high.?; expected a number"),
    ("a score that is true", {"score": True}, r"bad\.jsonl:21: .?score.? is True; expected a number"),
    ("a side that is empty", {"text_b": " "}, r"bad\.jsonl:21: .?text_b.? \(the text_b\) is empty"),
    ("a side that is no text", {"text_a": 3}, r"bad\.jsonl:21: .?text_a.? is a number; expected text"),
    ("a side that is null", {"text_a": None}, r"bad\.jsonl:21: .?text_a.? \(the text_a\) is null"),
]


@pytest.mark.parametrize(("name", "wrong", "expected"), BAD, ids=[b[0] for b in BAD])
def test_bad_pairs_are_told_in_a_line(ssl, tmp_path: Path, name, wrong, expected) -> None:
    records: list[dict] = [{"text_a": f"one {i}", "text_b": f"two {i}", "score": i % 5} for i in range(21)]
    records[20] |= wrong
    write_jsonl(tmp_path / "bad.jsonl", records)
    done = ssl("finetune", "task=text_similarity", "data.train=bad.jsonl", *TINY, "run.dir=run")
    assert done.code == 2 and re.search(expected, done.err), done.err
    assert not Path("run").exists()


def test_passages_that_are_not_there_are_told(ssl, tmp_path: Path) -> None:
    passages(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", [{"query": "cat", "positives": ["p0"]}, {"query": "dog", "positives": ["p99"]}])
    words = ["finetune", "task=text_retrieval", "data.train=train.jsonl", *TINY, "run.dir=run"]
    done = ssl(*words, "data.gallery=corpus.jsonl")
    assert done.code == 2 and "train.jsonl:2: names the passage" in done.err and "p99" in done.err
    (tmp_path / "twice.jsonl").write_text('{"id": 1, "passage": "a"}\n{"id": 1, "passage": "b"}\n')
    done = ssl(*words, "data.gallery=twice.jsonl")
    assert done.code == 2 and "twice.jsonl:2: the passage" in done.err and "stands twice" in done.err
    done = ssl(
        "finetune", "data.train=train.jsonl", "data.gallery=twice.jsonl", *TINY, "data.columns.text=query", "data.columns.label=positives"
    )
    assert done.code == 2 and "data.gallery: means nothing for this task" in done.err

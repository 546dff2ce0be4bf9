"""Word embeddings of the words at hand: a run learns what it would have learnt with all of them, and goes on where it stopped."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sslcli import trainer, vocabulary
from tests.conftest import TINY, rows, write_jsonl
from tests.test_resume import stop_at, tensors

TABLE = "model.base.embeddings.word_embeddings.weight"
QUIET = ["baseline=false", "leaks=false", "errors=false", "verdict=false"]
STEPS = ["trainer.steps=6", "trainer.batch_size=8", "optimizer.weight_decay=0", "trainer.save_every=2", "trainer.eval_every=3"]


@pytest.fixture
def start(ssl) -> Path:
    """A network that knows many words, of which the examples have a few."""
    others = [{"text": " ".join(f"{a}{b}{c}{d}" for d in "aeiou" for c in "klmnr")} for a in "bdfgpt" for b in "aeiou"] * 3
    corpus = write_jsonl(Path("corpus.jsonl"), [{"text": r["text"]} for r in rows(90)] + others)
    made = ["objective=masked_lm", f"data.train={corpus}", *TINY, "tokenizer.vocabulary=1200", "data.max_length=32", "trainer.steps=2"]
    done = ssl("pretrain", *made, "run.dir=start")
    assert done.code == 0, done.err
    return Path("start")


@pytest.fixture
def swapped(start, monkeypatch):
    """What every run of this test did: the rows that it learnt, or None."""
    seen: list[int | None] = []

    def met(modules, terms):
        words = vocabulary.met(modules, terms)
        seen.append(None if words is None else len(words.met.weight))
        return words

    monkeypatch.setattr(trainer, "met", met)
    return seen


def command(start: Path, kind: str) -> list[str]:
    train = rows(48)
    test = [{**r, "text": f"{r['text']} zebra umbrella"} for r in rows(18, 3)]  # words that are not learnt from
    if kind == "token_classification":
        train, test = (
            [{"tokens": r["text"].split(), "tags": [f"B-{r['label']}"] * len(r["text"].split())} for r in x] for x in (train, test)
        )
    if kind == "text_similarity":
        pairs = [list(pairwise(x)) for x in (train, test)]
        train, test = ([{"text_a": a["text"], "text_b": b["text"], "score": float(a["label"] == b["label"])} for a, b in x] for x in pairs)
    data = [f"data.{n}={write_jsonl(Path(f'{n}.jsonl'), r)}" for n, r in (("train", train), ("valid", test), ("test", test))]
    head = ["task.head=linear"] if kind == "text_classification" else []
    return ["finetune", f"from={start}", f"task={kind}", *head, *data, *STEPS, *QUIET]


def all_rows(monkeypatch) -> None:
    monkeypatch.setattr(trainer, "met", lambda *_: None)


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("text_classification", "fp32"), ("text_classification", "bf16"), ("token_classification", "fp32"), ("text_similarity", "fp32")],
)
def test_it_learns_what_it_would_have_learnt(ssl, start, swapped, monkeypatch, kind, precision) -> None:
    words = [*command(start, kind), f"trainer.precision={precision}"]
    assert (done := ssl(*words, "run.dir=part")).code == 0, done.err
    assert swapped[-1] is not None and swapped[-1] > 30
    all_rows(monkeypatch)
    assert ssl(*words, "run.dir=whole").code == 0
    part, whole = (load_file(f"{run}/model/model.safetensors") for run in ("part", "whole"))
    before = load_file(start / "model" / "model.safetensors")
    table = next(n for n in whole if n.endswith("word_embeddings.weight"))
    moved = (part[table] != next(t for n, t in before.items() if n.endswith("word_embeddings.weight"))).any(1)
    assert 0.9 * swapped[-1] < moved.sum() <= swapped[-1] < 0.5 * len(moved), "rows that are met learn, and no others"
    length = {n: float((whole[n] - before[n]).norm()) if n in before else float(whole[n].norm()) for n in whole}
    for name in whole:
        off = float((part[name] - whole[name]).norm())
        assert off <= (1e-3 if precision == "fp32" else 0.15) * length[name] + 1e-7, (name, off, length[name])
    scores = [json.loads(Path(f"{run}/metrics.json").read_text())["test"] for run in ("part", "whole")]
    name = {"text_classification": "accuracy", "token_classification": "token_accuracy", "text_similarity": "spearman"}[kind]
    assert scores[0][name] == pytest.approx(scores[1][name], abs=1e-5 if precision == "fp32" else 0.06)


def test_interrupted_it_goes_on_alike_and_on_a_machine_that_learns_all_rows_too(ssl, start, swapped, monkeypatch) -> None:
    words = [*command(start, "text_classification"), "trainer.save_every=1", "run.keep=9"]
    assert ssl(*words, "run.dir=whole").code == 0
    for name in ("cut", "moved"):
        with monkeypatch.context() as patch:
            stop_at(patch, 2)
            assert ssl(*words, f"run.dir={name}").code == 75
    saved = load_file(max(Path("cut/checkpoints").glob("step-*")) / "weights.safetensors")
    assert len(saved[TABLE]) > 2 * swapped[-1], "a checkpoint holds the whole table"
    assert ssl("finetune", "run.dir=cut", "resume=auto").code == 0 and swapped[-1] is not None
    assert tensors(Path("cut")) == tensors(Path("whole"))
    all_rows(monkeypatch)
    assert ssl("finetune", "run.dir=moved", "resume=auto").code == 0
    end = [load_file(f"{run}/model/model.safetensors") for run in ("moved", "whole")]
    assert all(torch.allclose(end[0][n], end[1][n], atol=1e-6) for n in end[0])


@pytest.mark.parametrize(
    "words",
    [["augment=typos"], ["adversarial=awp"], ["peft=lora"], ["task.head=prompt"], ["objective=masked_lm"]],
    ids=lambda w: w[0],
)
def test_where_other_words_may_come_all_rows_learn_as_before(ssl, start, swapped, words) -> None:
    more = ["data.unlabelled=train.jsonl"] if "objective" in words[0] else []
    done = ssl(*command(start, "text_classification"), *words, *more, "trainer.steps=1", "run.dir=a")
    assert done.code == 0 and swapped[-1] is None, done.err


@pytest.mark.parametrize("objective", ["simcse", "span_contrastive"])
def test_continued_pretraining_learns_the_words_of_its_corpus(ssl, start, swapped, objective) -> None:
    data = write_jsonl(Path("texts.jsonl"), [{"text": r["text"]} for r in rows(40)])
    shortest = ["objective.shortest=4"] if objective == "span_contrastive" else []
    run = [f"objective={objective}", *shortest, f"from={start}", f"data.train={data}", "trainer.steps=2", "trainer.batch_size=8"]
    done = ssl("pretrain", *run, "run.dir=a")
    assert done.code == 0 and swapped[-1] > 30, done.err


def test_the_space_that_is_asked_for_is_that_of_whole_tables() -> None:
    net = torch.nn.Module()
    net.table = torch.nn.Embedding(50, 4)
    words = vocabulary.Vocabulary(net, "table", net.table, torch.arange(7))
    assert len(net.table.weight) == 7 and words.spared == 43 * 4
    words.end()
    assert len(net.table.weight) == 50

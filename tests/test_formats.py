"""The front door: the same rows whatever file they come in; columns guessed, encodings named, splits made and said."""

import csv
import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sslcli.commands.finished import Finished
from sslcli.data.reader import Reader
from sslcli.data.source import open_source
from tests.conftest import TINY, rows, write_jsonl

ROWS = [
    {"text": 'He said "hi",\nand left; naïve café', "label": "a"},
    {"text": "plain words", "label": "b"},
    {"text": "中文 句子", "label": "a"},
]


def compressed(path: Path, kind: str) -> Path:
    raw = path.read_bytes()
    out = path.with_name(path.name + f".{kind}")
    out.write_bytes(gzip.compress(raw) if kind == "gz" else pa.compress(raw, "zstd", asbytes=True) if kind == "zst" else raw)
    if kind == "zst":
        with pa.OSFile(str(out), "wb") as sink, pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(raw)
    return out


def written(folder: Path, kind: str) -> Path:
    path = folder / f"data.{kind}"
    if kind == "jsonl":
        write_jsonl(path, ROWS)
    elif kind in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["label", "text"], delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def read(spec: object, roles: tuple[str, ...] = ("text", "label"), **more: object) -> list[dict]:
    options = {"encoding": "utf-8", "delimiter": None, "tagged": "tags" in roles, "seed": 0, **more}
    reader = Reader("data.train", open_source("data.train", str(spec), **options), roles, {}, "fail", False)
    found = [example for _, _, example in reader]
    reader.finish()
    return found


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_every_format_holds_the_same_rows(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind)
    assert read(path) == ROWS
    if kind != "parquet":
        assert read(compressed(path, "gz")) == ROWS
        assert read(compressed(path, "zst")) == ROWS


@pytest.mark.parametrize(("kind", "encoding"), [("jsonl", "gb18030"), ("csv", "gb18030"), ("jsonl", "utf-8-sig")])
def test_encodings(tmp_path: Path, kind: str, encoding: str) -> None:
    path = written(tmp_path, kind)
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    assert read(path, encoding="utf-8" if encoding == "utf-8-sig" else encoding) == ROWS


def test_gb18030_without_its_name_is_recognised(ssl, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes('{"text": "今天天气很好，我们去公园吧", "label": "a"}\n'.encode("gb18030"))
    done = ssl("finetune", "data.train=data.jsonl", *TINY)
    assert done.code == 2 and "data.encoding=gb18030" in done.err


def test_plain_text_is_paragraphs_or_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n\n\nfour\nfive")
    (tmp_path / "b.txt").write_text("one\ntwo\nthree\n")
    assert [e["text"] for e in read(tmp_path / "a.txt", ("text",))] == ["one\ntwo", "three", "four\nfive"]
    assert [e["text"] for e in read(tmp_path / "b.txt", ("text",))] == ["one", "two", "three"]


TAGGED = "-DOCSTART- O\n\nEU B-ORG\nrejects O\n\nPeter B-PER\nBlackburn I-PER\n"


@pytest.mark.parametrize("name", ["data.conll", "data.txt", "data.bio.gz"])
def test_conll_by_name_or_by_look(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(TAGGED.encode()) if name.endswith("gz") else TAGGED.replace("\n", "\r\n").encode())
    expected = [{"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}, {"tokens": ["Peter", "Blackburn"], "tags": ["B-PER", "I-PER"]}]
    assert read(path, ("tokens", "tags")) == expected


def test_conll_with_many_columns_and_comments(tmp_path: Path) -> None:
    (tmp_path / "data.conll").write_text("# sent_id = 1\nEU\tNNP\tB-NP\tB-ORG\nrejects\tVBZ\tB-VP\tO\n")
    assert read(tmp_path / "data.conll", ("tokens", "tags")) == [{"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}]


def test_folders_globs_and_lists(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    write_jsonl(tmp_path / "in" / "a.jsonl", ROWS[:1])
    compressed(write_jsonl(tmp_path / "in" / "deep" / "b.jsonl", ROWS[1:2]), "gz")
    (tmp_path / "in" / "deep" / "b.jsonl").unlink()
    (tmp_path / "in" / ".hidden.jsonl").write_text("not data")
    (tmp_path / "in" / "notes.md").write_text("not data")
    assert read(tmp_path / "in") == ROWS[:2]
    assert read(f"{tmp_path}/in/**/*.jsonl*") in (ROWS[:2], ROWS[1::-1])
    assert read(tmp_path / "in" / "*.jsonl") == ROWS[:1]


def test_standard_input(tmp_path: Path, corpus: Path) -> None:
    command = [sys.executable, "-m", "sslcli", "pretrain", "data.train=-", *TINY, "trainer.steps=1", "run.dir=run", "-q"]
    done = subprocess.run(command, input=corpus.read_bytes(), capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads((tmp_path / "run" / "data.json").read_text())["train"]["documents"] > 200
    kept = Finished.open(tmp_path / "run", []).source().train
    assert Path(kept).read_bytes() == corpus.read_bytes(), "a later verb reads what the run read, not its own standard input"


def test_a_hub_data_set_from_a_local_folder(ssl, tmp_path: Path) -> None:
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        pq.write_table(pa.Table.from_pylist(rows(45)), folder / f"{split}-00000-of-00001.parquet")
    done = ssl("finetune", "data.train=hf:set:train", "data.test=hf:set:test", *TINY, "trainer.steps=2", "baseline=false", "run.dir=run")
    assert done.code == 0, done.err
    facts = json.loads(Path("run/data.json").read_text())
    assert facts["test"]["examples"] == 45 and facts["columns"]["train"] == {"text": "text", "label": "label"}
    done = ssl("finetune", "data.train=hf:nobody/nothing", *TINY, "run.dir=b")
    assert done.code == 2 and "data.train=hf:nobody/nothing: cannot be loaded" in done.err


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"id": 1, "Sentence ": "x y", "Category": "a"}, {"text": "Sentence ", "label": "Category"}),
        ({"标签": "好", "评论": "今天"}, {"text": "评论", "label": "标签"}),
        ({"n": 5, "body": "long words here", "verdict": "a"}, {"text": "body", "label": "verdict"}),
    ],
)
def test_columns_are_guessed(tmp_path: Path, header: dict, expected: dict) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", [header] * 3)
    source = open_source("data.train", str(path), encoding="utf-8", delimiter=None, tagged=False, seed=0)
    if "verdict" in header:
        reader = Reader("data.train", source, ("text", "label"), {"label": "verdict"}, "fail", False)
    else:
        reader = Reader("data.train", source, ("text", "label"), {}, "fail", False)
    assert reader.columns == expected


def test_a_column_that_is_not_there_names_those_that_are(ssl, labelled: Path) -> None:
    done = ssl("finetune", f"data.train={labelled}", "data.columns.label=topic", *TINY)
    assert done.code == 2 and "no column topic; found text, label: choose with data.columns.label=<name>" in done.err


def test_the_held_out_part_is_made_and_said(ssl, labelled: Path, tmp_path: Path) -> None:
    done = ssl("finetune", f"data.train={labelled}", *TINY, "trainer.steps=1", "baseline=false", "run.dir=run")
    facts = json.loads(Path("run/data.json").read_text())
    assert "valid is 10% of data.train, stratified, drawn with seed 0" in done.err
    assert facts["train"]["examples"] + facts["valid"]["examples"] == 90 and set(facts["valid"]["per_label"]) == {"cat", "dog", "ship"}
    assert "columns text=text, label=label" in done.err
    few = ssl("finetune", f"data.train={labelled}", "data.shots=4", *TINY, "trainer.steps=1", "baseline=false", "run.dir=few")
    assert "too few labels to hold some out" in few.err and json.loads(Path("few/data.json").read_text())["train"]["examples"] == 12


LONG = " ".join(f"word{i % 7}" for i in range(200))


@pytest.mark.parametrize(("policy", "count"), [("truncate", 9), ("window", 9), ("drop", 8)])
def test_every_cut_is_counted_and_said(ssl, tmp_path: Path, policy: str, count: int) -> None:
    write_jsonl(tmp_path / "data.jsonl", [*rows(8), {"text": LONG, "label": "cat"}])
    done = ssl("finetune", "data.train=data.jsonl", *TINY, f"data.too_long={policy}", "trainer.steps=2", "baseline=false", "run.dir=run")
    assert done.code == 0, done.err
    facts = json.loads(Path("run/data.json").read_text())["train"]
    assert facts["cut_rows"] == 1 and facts["examples"] == 9 and facts["dropped"] == (policy == "drop")
    assert "1 of 9 texts are longer than a row" in done.err
    assert ("nothing lost" in done.err) == (policy == "window") and (facts["rows"] > 9) == (policy == "window")
    assert facts["rows"] >= count


def test_too_long_may_be_an_error(ssl, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data.jsonl", [*rows(8), {"text": LONG, "label": "cat"}])
    done = ssl("finetune", "data.train=data.jsonl", *TINY, "data.too_long=error", "run.dir=run")
    assert done.code == 2 and "1 texts are longer than 64 tokens" in done.err and not Path("run").exists()


def test_labels_may_be_listed(ssl, labelled: Path) -> None:
    done = ssl("finetune", f"data.train={labelled}", "data.labels=[ship,cat]", *TINY)
    assert done.code == 2 and "the label dog is not in data.labels" in done.err
    command = ["finetune", f"data.train={labelled}", *TINY, "trainer.steps=1", "baseline=false", "run.dir=run"]
    assert ssl(*command, "data.labels=[ship,dog,cat,bird]").code == 0
    assert json.loads(Path("run/data.json").read_text())["labels_in_order"] == ["ship", "dog", "cat", "bird"]
    assert json.loads(Path("run/model/config.json").read_text())["id2label"]["3"] == "bird"


def test_a_second_run_on_the_same_data_prepares_nothing(ssl, corpus: Path, monkeypatch) -> None:
    from sslcli.data import corpus as module

    command = ["pretrain", f"data.train={corpus}", *TINY, "trainer.steps=1"]
    assert ssl(*command, "run.dir=a").code == 0
    monkeypatch.setattr(module, "_build", lambda *_, **__: pytest.fail("built again"))
    assert ssl(*command, "run.dir=b").code == 0


def test_changed_data_is_prepared_again(ssl, corpus: Path) -> None:
    command = ["pretrain", f"data.train={corpus}", *TINY, "trainer.steps=1"]
    assert ssl(*command, "run.dir=a").code == 0
    with corpus.open("a") as file:
        file.write('{"text": "one more line of text"}\n')
    assert ssl(*command, "run.dir=b").code == 0
    counts = [json.loads(Path(f"{run}/data.json").read_text()) for run in "ab"]
    total = [c["train"]["documents"] + c["valid"]["documents"] for c in counts]
    assert total[1] == total[0] + 1
    assert counts[0]["files"] != counts[1]["files"]


def test_the_embedded_task_leaks_nothing() -> None:
    """No summary of the test stands in the corpus or, as the leak radar sees it too, among the training examples; no file gives to both."""
    from sslcli.data.docstrings import Docstrings, _summary
    from sslcli.evidence.leaks import Sketch, between

    def rows_of(split: str) -> list[tuple[str, dict]]:
        return [(item[0], item[2]) for item in Docstrings("data.train", f"docstrings:{split}" if split else "docstrings", 0).records()]

    corpus, train, test, few = rows_of(""), rows_of("train"), rows_of("test"), rows_of("few")
    assert len(corpus) > 20_000 and 650 < len(test) <= 720 and len(few) == 96 and len({r["label"] for _, r in test}) == 12
    assert not {f for f, _ in test} & ({f for f, _ in train} | {f for f, _ in corpus})
    summaries = {r["text"].lower() for _, r in test}
    assert not summaries & {r["text"].lower() for _, r in train} and not summaries & {_summary(r["text"]).lower() for _, r in corpus}
    assert {r["text"] for _, r in few} <= {r["text"] for _, r in train}
    assert not any(r["label"] in r["text"] for _, r in test)
    assert not between(*(Sketch.of([r["text"] for _, r in part]) for part in (train, test)))
    other = [r["text"] for _, r in ((i[0], i[2]) for i in Docstrings("data.train", "docstrings:few", 1).records())]
    assert set(other) != {r["text"] for _, r in few}


def test_csv_may_hold_what_csv_allows(tmp_path: Path) -> None:
    out = io.StringIO()
    csv.writer(out).writerows([["text", "label"], ["line\r\nbreak, comma", "a"], ['quote ""', "b"]])
    (tmp_path / "data.csv").write_text(out.getvalue(), newline="")
    assert [e["text"].replace("\r\n", "\n") for e in read(tmp_path / "data.csv")] == ["line\nbreak, comma", 'quote ""']


def test_text_that_a_tokenizer_does_not_know_is_doubted(ssl, minilm: Path, tmp_path: Path) -> None:
    """An English model on Chinese: most of it is [UNK], and scores would say nothing of that."""
    texts = ["房间很干净，服务员态度也好", "早餐太差，再也不会来住了", "位置方便，离地铁站很近"]
    chinese = write_jsonl(tmp_path / "zh.jsonl", [{"text": texts[i % 3], "label": "好" if i % 3 else "坏"} for i in range(30)])
    words = ["finetune", f"from={minilm}", "trainer.steps=1", "trainer.seeds=1", "--dry-run"]
    done = ssl(*words, f"data.train={chinese}")
    assert done.code == 0 and "of the tokens are unknown to this tokenizer ([UNK])" in done.err, done.err
    english = write_jsonl(tmp_path / "en.jsonl", rows(30))
    assert "[UNK]" not in ssl(*words, f"data.train={english}").err

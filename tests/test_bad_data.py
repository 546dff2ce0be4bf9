"""Every kind of broken text file ends in one line that names file and record, says what is wrong and what to do; exit 2, nothing half made.

The kinds are those of the product's reliability plan: J (JSON lines), C (CSV), Q (Parquet).
"""

import json
import re
from pathlib import Path

import pytest

from tests.broken import CSV, GOOD, JSON_LINES, OTHER, PARQUET, Kind
from tests.conftest import TINY


def said(err: str) -> list[str]:
    """The lines of the error: all that is printed, but for the progress before it."""
    return [line for line in err.strip().splitlines() if not line.startswith("training a wordpiece tokenizer")]


@pytest.mark.parametrize("kind", [*JSON_LINES, *CSV, *PARQUET], ids=lambda k: k.name)
def test_one_line_says_it(ssl, tmp_path: Path, kind: Kind) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    path = kind.make(folder)
    before = {p: p.read_bytes() for p in folder.iterdir()}
    done = ssl("finetune", f"data.train={path}", *TINY, *kind.more, "trainer.steps=1", "run.dir=run")
    lines = said(done.err)
    assert done.code == kind.code, done.err
    assert re.search(kind.expected, lines[0]), f"{lines[0]}\nis not\n{kind.expected}"
    assert all(line.isprintable() for line in lines) and len(lines) <= 22
    assert "Traceback" not in done.err and len(lines[0]) < 600
    if kind.record:
        assert re.search(r"checked [\d,]+ records: [\d,]+ good, 1 bad", lines[-1]), lines[-1]
    assert not (tmp_path / "run").exists(), "nothing half made"
    assert {p: p.read_bytes() for p in folder.iterdir()} == before, "the input is as it was"


@pytest.mark.parametrize("name", ["J16 byte order mark", "J19 CRLF", "a name that says nothing"])
def test_what_looks_odd_and_is_not_bad_is_accepted(ssl, tmp_path: Path, name: str) -> None:
    content = f"{GOOD}\n{OTHER}\n" * 4
    encoded = {"J16 byte order mark": b"\xef\xbb\xbf" + content.encode(), "J19 CRLF": content.replace("\n", "\r\n").encode()}.get(
        name, content.encode()
    )
    path = tmp_path / ("data" if name.startswith("a name") else "data.jsonl")
    path.write_bytes(encoded)
    done = ssl("finetune", f"data.train={path}", *TINY, "trainer.steps=1", "baseline=false", "run.dir=run")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "run" / "data.json").read_text())["train"]["examples"] == 8


def test_many_bad_records_are_listed_to_twenty_and_counted(ssl, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f"{GOOD}\nbroken {i}\n" for i in range(60)))
    done = ssl("finetune", f"data.train={path}", *TINY, "run.dir=run")
    lines = said(done.err)
    assert done.code == 2 and len(lines) == 22 and lines[20] == "error: ... and 40 more"
    assert "checked 120 records: 60 good, 60 bad" in lines[21] and "data.on_bad_record=skip" in lines[21]


def test_skipped_records_are_written_down_and_the_rest_is_used(ssl, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f"{GOOD}\n{OTHER}\n" * 5 + "broken\n" + '{"text": "", "label": "a"}\n')
    done = ssl("finetune", f"data.train={path}", *TINY, "data.on_bad_record=skip", "trainer.steps=1", "baseline=false", "run.dir=run")
    assert done.code == 0 and "2 bad records left out" in done.err, done.err
    bad = [json.loads(line) for line in (tmp_path / "run" / "bad_records.jsonl").read_text().splitlines()]
    assert [b["record"] for b in bad] == [11, 12]
    assert json.loads((tmp_path / "run" / "data.json").read_text())["train"]["examples"] == 10


def test_a_column_named_as_its_role_is_it_however_bad_its_values(ssl, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": 5, "label": "y"}\n')
    done = ssl("finetune", "data.train=data.jsonl", *TINY, "run.dir=run")
    assert done.code == 2 and "data.jsonl:2: text is a number; expected text" in done.err, done.err


def test_labels_of_later_splits_are_checked_against_the_first(ssl, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(f"{GOOD}\n{OTHER}\n")
    (tmp_path / "test.jsonl").write_text('{"text": "x y", "label": "zebra"}\n')
    done = ssl("finetune", "data.train=train.jsonl", "data.test=test.jsonl", *TINY, "run.dir=run")
    assert done.code == 2 and "test.jsonl:1: the label zebra is not in the training data" in done.err


CONLL = [
    ("a line without a tag", "EU B-ORG\nrejects\ncall O\n\n", r"data\.conll:2.*: 1 column; expected 2 columns as before"),
    ("columns change", "EU B-ORG\nrejects x O\n\n", r"data\.conll:2.*: 3 columns; expected 2 columns as before"),
    ("empty", "", r"data\.conll: no records"),
]


@pytest.mark.parametrize(("name", "content", "expected"), CONLL, ids=[c[0] for c in CONLL])
def test_broken_conll(ssl, tmp_path: Path, name: str, content: str, expected: str) -> None:
    path = tmp_path / "data.conll"
    path.write_text(content)
    done = ssl("finetune", "task=token_classification", f"data.train={path}", *TINY, "run.dir=run")
    assert done.code == 2 and re.search(expected, done.err), done.err


def test_words_and_tags_must_pair(ssl, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"tokens": ["a", "b"], "tags": ["O"]}\n')
    done = ssl("finetune", "task=token_classification", "data.train=data.jsonl", *TINY, "run.dir=run")
    assert done.code == 2 and "data.jsonl:1: 2 words but 1 tags" in done.err


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("nothing.jsonl", r"data\.train=nothing\.jsonl: no such file; there are here\.jsonl"),
        ("no/such/folder.jsonl", r"the folder does not exist"),
        ("empty", r"data\.train=empty: no data files in this folder"),
        ("*.csv", r"data\.train=\*\.csv: no file matches"),
        ("here.jsonl,here.jsonl", r"is listed twice"),
        ("/dev/zero", r"not a regular file"),
    ],
)
def test_what_data_train_may_not_name(ssl, tmp_path: Path, spec: str, expected: str) -> None:
    (tmp_path / "here.jsonl").write_text(GOOD + "\n")
    (tmp_path / "empty").mkdir()
    value = f"[{spec}]" if "," in spec else spec
    done = ssl("pretrain", f"data.train={value}", "run.dir=run")
    assert done.code == 2 and re.search(expected, done.err), done.err
    assert not (tmp_path / "run").exists()

"""Data that is odd, not broken: nothing of it is lost, mislabelled or counted wrongly without a word, and what an error advises works."""

import json
import shlex
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from sslcli.data.conll import records as tagged
from sslcli.data.delimited import records as table
from sslcli.data.lines import Bad
from sslcli.data.reader import named
from sslcli.data.source import resolve
from sslcli.data.survey import _typed
from sslcli.data.text import held_out
from tests.conftest import TINY, rows, write_jsonl


def sheet(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("closed", [False, True])
def test_a_quote_that_swallows_good_rows_is_no_one_bad_record(ssl, tmp_path: Path, closed: bool) -> None:
    lines = ["text,label", *(f"row number {i} of a long table,{'ab'[i % 2]}" for i in range(6000))]
    lines[100] = '"an opened quote,a'
    if closed:
        lines[400] = 'and here "a closed one,b'
    done = ssl("finetune", f"data.train={sheet(tmp_path / 'a.csv', lines)}", "data.on_bad_record=skip", *TINY, "run.dir=run", "--dry-run")
    assert done.code == 2 and "a.csv:101" in done.err and "quote" in done.err, done.err


def test_labels_are_named_as_the_error_names_them(ssl, tmp_path: Path) -> None:
    labels = ["Sci/Tech", "(x)", "not good", "it's: [new]", "null", "True", "0", "1.50", 'say "no"', "好评", "plain"]
    (word,) = shlex.split(_typed(labels))
    said = OverridesParser.create().parse_override(word).value()
    assert [named(x) for x in said] == labels and _typed(["a", "b-c"]) == "data.labels=[a,b-c]"
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": r["text"], "label": i % 3} for i, r in enumerate(rows(60))])
    done = ssl("finetune", f"data.train={path}", "data.labels=[0,1,2,3]", *TINY, "trainer.steps=1", "baseline=false", "run.dir=run")
    assert done.code == 0, done.err
    assert json.loads(Path("run/data.json").read_text())["labels_in_order"] == ["0", "1", "2", "3"]


def test_labels_that_are_no_number_are_missing(ssl, tmp_path: Path) -> None:
    texts = rows(40)
    labels = [float("nan") if i % 8 == 0 else float(i % 2) for i in range(40)]
    pq.write_table(pa.table({"text": [r["text"] for r in texts], "label": labels}), tmp_path / "a.parquet")
    done = ssl("finetune", f"data.train={tmp_path / 'a.parquet'}", *TINY, "run.dir=run")
    assert done.code == 2 and "(the label) is nan" in done.err and "35 good, 5 bad" in done.err


def test_a_source_is_a_name(ssl, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{**r, "meta": {"a": 1}} for r in rows(40)])
    done = ssl("finetune", f"data.train={path}", "data.columns.source=meta", *TINY, "run.dir=run")
    assert done.code == 2 and "meta (the source) is an object" in done.err


def test_skip_is_advised_where_it_helps(ssl, tmp_path: Path) -> None:
    for bad, advised in ((5, True), (15, False)):
        path = write_jsonl(tmp_path / f"{bad}.jsonl", [{**r, "label": "" if i < bad else r["label"]} for i, r in enumerate(rows(100))])
        done = ssl("finetune", f"data.train={path}", *TINY, "run.dir=run")
        assert done.code == 2 and ("or leave them out with data.on_bad_record=skip" in done.err) == advised, done.err
        assert advised or "leaves out at most 10 of 100" in done.err


def test_a_name_may_hold_what_a_pattern_holds(tmp_path: Path) -> None:
    for name in ("train[1].csv", "what?.csv"):
        path = sheet(tmp_path / name, ["text,label", "a,b"])
        assert resolve("data.train", str(path)) == [path]


@pytest.mark.parametrize(
    "lines", [["房间太小而且很吵,差评", "服务很好,好评", "还会再来,好评", "不会再来,差评"], ["awful film,neg", "a joy,pos", "dull,neg"]]
)
def test_a_table_without_a_header_is_told(ssl, tmp_path: Path, lines: list[str]) -> None:
    done = ssl("finetune", f"data.train={sheet(tmp_path / 'a.csv', lines * 10)}", *TINY, "run.dir=run")
    assert done.code == 2 and "the first line looks like data: add a header line?" in done.err, done.err


def test_a_tab_is_named_and_columns_without_a_name_are(tmp_path: Path) -> None:
    path = sheet(tmp_path / "a.csv", ["text\tlabel", "x, y\ta"])
    (bad,) = table(path, "utf-8", None)
    assert isinstance(bad, Bad) and bad.reason.endswith("use data.delimiter=tab")
    assert [r[1] for r in table(path, "utf-8", "tab") if not isinstance(r, Bad)] == [{"text": "x, y", "label": "a"}]
    (bad,) = table(sheet(tmp_path / "b.csv", ["text,label,,", "x,a,,"]), "utf-8", None)
    assert isinstance(bad, Bad) and "no name for column 3, 4" in bad.reason


def test_a_hash_may_be_a_word(tmp_path: Path) -> None:
    path = sheet(tmp_path / "a.conll", ["# O", "hello O", "Bob B-PER", "", "# a comment of three", "# text = of one", "Ann B-PER"])
    assert [r[1]["tokens"] for r in tagged(path, "utf-8") if not isinstance(r, Bad)] == [["#", "hello", "Bob"], ["Ann"]]


def test_of_lists_of_labels_no_more_is_held_out_than_is_said() -> None:
    strata = [i % 400 for i in range(1000)] + [1000] * 500  # most lists of labels stand there two or three times
    held = held_out(0, strata, 0.1, pooled=True)
    assert len(held) == 150 and Counter(strata[i] == 1000 for i in held.tolist())[True] == 50
    assert len(held_out(0, strata, 0.1)) == 450, "of single labels each has one"

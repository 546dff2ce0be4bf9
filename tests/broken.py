"""Broken text files, each with what is said of it. The kinds are those of the product's reliability plan: J (JSON lines), C (CSV), Q
(Parquet)."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

GOOD = '{"text": "a good line of words", "label": "a"}'
OTHER = '{"text": "another good line of words", "label": "b"}'


@dataclass
class Kind:
    name: str
    make: Callable[[Path], Path]
    expected: str  # what the first line of the error matches
    code: int = 2
    more: tuple[str, ...] = ()
    record: bool = True  # a record is at fault: the others are counted


def text(*lines: str, name: str = "data.jsonl", end: str = "\n") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(end.join(lines).encode() + end.encode())
        return path

    return make


def raw(content: bytes, name: str = "data.jsonl") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content)
        return path

    return make


def bad_line(name: str, line: str | bytes, expected: str) -> list[Kind]:
    """The bad line first, in the middle, last; plain and compressed."""
    line = line.encode() if isinstance(line, str) else line
    kinds = []
    for place, number in (("first", 1), ("middle", 2), ("last", 3)):
        lines = [GOOD.encode(), OTHER.encode()]
        lines.insert(number - 1, line)
        content = b"\n".join(lines) + b"\n"
        where = rf"data\.jsonl:{number}( \(byte \d+\))?: {expected}"
        kinds.append(Kind(f"{name}-{place}", raw(content), where))
    content = gzip.compress(b"\n".join([GOOD.encode(), line, OTHER.encode()]) + b"\n")
    kinds.append(Kind(f"{name}-gz", raw(content, "data.jsonl.gz"), rf"data\.jsonl\.gz:2( \(byte \d+\))?: {expected}"))
    return kinds


JSON_LINES = [
    Kind("J1 empty file", raw(b""), r"data\.jsonl: no records; the file is empty", record=False),
    Kind("J2 only blank lines", raw(b"\n \n\n"), r"data\.jsonl: no records", record=False),
    *bad_line("J3 not JSON", "text: hello", r"not JSON at column 1"),
    Kind("J4 last line cut", raw(f'{GOOD}\n{{"text": "a good'.encode()), r"data\.jsonl:2.*: the last line is incomplete"),
    Kind("J5 unclosed string", text(GOOD, '{"text": "abc, "label": "a"}', OTHER), r"data\.jsonl:2.*: (a string is not closed|not JSON at)"),
    Kind(
        "J5 string open to the end", text(GOOD, '{"text": "abc', OTHER), r"data\.jsonl:2.*: a string is not closed \(it opens in column 10"
    ),
    Kind("J6 one array", raw(f"[{GOOD},\n{OTHER}]".encode()), r"data\.jsonl:1.*: this is a JSON array, not JSON lines", record=False),
    *[
        k
        for value, name in (("[1, 2]", "an array"), ("7", "a number"), ('"words"', "a string"), ("null", "null"))
        for k in bad_line(f"J7 {name} as a record", value, f"holds {name}; every line must be an object")[1:2]
    ],
    *bad_line("J8 field missing", '{"txet": "words", "label": "a"}', r"no field text \(the text\); found txet, label"),
    *bad_line("J9 wrong type", '{"text": 5, "label": "a"}', r"text is a number; expected text"),
    Kind(
        "J10 types change",
        text(GOOD, '{"text": "x y z", "label": 3}', OTHER),
        r"data\.jsonl:2: label is a number here but text in .*data\.jsonl:1",
    ),
    *bad_line("J11 empty text", '{"text": "  ", "label": "a"}', r"text is empty; .*data\.allow_empty=true"),
    *bad_line("J12 duplicate key", '{"text": "x", "text": "y", "label": "a"}', r"the key 'text' stands twice"),
    *bad_line("J13 NaN", '{"text": "x", "label": NaN}', r"NaN is not JSON"),
    *bad_line("J13 Infinity", '{"text": "x", "label": -Infinity}', r"-Infinity is not JSON")[:1],
    *bad_line("J14 not UTF-8", b'{"text": "caf\xe9", "label": "a"}', r"not valid utf-8; .*data\.encoding=latin-1"),
    *[
        Kind(
            f"J14 cut inside a character, {e}",
            raw(f'{GOOD}\n{{"text": "酒店'.encode(e)[:-1]),
            r"data\.jsonl:2 \(byte \d+\): the file ends inside a character: the last line is incomplete",
            more=(f"data.encoding={e}",),
        )
        for e in ("utf-8", "gb18030")
    ],
    Kind("J14 the byte is named", raw(GOOD.encode() + b'\n{"text": "\xff"}\n'), rf"data\.jsonl:2 \(byte {len(GOOD) + 1 + 10}\)"),
    *[
        Kind(f"J15 {e}", raw(f"{GOOD}\n{OTHER}\n".encode(e)), rf"data\.jsonl.*: (this is {e[:6].upper()}|looks like UTF-16)", record=False)
        for e in ("utf-16", "utf-32", "utf-16-le")
    ],
    *bad_line("J17 lone surrogate", r'{"text": "half \ud800 pair", "label": "a"}', r"a lone surrogate"),
    *bad_line("J18 zero bytes", b'{"text": "x"\x00\x00\x00}', r"zero bytes from byte \d+"),
    Kind("J18 zero-filled tail", raw(f"{GOOD}\n".encode() + bytes(4096)), r"data\.jsonl:2.*: zero bytes from byte \d+"),
    Kind("J19 old Mac line ends", raw(f"{GOOD}\r{OTHER}\r{GOOD}\r".encode()), r"data\.jsonl:1.*: lines end in CR alone", record=False),
    Kind(
        "J20 an endless line",
        raw(f"{GOOD}\n".encode() + b'{"text": "' + b"x" * 40_000_000),
        r"data\.jsonl:2.*: one line of more than 16000000 bytes",
    ),
    *bad_line("J21 deep nesting", '{"text": ' + "[" * 100_000, r"nesting over 64"),
    *bad_line("J22 long integer", '{"text": "x", "n": ' + "7" * 5000 + "}", r"an integer of 5000 digits"),
    *bad_line("J22 huge float", '{"text": "x", "n": 1e999}', r"the number 1e999 is too large"),
    *bad_line("J23 two objects", f"{GOOD} {OTHER}", rf"a second value begins at column {len(GOOD) + 2}"),
    Kind(
        "J24 truncated gz",
        raw(gzip.compress(f"{GOOD}\n".encode() * 5000)[:-200], "data.jsonl.gz"),
        r"data\.jsonl\.gz.*: the gz data is cut off",
        record=False,
    ),
    Kind("J24 gz that is plain", text(GOOD, name="data.jsonl.gz"), r"data\.jsonl\.gz: named \.gz but not compressed", record=False),
    Kind(
        "J25 gzip bomb",
        raw(gzip.compress(b"a" * 40_000_000, 9), "data.jsonl.gz"),
        r"data\.jsonl\.gz.*: (unpacks to more than 200 times|one line of)",
        record=False,
    ),
]


def table(*lines: str, name: str = "data.csv") -> Callable[[Path], Path]:
    return text("text,label", *lines, name=name)


def workbook(folder: Path) -> Path:
    path = folder / "data.csv"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return path


def tarred(folder: Path) -> Path:
    """With a member that would land outside, were it ever unpacked."""
    path = folder / "data.jsonl.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("../../outside.jsonl")
        member.size = len(GOOD)
        archive.addfile(member, io.BytesIO(GOOD.encode()))
    return path


ONE, TWO = "good words,a", "other words,b"
CSV = [
    Kind("C1 header only", table(), r"data\.csv: no records", record=False),
    Kind(
        "C1 no header",
        text("the words of a first row,a", ONE, TWO, name="data.csv"),
        r"data\.csv.*found .*: choose with data\.columns",
        record=False,
    ),
    Kind("C1 header twice", text("text,text", ONE, name="data.csv"), r"data\.csv:1: the header names text twice", record=False),
    Kind("C2 more fields", table(ONE, "a, b,c", TWO), r"data\.csv:3.*: 3 fields, more than the header's 2"),
    Kind("C3 fewer fields", table(ONE, "words", TWO), r"data\.csv:3.*: 1 fields, fewer than the header's 2"),
    Kind("C4 unclosed quote", table(ONE, '"open,a', TWO, TWO), r"data\.csv:3.*: a quote opens in this record and is never closed"),
    Kind("C4 text after a quote", table(ONE, '"open" words,a', TWO), r"data\.csv:3.*: text follows a closing quote"),
    Kind(
        "C5 semicolons",
        text("text;label", "a b;x", "c d;y", name="data.csv"),
        r"data\.csv:1: 1 column found; the delimiter looks like ';'",
        record=False,
    ),
    Kind(
        "C5 tabs",
        text("text\tlabel", "a b\tx", name="data.csv"),
        r"data\.csv:1: 1 column found; the delimiter looks like 'tab'",
        record=False,
    ),
    Kind("C6 zero byte", raw(b"text,label\nwo\x00rds,a\ngood,b\n", "data.csv"), r"data\.csv:2.*: zero bytes"),
    Kind(
        "C7 Latin-1",
        raw("text,label\ncafé,a\ngood,b\n".encode("latin-1"), "data.csv"),
        r"data\.csv:2 \(byte 14\): not valid utf-8.*data\.encoding=latin-1",
    ),
    Kind("C8 a field too long", table(ONE, f'"{"x" * 200_000}",a', TWO), r"data\.csv:3.*: a field of more than 131072 characters"),
    Kind("C9 label empty", table(ONE, "words,", TWO), r"data\.csv:3: label is empty; give it a label"),
    Kind(
        "C9 label not listed",
        table(ONE, "words,x\x1b[31m", TWO),
        r"data\.csv:3: the label x\\x1b\[31m is not in data\.labels",
        more=("data.labels=[a,b]",),
    ),
    Kind("C10 decimal comma", table('one,"1,5"', "two,2"), r"data\.csv:2: the rank 1,5 has a comma", more=("task.labelling=ordinal",)),
    Kind("C11 error cell", table(ONE, "#REF!,a", TWO), r"data\.csv:3.*: the cell #REF! is a spreadsheet error"),
    Kind("C12 a workbook", workbook, r"data\.csv: this is a zip archive \(an \.xlsx workbook\?\)", record=False),
    Kind("K15 a tar archive", tarred, r"data\.jsonl\.gz: this is a tar archive, which is never unpacked here", record=False),
]

COLUMNS = {"text": ["good words here", "other words", "more of them"], "label": ["a", "b", "a"]}


def parquet(change: Callable[[bytearray], bytes] = bytes, columns: dict | None = None, **options: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "data.parquet"
        pq.write_table(pa.table(columns or COLUMNS), path, write_page_checksum=True, **options)
        path.write_bytes(change(bytearray(path.read_bytes())))
        return path

    return make


def flipped(content: bytearray) -> bytes:
    place = content.index(b"more of them") + 3
    content[place] ^= 1
    return bytes(content)


def shards(folder: Path) -> Path:
    pq.write_table(pa.table(COLUMNS), folder / "a.parquet")
    pq.write_table(pa.table({**COLUMNS, "label": [1, 2, 3]}), folder / "b.parquet")
    return folder / "*.parquet"


def a_shard_missing(folder: Path) -> Path:
    for i in (0, 1, 3):
        pq.write_table(pa.table(COLUMNS), folder / f"part-{i:05d}-of-00004.parquet")
    return folder / "*.parquet"


def extension(folder: Path) -> Path:
    field = pa.field(
        "text", pa.binary(), metadata={b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": b"cos\nsystem"}
    )
    data = pa.table([pa.array([b"x", b"y"]), pa.array(["a", "b"])], schema=pa.schema([field, pa.field("label", pa.string())]))
    pq.write_table(data, folder / "data.parquet")
    return folder / "data.parquet"


def bomb(folder: Path) -> Path:
    path = folder / "data.parquet"
    pq.write_table(pa.table({"text": ["x" * 1_000_000] * 400, "label": ["a"] * 400}), path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 1_000_000
    return path


PARQUET = [
    Kind("Q1 truncated", parquet(lambda c: bytes(c[:-100])), r"data\.parquet: the end of the parquet file is missing", record=False),
    Kind(
        "Q2 another kind of file",
        raw(b"GIF89a" + bytes(100), "data.parquet"),
        r"data\.parquet: named \.parquet but begins with .*GIF8",
        record=False,
    ),
    Kind(
        "Q3 a flipped bit",
        parquet(flipped, compression="none", use_dictionary=False),
        r"data\.parquet:1: row group 1, column text is damaged",
        record=False,
    ),
    Kind("Q4 shards differ", shards, r"b\.parquet: column label is int64, but string in .*a\.parquet", record=False),
    Kind(
        "Q5 column missing",
        parquet(columns={"body": [1, 2], "label": ["a", "b"]}),
        r"data\.parquet: no column for the text; found body, label",
        record=False,
    ),
    Kind(
        "Q6 no rows",
        parquet(columns={"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}),
        r"data\.parquet: no records",
        record=False,
    ),
    Kind(
        "Q7 a null",
        parquet(columns={"text": ["x y", None, "z w"], "label": ["a", "b", "a"]}),
        r"data\.parquet:2: text \(the text\) is null",
    ),
    Kind("Q8 a bomb", bomb, r"data\.parquet: \d+ bytes would unpack to \d+, more than 200 times", record=False),
    Kind(
        "Q9 an extension type",
        extension,
        r"data\.parquet: column text has the extension type arrow\.py_extension_type",
        code=10,
        record=False,
    ),
    Kind("Q10 a shard missing", a_shard_missing, r"data\.train: shard part-00002-of-00004 is missing \(3 of 4 found\)", record=False),
]

"""From what a user names (a file, a glob, a folder, `-`, `hf:...`, `docstrings:...`) to raw records with their places."""

import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from sslcli.data import columnar, conll, delimited, jsonl, plain
from sslcli.data.lines import Bad, Unreadable, chunks, magic
from sslcli.data.store import cache as prepared
from sslcli.data.store import content_hash
from sslcli.errors import BadInput, at, printable

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".conll": "conll",
    ".conllu": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".iob2": "conll",
    ".txt": "text",
    ".text": "text",
}

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")

Raw: TypeAlias = tuple[str, int, dict[str, Any]]
"""File, record from 1, fields as they stand there."""


class Source(Protocol):
    def records(self) -> Iterator[Raw | tuple[str, Bad]]: ...

    def fingerprint(self) -> list[dict[str, Any]]:
        """What the data is made of, file by file: name, size and content hash."""


def open_source(key: str, spec: str | Sequence[str], *, encoding: str, delimiter: str | None, tagged: bool, seed: int) -> Source:
    """`key` is the configuration key, for error messages; `tagged`: the task wants words with tags, so a .txt may be CoNLL."""
    if embedded(spec):
        from sslcli.data.docstrings import Docstrings

        return Docstrings(key, str(spec), seed)
    if isinstance(spec, str) and spec.startswith("hf:"):
        from sslcli.data.hub import Hub

        return Hub(key, spec)
    files = [p for s in ([spec] if isinstance(spec, str) else spec) for p in resolve(key, s)]
    _refuse_odd_shards(key, files)
    return Files(files, encoding, delimiter, tagged)


def embedded(spec: Any) -> bool:
    """Whether this names the texts that come with the tool, not a file."""
    return isinstance(spec, str) and (spec == "docstrings" or spec.startswith("docstrings:"))


class Files:
    def __init__(self, paths: Sequence[Path], encoding: str, delimiter: str | None, tagged: bool):
        self.paths, self.encoding, self.delimiter, self.tagged = list(paths), encoding, delimiter, tagged

    def records(self) -> Iterator[Raw | tuple[str, Bad]]:
        self._refuse_mixed_schemas()
        for path in self.paths:
            try:
                kind = format_of(path, self.tagged)
                found = False
                for item in self._read(path, kind):
                    found = True
                    yield (str(path), item) if isinstance(item, Bad) else (str(path), *item)
                if not found:
                    yield str(path), Bad(None, "no records; the file is empty" if path.stat().st_size < 4 else "no records", fatal=True)
            except Unreadable as error:
                yield str(path), error.bad
            except OSError as error:
                yield str(path), Bad(None, f"cannot be read: {error.strerror or error}", fatal=True)

    def _read(self, path: Path, kind: str) -> Iterator[Any]:
        if kind == "jsonl":
            return jsonl.records(path, self.encoding)
        if kind == "csv":
            return delimited.records(path, self.encoding, self.delimiter)
        if kind == "parquet":
            return columnar.records(path, None)
        if kind == "conll":
            return conll.records(path, self.encoding)
        return plain.records(path, self.encoding)

    def fingerprint(self) -> list[dict[str, Any]]:
        return [{"file": p.name, "bytes": p.stat().st_size, "sha256": content_hash(p)} for p in self.paths]

    def _refuse_mixed_schemas(self) -> None:
        shards = [(p, columnar.schema(p)) for p in self.paths if magic(p)[:4] == b"PAR1"]
        shards = [(p, s) for p, s in shards if s is not None]
        for path, schema in shards[1:]:
            first, expected = shards[0]
            if schema != expected:
                differing = next(c for c in {**expected, **schema} if expected.get(c) != schema.get(c))  # type: ignore[dict-item,union-attr]
                was, now = expected.get(differing, "absent"), schema.get(differing, "absent")  # type: ignore[union-attr]
                raise BadInput(f"{path}: column {printable(differing)} is {now}, but {was} in {first}; make the shards alike")


def resolve(key: str, spec: str) -> list[Path]:
    """The files that `spec` names, sorted. Missing, unreadable and odd ones are one line each."""
    if spec == "-":
        return [_standard_input()]
    path = Path(spec).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if _suffix(p) in FORMATS and not _hidden(p.relative_to(path)))
        if not found:
            looked = f"looked for {' '.join(sorted(FORMATS))}, also .gz and .zst"
            pictures = (
                "; it holds pictures: for a run on them add data=images (ssl leaks: data.kind=image)"
                if any(_suffix(p) in PICTURES for p in path.rglob("*"))
                else ""
            )
            raise BadInput(f"{key}={printable(spec)}: no data files in this folder ({looked}){pictures}")
    elif any(c in spec for c in "*?[") and not path.exists():
        anchor = Path(path.anchor)
        pattern = str(path.relative_to(anchor)) if path.anchor else str(path)
        asked = _hidden(Path(pattern))  # a name that begins with a point is found where the pattern says so, as in the shell
        found = sorted(p for p in anchor.glob(pattern) if not p.is_dir() and (asked or not _hidden(p)))
        if not found:
            raise BadInput(f"{key}={printable(spec)}: no file matches; quote the pattern if the shell expanded it")
    else:
        found = [path]
    for p in found:
        if not p.exists():
            beside = sorted(q.name for q in p.parent.iterdir() if _suffix(q) in FORMATS)[:5] if p.parent.is_dir() else []
            near = (
                f"; there are {printable(', '.join(beside))}" if beside else "; the folder does not exist" if not p.parent.is_dir() else ""
            )
            raise BadInput(f"{key}={printable(p)}: no such file{near}")
        if not p.is_file():
            raise BadInput(f"{key}={printable(p)}: not a regular file")
        try:
            p.open("rb").close()
        except OSError as error:
            raise BadInput(f"{key}={printable(p)}: cannot be read: {error.strerror}") from error
    return found


def format_of(path: Path, tagged: bool) -> str:
    """By content where it is unmistakable, else by suffix, else by looking at the first lines."""
    start = magic(path)
    if start[:4] == b"PAR1" or _suffix(path) == ".parquet":
        return "parquet"
    if start[:4] == b"PK\x03\x04":
        reason = "this is a zip archive (an .xlsx workbook?), not text; export it as CSV in UTF-8"
        raise Unreadable(Bad(None, reason, fatal=True))
    known = FORMATS.get(_suffix(path))
    if known in ("jsonl", "csv", "conll") or (known == "text" and not tagged):
        return known
    head = next(iter(chunks(path)), b"")[:65536].decode("utf-8", "replace").lstrip("\ufeff")
    sample = head.splitlines()[:200]
    if head.lstrip()[:1] == "{":
        return "jsonl"
    if conll.looks_like(sample):
        return "conll"
    if known is None and len(sample) > 1 and (n := sample[0].count("\t") or sample[0].count(",")):
        separator = "\t" if "\t" in sample[0] else ","
        if all(line.count(separator) >= n for line in sample[1:20] if line):
            return "csv"
    return "text"


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in path.parts)


def _suffix(path: Path) -> str:
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def kept_input(name: str) -> Path:
    """Where what came by standard input is kept: a run's data.json has its name."""
    return prepared() / "stdin" / name


@cache
def _standard_input() -> Path:
    """Standard input can be read once, and data is read several times: keep it under its content's name."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise BadInput("data.train=-: replicas cannot share standard input; write it to a file first")
    raw = sys.stdin.buffer.read()
    path = kept_input(hashlib.sha256(raw).hexdigest()[:32])
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(raw)
        temporary.rename(path)
    return path


def _refuse_odd_shards(key: str, files: Sequence[Path]) -> None:
    twice = {p for p, times in Counter(files).items() if times > 1}
    if twice:
        raise BadInput(f"{key}: {at(min(twice))} is listed twice; name each file once")
    shards: dict[tuple[str, int], set[int]] = {}
    for path in files:
        match = re.search(r"^(.*)-(\d{5})-of-(\d{5})", path.name)
        if match:
            shards.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (stem, total), found in shards.items():
        # writers count shards from 0 or from 1
        missing = sorted(set(range(total)) - found) if 0 in found or total not in found else sorted(set(range(1, total + 1)) - found)
        if missing:
            raise BadInput(f"{key}: shard {printable(stem)}-{missing[0]:05d}-of-{total:05d} is missing ({len(found)} of {total} found)")

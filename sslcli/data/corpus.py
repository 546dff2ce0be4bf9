"""An unlabelled corpus: read once, checked, tokenised, and laid down as one long run of tokens with document ends kept.

Memory is that of one chunk, whatever the size of the corpus.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sslcli.data import chance
from sslcli.data.encode import ranges
from sslcli.data.reader import Reader
from sslcli.data.store import Store, Writer, built
from sslcli.data.text import Prepared, TextData
from sslcli.data.tokenizer import Tokenizer
from sslcli.errors import BadInput

CHUNK = 1 << 21  # characters that are tokenised together
HELD_OUT = 1 << 17  # tokens, about, of the held-out part at most that is split off when data.valid is absent
BYTES = 4.5  # of text in a token, to guess by from the size of the files
PACKED = {".gz": 3.0, ".zst": 3.0, ".parquet": 2.0}  # bytes of text in a byte of such a file

Progress = Callable[[int], None]


def prepare(data: TextData, tokenizer: Tokenizer, progress: Progress = lambda _: None, only: str | None = None) -> Prepared:
    """Stores `train`, `valid` and (if named) `test` of token ids, each document between the tokenizer's own ends.

    A record of pairs is several documents, one after another (`texts` of the store's meta). `data.verbatim` keeps their text too.
    """
    roles, beside = data.corpus_roles, ("negative",) if "text_b" in data.corpus_roles else ()
    for name in ("shots", "labels", "too_long", "gallery"):
        if only != "unlabelled" and getattr(data, name) is not None:
            raise BadInput(f"data.{name}: means nothing for an unlabelled corpus; leave it out")
    prepared = Prepared({}, {"columns": {}, "files": {}}, [], [])
    # the held-out part is split off the training text, so `valid` may need that too
    wanted = {None: ("train", "valid", "test"), "test": ("test",), "valid": ("valid",) if data.valid is not None else ("train",)}
    wanted |= {"unlabelled": ("unlabelled",)}
    for split in ("train", "valid", "test", "unlabelled"):
        reader = data.reader(split, roles, beside) if split in wanted[only] else None
        if reader is None:
            continue
        key: dict[str, Any] = {
            "kind": "corpus",
            "files": reader.source.fingerprint(),
            "columns": reader.columns,
            "reading": [data.encoding, data.delimiter, data.on_bad_record, data.allow_empty],
            "tokenizer": tokenizer.identity,
            "ends": [tokenizer.prefix, tokenizer.suffix],
            "held_out": None,
            **({"verbatim": True} if data.verbatim else {}),
        }
        if split == "train" and data.valid is None:
            key["held_out"] = [data.seed, _share(key["files"], data.valid_fraction)]
        folder = built(
            key, partial(_build, reader=reader, tokenizer=tokenizer, held_out=key["held_out"], verbatim=data.verbatim, progress=progress)
        )
        prepared.stores[split] = Store(folder / "main")
        prepared.facts["columns"][split] = reader.columns
        prepared.facts["files"][split] = key["files"]
        if key["held_out"]:
            prepared.stores["valid"] = Store(folder / "held_out")
            prepared.facts["valid_is"] = f"{key['held_out'][1]:.2%} of the documents, drawn with seed {data.seed}"
        prepared.bad += prepared.stores[split].meta["bad"]
    for split, store in prepared.stores.items():
        prepared.facts[split] = {k: store.meta[k] for k in ("documents", "tokens", "bytes", "unknown")}
    return prepared


def _build(making: Path, reader: Reader, tokenizer: Tokenizer, held_out: list[Any] | None, verbatim: bool, progress: Progress) -> None:
    dtype = np.uint16 if tokenizer.size <= 1 << 16 else np.uint32
    names = ("main", "held_out") if held_out else ("main",)
    writers: dict[str, Writer] = {}
    fields: dict[str, Any] = {"ids": dtype, **({"text": np.uint8} if verbatim else {})}
    each = {"texts": len(reader.columns)} if len(reader.columns) > 1 else {}
    for name in names:
        (making / name).mkdir()
        writers[name] = Writer(making / name, fields, set(fields))
        writers[name].meta = {"lossless": tokenizer.lossless, "documents": 0, "tokens": 0, "bytes": 0, "unknown": 0, "bad": [], **each}
    start, done = time.monotonic(), 0
    try:
        for records in _chunks(reader):
            if reader.bad and reader.policy == "fail":
                continue  # nothing will be kept: only look for further bad records
            chosen = _held_out(held_out, done, len(records), writers)
            done += len(records)
            for name, part in ((n, chosen == (n == "held_out")) for n in names):
                _append(writers[name], [t for r, mine in zip(records, part.tolist(), strict=True) if mine for t in r], tokenizer)
            progress(sum(w.meta["bytes"] for w in writers.values()))
        bad = reader.finish()
        for name, writer in writers.items():
            writer.meta["bad"] = bad if name == "main" else []
            writer.meta["seconds"] = round(time.monotonic() - start, 3)
            writer.finish()
    finally:
        for writer in writers.values():
            writer.close()


def _share(files: list[dict[str, Any]], fraction: float) -> float:
    """Of the documents to hold out, all over the corpus: as asked, or what makes about HELD_OUT tokens of a large one."""
    size = sum(f.get("bytes", 0) * PACKED.get(Path(f["file"]).suffix, 1.0) for f in files)
    return round(min(fraction, HELD_OUT * BYTES / max(size, 1)), 4) or 1e-4


def _held_out(held_out: list[Any] | None, first: int, count: int, writers: dict[str, Writer]) -> np.ndarray:
    if not held_out or writers["held_out"].meta["tokens"] >= 4 * HELD_OUT:  # where the size was no guide
        return np.zeros(count, bool)
    seed, fraction = held_out
    chosen = chance.uniform(chance.keys(seed, 0x8E1D, np.arange(first, first + count)), 1)[:, 0] < fraction
    if first == 0 and count > 1 and not chosen.any():
        chosen[count // 2] = True  # a small corpus has a held-out document too
    return chosen


def _append(writer: Writer, texts: list[str], tokenizer: Tokenizer) -> None:
    if not texts:
        return
    ids, lengths = tokenizer.corpus_encoder.encode(texts)
    before, after = np.array(tokenizer.prefix, np.uint32), np.array(tokenizer.suffix or [tokenizer.end], np.uint32)
    if tokenizer.unknown is not None:
        writer.meta["unknown"] += int((ids == tokenizer.unknown).sum())
    whole = lengths + len(before) + len(after)
    starts = np.cumsum(whole) - whole
    laid = np.empty(int(whole.sum()), np.uint32)
    laid[ranges(starts + len(before), lengths)] = ids
    for i, special in enumerate(before):
        laid[starts + i] = special
    for i, special in enumerate(after):
        laid[starts + whole - len(after) + i] = special
    coded = [t.encode("utf-8") for t in texts]
    more = {"text": np.array([len(c) for c in coded])} if "text" in writer.fields else {}
    values = {"text": np.frombuffer(b"".join(coded), np.uint8)} if more else {}
    writer.append(len(texts), {"ids": whole, **more}, ids=laid, **values)
    writer.meta["documents"] += len(texts)
    writer.meta["tokens"] += len(laid)
    writer.meta["bytes"] += sum(map(len, coded))


def _records(reader: Reader) -> Iterator[list[str]]:
    for file, number, example in reader:
        if isinstance(example.get("negative", ""), str):
            yield [str(example[role]) for role in reader.columns]
        else:
            reader.reject(file, number, f"{reader.columns['negative']} holds no single text; one hard negative a pair is read here")


def _chunks(reader: Reader) -> Iterator[list[list[str]]]:
    records = _records(reader)
    while True:
        held, size = [], 0
        for texts in records:
            held.append(texts)
            size += sum(map(len, texts))
            if size >= CHUNK:
                break
        if not held:
            return
        yield held

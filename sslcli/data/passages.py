"""Queries and the passages that answer them: what is searched is a store of its own, and queries say which of its rows are right."""

import copy
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sslcli.data.examples import Rows, examples_of
from sslcli.data.pairs import kept, laid
from sslcli.data.reader import Reader
from sslcli.data.store import Store, Writer, built, cache
from sslcli.data.survey import Unlabelled, append_lines
from sslcli.data.text import TextData, listed
from sslcli.data.tokenizer import Tokenizer
from sslcli.errors import at, printable

CHUNK = 2000  # passages that are encoded together


class QueryCoder(Unlabelled):
    """How queries are read (data.survey.Coder). `positives` and `negative` name passages of data.gallery, where it has a column `id`;
    else they are the passages' own texts, and those that the gallery lacks (all of them, without one) are searched too."""

    columns: Sequence[str] = ("text_a", "positives")
    optional: Sequence[str] = ("negative",)
    unseen = True
    too_long = "truncate"
    along: Mapping[str, Any] = {"positives": np.int64, "negatives": np.int64}
    beside: Mapping[str, Any] = {}

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.meta: dict[str, Any] = {}  # of the store of queries: which passages they look in
        self.places: dict[str, int] = {}  # name (or text) of a passage -> its row
        self.named = False

    def identity(self) -> Any:
        return [*self.columns, *self.optional, self.meta]

    def tidy(self, example: dict[str, Any]) -> str | None:
        for role in ("positives", "negative"):
            example[role] = [str(x) for x in listed(example.get(role))]
            strange = next((x for x in example[role] if self.named and x not in self.places), None)
            if strange is not None:
                return f"names the passage {printable(strange)}, which is not in data.gallery; mend it, or add the passage"
        return None

    def gold(self, example: dict[str, Any]) -> Any:
        return example["positives"]

    def rows(self, examples: Sequence[dict[str, Any]], labels: Mapping[str, int], tokenizer: Tokenizer, limit: int, too_long: str) -> Rows:
        made = Rows(along={"positives": [], "negatives": []})
        for i, (text, example) in enumerate(zip(laid(tokenizer, [e["text_a"] for e in examples], limit, too_long), examples, strict=True)):
            if kept(made, (text,), too_long):
                made.ids.append(text[0])
                made.owner.append(i)
                for field, role in (("positives", "positives"), ("negatives", "negative")):
                    made.along[field].append(np.array([self.places[x] for x in dict.fromkeys(example[role])], np.int64))
        return made

    def within(self, folder: Path) -> "QueryCoder":
        """The same, looking in the passages of this folder."""
        found = copy.copy(self)
        found.meta, found.places = {"passages": folder.name}, places_of(Store(folder / "rows"), self.named)
        return found

    def searched(self, data: TextData, tokenizer: Tokenizer, limit: int, readers: Mapping[str, Reader]) -> dict[str, Any]:
        """Lay down what each split looks in; the facts of all that was read for it."""
        gallery = data.reader("gallery", ("passage",), ("id",)) if data.gallery is not None else None
        self.named = gallery is not None and "id" in gallery.columns
        facts: dict[str, Any] = {"columns": {}, "files": {}}
        self.pools: dict[str, QueryCoder] = {}
        for split, reader in readers.items():
            key = {
                "kind": "passages",
                "files": [r.source.fingerprint() for r in (gallery, None if self.named else reader) if r is not None],
                "columns": [r.columns for r in (gallery, reader) if r is not None],
                "reading": [data.encoding, data.delimiter, data.on_bad_record],
                "tokenizer": [tokenizer.identity, tokenizer.prefix, tokenizer.suffix, limit],
            }
            folder = built(key, lambda making, reader=reader: _build(making, gallery, None if self.named else reader, tokenizer, limit))  # type: ignore[misc]
            self.pools[split] = self.within(folder)
            facts["gallery"] = {**Store(folder / "rows").meta["facts"], "per_label": {}}
        self.places = next(iter(self.pools.values())).places
        if gallery is not None:
            facts["columns"]["gallery"], facts["files"]["gallery"] = gallery.columns, gallery.source.fingerprint()
        return facts


def passages_of(store: Store) -> Store:
    """What the queries of a store look in."""
    return Store(cache() / "stores" / store.meta["passages"] / "rows")


def places_of(passages: Store, named: bool) -> dict[str, int]:
    lines = examples_of(passages)
    return {(line["gold"] if named else line["input"]): i for i in range(lines.count) for line in (json.loads(lines.text(i)),)}


def _build(making: Path, gallery: Reader | None, queries: Reader | None, tokenizer: Tokenizer, limit: int) -> None:
    for name in ("rows", "examples"):
        (making / name).mkdir()
    rows = Writer(making / "rows", {"ids": np.uint32, "owner": np.int32}, {"ids"})
    lines = Writer(making / "examples", {"text": np.uint8}, {"text"})
    counts: Counter[str] = Counter(cut_rows=0, cut_tokens=0, dropped=0, tokens=0)
    try:
        for chunk in _chunks(_passages(gallery, queries)):
            found = laid(tokenizer, [text for _, text in chunk], limit)
            lengths, owner = np.array([len(ids) for ids, _ in found]), np.arange(len(found)) + rows.count
            rows.append(len(found), {"ids": lengths}, ids=np.concatenate([ids for ids, _ in found]), owner=owner)
            append_lines(lines, [{"input": text, "gold": name} for name, text in chunk])
            cut = [over for _, over in found if over]
            counts.update(cut_rows=len(cut), cut_tokens=sum(cut), tokens=int(lengths.sum()))
        rows.meta = {"facts": {**counts, "examples": rows.count}}
        rows.finish()
        lines.finish()
    finally:
        rows.close()
        lines.close()


def _passages(gallery: Reader | None, queries: Reader | None) -> Iterator[tuple[str, str]]:
    """(name, text), the gallery's first; without names a text stands once, and is its own name."""
    seen: dict[str, str] = {}
    if gallery is not None:
        named = "id" in gallery.columns
        for file, number, example in gallery:
            text = example["passage"]
            name = str(example["id"]) if named else text
            if name not in seen:
                yield name, text
            elif named:
                gallery.reject(file, number, f"the passage {printable(name)} stands twice (first in {seen[name]}); name each once")
            seen.setdefault(name, at(file, number))
        gallery.finish()
    for _, _, example in queries or ():  # what is bad in them is told when they are read as queries
        for text in (str(x) for role in ("positives", "negative") for x in listed(example.get(role))):
            if text not in seen:
                seen[text] = ""
                yield text, text


def _chunks(items: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    held: list[tuple[str, str]] = []
    for item in items:
        held.append(item)
        if len(held) == CHUNK:
            yield held
            held = []
    if held:
        yield held

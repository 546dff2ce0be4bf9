"""Labelled texts as rows of tokens in a store, every cut counted.

An example is what a user wrote; a row is what the model sees. A long example may become several overlapping rows (windows).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sslcli.data.reader import Reader
from sslcli.data.store import Store, Writer, built
from sslcli.data.survey import Coder, append_lines, kept, survey, valid_is, wanted
from sslcli.data.text import Prepared, TextData
from sslcli.data.tokenizer import Tokenizer
from sslcli.errors import BadInput

CHUNK = 2000  # examples that are encoded together


@dataclass
class Rows:
    """Rows of a chunk of examples: token ids with ends, and fields beside them, ragged (`along`) or of one width."""

    ids: list[np.ndarray] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)  # the example that a row is a window of, counted within the chunk
    along: dict[str, list[np.ndarray]] = field(default_factory=dict)
    beside: dict[str, list[Any]] = field(default_factory=dict)
    cut_rows: int = 0
    cut_tokens: int = 0
    dropped: int = 0


class TextCoder(Coder, Protocol):
    """How a task reads its texts: a class that knows no model."""

    too_long: str  # the policy when the user names none
    along: Mapping[str, Any]
    beside: Mapping[str, Any]

    def rows(
        self, examples: Sequence[dict[str, Any]], labels: Mapping[str, int], tokenizer: Tokenizer, limit: int, too_long: str
    ) -> Rows: ...


def prepare(
    data: TextData, coder: TextCoder, tokenizer: Tokenizer, limit: int, labels: list[str] | None = None, only: str | None = None
) -> Prepared:
    """Stores `train`, `valid`, `test`, each a folder with `rows` and `examples`.

    `labels`: those of a trained model, to be kept; `only`: the one split that is wanted (a held-out part needs the training data).
    """
    searching: Any = coder if hasattr(coder, "searched") else None
    for name in ("gallery", "pairs"):
        if getattr(data, name) is not None and not (searching and name == "gallery") and only != "pairs":
            raise BadInput(f"data.{name}: means nothing for this task; leave it out")
    given = labels if labels is not None else data.labels
    readers = {
        split: reader
        for split in wanted(data, only)
        if (reader := data.reader(split, coder.columns, getattr(coder, "optional", ()))) is not None
    }
    looked = searching.searched(data, tokenizer, limit, readers) if searching else {}
    inventory, plans, bad = survey(data, coder, readers, given)
    found = dict(coder.facts)  # as the survey counted them: building reads some examples again
    prepared = Prepared({}, {"columns": {}, "files": {}, "labels": len(inventory), **looked}, inventory, bad)
    for split, (reader, chosen) in plans.items():
        coder = searching.pools[split if split in readers else "train"] if searching else coder
        key = {
            "kind": "examples",
            "files": reader.source.fingerprint(),
            "columns": reader.columns,
            "options": [data.encoding, data.delimiter, data.on_bad_record, data.allow_empty, limit, data.too_long or coder.too_long],
            "tokenizer": tokenizer.identity,
            "ends": [tokenizer.prefix, tokenizer.suffix],
            "coder": coder.identity(),
            "labels": inventory,
            "chosen": None if chosen is None else chosen.tolist(),
        }
        build = partial(_build, reader=reader, chosen=chosen, data=data, coder=coder, inventory=inventory, tokenizer=tokenizer, limit=limit)
        folder = built(key, build)
        prepared.stores[split] = Store(folder / "rows")
        prepared.facts["columns"][split] = reader.columns
        prepared.facts["files"][split] = key["files"]
        facts = Store(folder / "examples").meta
        prepared.facts[split] = {k: facts[k] for k in ("examples", "rows", "tokens", "cut_rows", "cut_tokens", "dropped", "per_label")}
    prepared.facts |= valid_is(data, readers, plans)
    prepared.facts |= found
    return prepared


def shown(example: Mapping[str, Any]) -> Any:
    """What an example is called in predictions.jsonl: its text, its words, or both sides of a pair."""
    sides = {role: example[role] for role in ("text", "tokens", "text_a", "text_b") if role in example}
    return sides if len(sides) > 1 else next(iter(sides.values()))


def _origin(example: Mapping[str, Any]) -> dict[str, Any]:
    """Where an example comes from: file and record, and what its `source` column says."""
    return {key: example[key] for key in ("file", "record", "source") if key in example}


def examples_of(store: Store) -> Store:
    return Store(store.path.parent / "examples")


def _build(
    making: Path,
    reader: Reader,
    chosen: np.ndarray | None,
    data: TextData,
    coder: TextCoder,
    inventory: Sequence[str],
    tokenizer: Tokenizer,
    limit: int,
) -> None:
    for name in ("rows", "examples"):
        (making / name).mkdir()
    ids = {label: i for i, label in enumerate(inventory)}
    dtype = np.uint16 if tokenizer.size <= 1 << 16 else np.uint32
    rows = Writer(making / "rows", {"ids": dtype, "owner": np.int32, **coder.along, **coder.beside}, {"ids", *coder.along})
    examples = Writer(making / "examples", {"text": np.uint8}, {"text"})
    totals: Counter[str] = Counter()
    per_label: Counter[str] = Counter()
    too_long = data.too_long or coder.too_long
    try:
        for chunk in kept(reader, coder, inventory, chosen, CHUNK):
            made = coder.rows(chunk, ids, tokenizer, limit, too_long)
            _append_rows(rows, made, examples.count)
            append_lines(examples, [{"input": shown(example), "gold": coder.gold(example), **_origin(example)} for example in chunk])
            totals.update(cut_rows=made.cut_rows, cut_tokens=made.cut_tokens, dropped=made.dropped, tokens=sum(map(len, made.ids)))
            for example in chunk:
                per_label.update(coder.labels(example))
        if too_long == "error" and totals["cut_rows"]:
            raise BadInput(
                f"{reader.key}: {totals['cut_rows']} texts are longer than {limit} tokens; data.too_long=truncate, window or drop decides"
            )
        if not rows.count:
            raise BadInput(f"{reader.key}: nothing is left to use; every text is longer than {limit} tokens and data.too_long=drop")
        examples.meta = {
            **{k: totals[k] for k in ("cut_rows", "cut_tokens", "dropped", "tokens")},
            "examples": examples.count,
            "rows": rows.count,
            "per_label": dict(per_label.most_common(1000)),
        }
        rows.meta = dict(getattr(coder, "meta", {}))
        rows.finish()
        examples.finish()
    finally:
        rows.close()
        examples.close()


def _append_rows(writer: Writer, made: Rows, first: int) -> None:
    if not made.ids:
        return
    ragged = {"ids": made.ids, **made.along}
    values: dict[str, Any] = {name: np.concatenate(arrays) for name, arrays in ragged.items()}
    values |= {name: np.array(array) for name, array in made.beside.items()}
    lengths = {name: np.array([len(x) for x in arrays]) for name, arrays in ragged.items()}
    writer.append(len(made.ids), lengths, owner=np.array(made.owner) + first, **values)


def windows(count: int, limit: int, breaks: Callable[[int], int] = lambda place: place) -> list[tuple[int, int, int, int]]:
    """Overlapping windows over `count` tokens: (start, end, first owned, end of owned). Every token is owned by exactly one window,
    the one in which it has most context; windows overlap by a quarter. `breaks` moves a place back to where a word begins."""
    if count <= limit:
        return [(0, count, 0, count)]
    overlap = limit // 4
    found: list[tuple[int, int, int, int]] = []
    start = owned = 0
    while True:
        end = min(start + limit, count)
        end = end if end == count else max(breaks(end), start + 1)
        following = breaks(max(end - overlap, start + 1))
        following = end if following <= start else following
        own_end = end if end == count else max(breaks((following + end) // 2), following)
        found.append((start, end, owned, own_end))
        if end == count:
            return found
        start, owned = following, own_end

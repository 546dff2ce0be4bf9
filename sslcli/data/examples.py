"""Labelled examples: label set inferred or checked, held-out and few-label subsets drawn, every cut counted, rows laid down in a store.

An example is what a user wrote; a row is what the model sees. A long example may become several overlapping rows (windows).
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sslcli.data.reader import Reader
from sslcli.data.store import Store, Writer, built
from sslcli.data.text import Prepared, TextData, few, held_out
from sslcli.data.tokenizer import Tokenizer
from sslcli.errors import BadInput, printable

CHUNK = 2000  # examples that are encoded together
ENOUGH_TO_HOLD_OUT = 20  # examples a class: with fewer, every label is worth more in training than in choosing a checkpoint


@dataclass
class Rows:
    """Rows of a chunk of examples: token ids with ends, and fields that run along them (ragged) or stand beside them."""

    ids: list[np.ndarray] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)  # the example that a row is a window of, counted within the chunk
    along: dict[str, list[np.ndarray]] = field(default_factory=dict)
    beside: dict[str, list[Any]] = field(default_factory=dict)
    cut_rows: int = 0
    cut_tokens: int = 0
    dropped: int = 0


class Coder(Protocol):
    """How a task reads its examples: a class that knows no model."""

    columns: Sequence[str]
    too_long: str  # the policy when the user names none
    along: Mapping[str, Any]
    beside: Mapping[str, Any]

    def tidy(self, example: dict[str, Any]) -> str | None:
        """Bring an example into its canonical form in place (repairs are counted); a reason if it cannot be used."""

    def labels(self, example: dict[str, Any]) -> list[str]: ...
    def stratum(self, example: dict[str, Any]) -> str: ...
    def inventory(self, seen: Counter[str], given: list[str] | None) -> list[str]: ...
    def rows(
        self, examples: Sequence[dict[str, Any]], labels: Mapping[str, int], tokenizer: Tokenizer, limit: int, too_long: str
    ) -> Rows: ...
    def gold(self, example: dict[str, Any]) -> Any:
        """What predictions are scored against: plain values."""

    def identity(self) -> Any: ...

    facts: dict[str, Any]


def prepare(
    data: TextData, coder: Coder, tokenizer: Tokenizer, limit: int, labels: list[str] | None = None, only: str | None = None
) -> Prepared:
    """Stores `train`, `valid`, `test`, each a folder with `rows` and `examples`.

    `labels`: those of a trained model, to be kept; `only`: the one split that is wanted (a held-out part needs the training data).
    """
    given = labels if labels is not None else data.labels
    splits = {None: ("train", "valid", "test"), "test": ("test",), "valid": ("valid",) if data.valid is not None else ("train",)}[only]
    readers = {split: reader for split in splits if (reader := data.reader(split, coder.columns)) is not None}
    inventory, plans, bad = _survey(data, coder, readers, given)
    found = dict(coder.facts)  # as the survey counted them: building reads some examples again
    prepared = Prepared({}, {"columns": {}, "files": {}, "labels": len(inventory)}, inventory, bad)
    for split, (reader, chosen) in plans.items():
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
    if "valid" not in readers and "valid" in plans:
        prepared.facts["valid_is"] = f"{data.valid_fraction:.0%} of data.train, stratified, drawn with seed {data.seed}"
    if "train" in plans and "valid" not in plans:
        prepared.facts["valid_is"] = "none: too few labels to hold some out (all are trained on, the last weights are kept)"
    prepared.facts |= found
    return prepared


def examples_of(store: Store) -> Store:
    return Store(store.path.parent / "examples")


def _survey(
    data: TextData, coder: Coder, readers: Mapping[str, Reader], given: list[str] | None
) -> tuple[list[str], dict[str, tuple[Reader, Any]], list[dict[str, Any]]]:
    """One pass over every split: labels, strata and bad records, before anything is written."""
    seen: Counter[str] = Counter()
    strata: dict[str, list[str]] = {}
    bad: list[dict[str, Any]] = []
    for split, reader in readers.items():
        known = set(coder.inventory(seen, given)) if given is not None or seen else None
        strata[split] = []
        for file, number, example in reader:
            reason = coder.tidy(example) or _unknown(coder.labels(example), known, given is not None)
            if reason:
                reader.reject(file, number, reason)
                continue
            strata[split].append(coder.stratum(example))
            if split == "train" or "train" not in readers:
                seen.update(coder.labels(example))
        bad += reader.finish()
    inventory = coder.inventory(seen, given)
    plans: dict[str, tuple[Reader, Any]] = {split: (reader, None) for split, reader in readers.items()}
    if "train" in readers:
        plans |= _subsets(data, readers, strata, len(inventory))
    return inventory, plans, bad


def _subsets(
    data: TextData, readers: Mapping[str, Reader], strata: Mapping[str, Sequence[str]], labels: int
) -> dict[str, tuple[Reader, Any]]:
    ids = {name: i for i, name in enumerate(sorted(set(strata["train"])))}
    train = np.arange(len(strata["train"]))
    kinds = [ids[s] for s in strata["train"]]
    found: dict[str, tuple[Reader, Any]] = {}
    if data.shots is not None:
        train = few(data.seed, kinds, data.shots)
    if "valid" not in readers and len(train) >= ENOUGH_TO_HOLD_OUT * min(labels, len(ids)):
        valid = train[held_out(data.seed, [kinds[i] for i in train], data.valid_fraction)]
        found["valid"] = (readers["train"], valid)
        train = np.setdiff1d(train, valid)
    found["train"] = (readers["train"], None if len(train) == len(kinds) else train)
    return found


def _unknown(labels: Sequence[str], known: set[str] | None, listed: bool) -> str | None:
    if known is None:
        return None
    strange = next((x for x in labels if x not in known), None)
    if strange is None:
        return None
    where = "in data.labels" if listed else "in the training data"
    return f"the label {printable(strange)} is not {where}; mend it or list it in data.labels"


def _build(
    making: Path,
    reader: Reader,
    chosen: np.ndarray | None,
    data: TextData,
    coder: Coder,
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
        for chunk in _chunks(reader, coder, set(inventory), None if chosen is None else set(chosen.tolist())):
            made = coder.rows(chunk, ids, tokenizer, limit, too_long)
            _append_rows(rows, made, examples.count)
            texts = [np.frombuffer(_line(example, coder), np.uint8) for example in chunk]
            examples.append(len(chunk), {"text": np.array([len(t) for t in texts])}, text=np.concatenate(texts))
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
        rows.finish()
        examples.finish()
    finally:
        rows.close()
        examples.close()


def _line(example: dict[str, Any], coder: Coder) -> bytes:
    """What predictions.jsonl will say of an example besides the prediction."""
    shown = example["text"] if "text" in example else example["tokens"]
    return json.dumps({"input": shown, "gold": coder.gold(example)}, ensure_ascii=False).encode()


def _append_rows(writer: Writer, made: Rows, first: int) -> None:
    if not made.ids:
        return
    lengths = np.array([len(x) for x in made.ids])
    values: dict[str, Any] = {"ids": np.concatenate(made.ids), "owner": np.array(made.owner) + first}
    values |= {name: np.concatenate(arrays) for name, arrays in made.along.items()}
    values |= {name: np.array(array) for name, array in made.beside.items()}
    writer.append(len(lengths), dict.fromkeys(("ids", *made.along), lengths), **values)


def _chunks(reader: Reader, coder: Coder, known: set[str], chosen: set[int] | None) -> Any:
    held: list[dict[str, Any]] = []
    good = -1
    for _, _, example in reader:
        if coder.tidy(example) or not known.issuperset(coder.labels(example)):
            continue  # counted by the survey
        good += 1
        if chosen is None or good in chosen:
            held.append(example)
        if len(held) == CHUNK:
            yield held
            held = []
    if held:
        yield held


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

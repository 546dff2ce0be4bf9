"""Splits of decoded pictures, for a corpus and for labelled tasks: they point into the decoded store, nothing is copied."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sslcli.data import chance
from sslcli.data.decoded import Kept, decoded, refused
from sslcli.data.image import ImageData
from sslcli.data.labels import LabelCoder, named
from sslcli.data.pixels import Pixels
from sslcli.data.reader import Reader
from sslcli.data.store import Store, Writer, built
from sslcli.data.survey import append_lines, kept, survey, valid_is, wanted
from sslcli.data.text import Prepared
from sslcli.errors import BadInput

CHUNK = 4096  # examples that are written together
HELD_OUT = 2000  # pictures at most that are held out of a corpus when data.valid is absent

Progress = Callable[[int], None]


class _Rows:
    """A decoded store as a source of records: those that were bad, then the good with their place."""

    def __init__(self, store: Store):
        self.store = store

    def records(self) -> Iterator[Any]:
        yield from refused(self.store)
        for place in range(self.store.count):
            line = json.loads(self.store.text(place))
            yield line["file"], line["record"], {"image": line["input"], "label": line["label"], "place": place}

    def fingerprint(self) -> list[dict[str, Any]]:
        return [{"file": "pixels", "sha256": self.store.path.name}]


def corpus(data: ImageData, processor: Pixels, progress: Progress = lambda _: None, only: str | None = None) -> Prepared:
    """Stores `train`, `valid` and (if named) `test`: `place` and `owner` of each picture; `label` (-1: none) where one was found, for
    watching only."""
    for name in ("shots", "labels"):
        if only != "unlabelled" and getattr(data, name) is not None:
            raise BadInput(f"data.{name}: means nothing for an unlabelled corpus; leave it out")
    prepared = Prepared({}, {"columns": {}, "files": {}}, [], [])
    names: list[str] | None = None
    for split in wanted(data, only):
        found = decoded(data, split, processor, progress)
        if found is None:
            continue
        held = None
        if split == "train" and data.valid is None:
            held = [data.seed, round(min(data.valid_fraction, HELD_OUT / found.store.count), 6)]
        key = {"kind": "pictures", "pixels": found.store.path.name, "held_out": held, "labels": names}
        folder = built(key, partial(_build_corpus, store=found.store, held=held, names=names))
        parts = {split: folder / "main"} | ({"valid": folder / "held_out"} if held else {})
        for part, path in parts.items():
            _note(prepared, part, path, processor)
        names = prepared.stores[split].meta["labels"] if split == "train" else names
        if held:
            prepared.facts["valid_is"] = f"{held[1]:.2%} of the pictures, drawn with seed {data.seed}"
        _note_source(prepared, split, found)
        prepared.bad += found.bad
    return prepared


def _build_corpus(making: Path, store: Store, held: list[Any] | None, names: list[str] | None) -> None:
    places = np.arange(store.count)
    chosen = np.zeros(store.count, bool)
    if held:
        seed, share = held
        chosen = chance.uniform(chance.keys(seed, 0x8E1D, places), 1)[:, 0] < share
        chosen[0] &= not chosen.all()  # of very few, some are trained on and some held out
        chosen[-1] |= store.count > 1 and not chosen.any()
    labels, names = _labels(store, names)
    for name, part in (("main", ~chosen), ("held_out", chosen)) if held else (("main", ~chosen),):
        _lay(making / name, store, places[part], None if labels is None else labels[part][:, None], {"labels": names})


def _labels(store: Store, names: list[str] | None) -> tuple[np.ndarray | None, list[str] | None]:
    """A number a picture [N], where they have at most one label each, and the names."""
    found = [json.loads(store.text(i))["label"] for i in range(store.count)]
    if any(isinstance(x, (list, dict)) for x in found) or all(x is None for x in found):
        return None, names
    said = [None if x is None else named(x) for x in found]
    names = names if names is not None else sorted({x for x in said if x is not None})
    ids = {name: i for i, name in enumerate(names)}
    return np.array([ids.get(x, -1) if x is not None else -1 for x in said], np.int32), names


def _lay(folder: Path, store: Store, places: np.ndarray, label: np.ndarray | None, meta: dict[str, Any]) -> None:
    folder.mkdir()
    fields = {"place": np.int64, "owner": np.int32} | ({} if label is None else {"label": np.int32})
    writer = Writer(folder, fields, set())
    try:
        values = {} if label is None else {"label": label}
        writer.append(len(places), {}, place=places, owner=np.arange(len(places)), **values)
        writer.meta = {"pixels": store.path.name, **meta}
        writer.finish()
    finally:
        writer.close()


def examples(
    data: ImageData,
    coder: LabelCoder,
    processor: Pixels,
    labels: list[str] | None = None,
    only: str | None = None,
    progress: Progress = lambda _: None,
) -> Prepared:
    """Stores `train`, `valid`, `test` of a labelled task, each a folder with `rows` (place, owner, label) and `examples`.

    `labels`: those of a trained model, to be kept; `only`: the one split that is wanted (a held-out part needs the training data).
    """
    splits = (*wanted(data, only), *(("gallery",) if data.gallery is not None else ()))
    labelled = "label" in coder.columns
    found = {s: kept for s in splits if (kept := decoded(data, s, processor, progress, labelled)) is not None}
    given = labels if labels is not None else data.labels
    roles = {role: role for role in (*coder.columns, "place")}
    readers = {s: Reader(f"data.{s}", _Rows(k.store), tuple(roles), roles, data.on_bad_record, True) for s, k in found.items()}
    inventory, plans, bad = survey(data, coder, readers, given)
    facts = dict(coder.facts)  # as the survey counted them: building reads some examples again
    prepared = Prepared({}, {"columns": {}, "files": {}, "labels": len(inventory)}, inventory, bad)
    for split, (reader, chosen) in plans.items():
        source = found[split if split in found else "train"]
        key = {
            "kind": "labelled pictures",
            "pixels": source.store.path.name,
            "policy": data.on_bad_record,
            "coder": coder.identity(),
            "labels": inventory,
            "chosen": None if chosen is None else chosen.tolist(),
        }
        folder = built(key, partial(_build_examples, reader=reader, chosen=chosen, coder=coder, inventory=inventory, store=source.store))
        _note(prepared, split, folder / "rows", processor)
    for split, source in found.items():
        _note_source(prepared, split, source)
    prepared.facts |= valid_is(data, readers, plans)
    prepared.facts |= facts
    return prepared


def _build_examples(making: Path, reader: Reader, chosen: Any, coder: LabelCoder, inventory: list[str], store: Store) -> None:
    ids = {label: i for i, label in enumerate(inventory)}
    places: list[int] = []
    coded: list[Any] = []
    per_label: Counter[str] = Counter()
    (making / "examples").mkdir()
    lines = Writer(making / "examples", {"text": np.uint8}, {"text"})
    try:
        for chunk in kept(reader, coder, inventory, chosen, CHUNK):
            append_lines(lines, [{"input": example["image"], "gold": coder.gold(example)} for example in chunk])
            for example in chunk:
                places.append(example["place"])
                coded.append(coder.coded(example, ids))
                per_label.update(coder.labels(example))
        lines.finish()
    finally:
        lines.close()
    _lay(making / "rows", store, np.array(places, np.int64), np.array(coded, np.int32), {"per_label": dict(per_label.most_common(1000))})


def _note(prepared: Prepared, split: str, path: Path, processor: Pixels) -> None:
    store = prepared.stores[split] = Store(path)
    shape = [processor.channels, processor.size, processor.size]
    prepared.facts[split] = {"examples": store.count, "pixels": shape, "per_label": store.meta.get("per_label", {})}


def _note_source(prepared: Prepared, split: str, found: Kept) -> None:
    prepared.facts["columns"][split] = found.columns
    prepared.facts["files"][split] = found.files
    prepared.facts[split]["counted"] = found.store.meta["counted"]

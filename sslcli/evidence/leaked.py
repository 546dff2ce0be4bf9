"""What of a score is owed to rows that were trained on: looked for beside every evaluation, where it is cheap."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sslcli.core import Task
from sslcli.data.examples import examples_of
from sslcli.data.store import Store
from sslcli.evidence import likeness
from sslcli.evidence.leaks import KINDS, Pair, Sketch, between
from sslcli.log import counted, shown

TEXTS, PICTURES = 100_000, 4_000  # of both parts together; more take longer than a few seconds
SMALLEST = 24  # pixels a side; of smaller pictures it cannot be told


def without_leaks(task: Task, train: Store, scored: Store, split: str, predictions: Path) -> dict[str, Any]:
    """`leaks`, how many rows of the split also stand in the training data, and, if some do, `<split>_without_leaks`: its scores without
    them, from what was written down of the split's predictions. Nothing where looking would take long."""
    if not affordable(task, train.count if "place" in train else examples_of(train).count, scored):
        return {}
    pairs = _pairs(task, train, scored)
    found = {"of": split, "rows": len(pairs), **{kind: sum(p.kind == kind for p in pairs) for kind in KINDS}}
    leaked = {p.second for p in pairs}
    rows = [row for row in _lines(predictions) if row["id"] not in leaked] if leaked else []
    if not rows:
        return {"leaks": found}
    scores = task.score([task.kept(row) for row in rows], [row["gold"] for row in rows])
    return {"leaks": found, f"{split}_without_leaks": {k: v for k, v in scores.items() if k != "report"}}


def sentence(scores: Mapping[str, Any], headline: Sequence[str]) -> str | None:
    """The same in words, of a run's scores; None where nothing leaked."""
    found = scores.get("leaks")
    if not found or not found["rows"]:
        return None
    rest = scores.get(f"{found['of']}_without_leaks", {})
    score = next((k for k in headline if k in rest), None)
    without = f"; {score} without them {shown(rest[score])}" if score else ""
    also = "also stands" if found["rows"] == 1 else "also stand"
    return f"{counted(found['rows'], 'row')} of {found['of']} {also} in the training data{without}"


def affordable(task: Any, trained: int, scored: Store) -> bool:
    """Whether looking takes a few seconds, beside so many rows that were trained on, and can tell anything."""
    if "place" in scored:
        return not hasattr(task, "descriptors") and task.processor.size >= SMALLEST and trained + scored.count <= PICTURES
    return trained + examples_of(scored).count <= TEXTS


def _pairs(task: Any, train: Store, scored: Store) -> list[Pair]:
    if "place" in train:
        return likeness.between(*(_looks(task.processor, store) for store in (train, scored)))
    return between(Sketch.of(_texts(train)), Sketch.of(_texts(scored)))


def _looks(processor: Any, store: Store) -> likeness.Looks:
    return likeness.Looks.of(store.count, lambda rows: likeness.grey(processor.take(store, rows)))


def _texts(store: Store) -> Iterator[str]:
    examples = examples_of(store)
    for i in range(examples.count):
        said = json.loads(examples.text(i))["input"]
        parts = said.values() if isinstance(said, dict) else said if isinstance(said, list) else [said]  # a pair, words, a text
        yield " ".join(str(part) for part in parts)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)

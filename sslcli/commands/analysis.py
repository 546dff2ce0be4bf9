"""Error analysis of a run: errors.json, suspicious.csv, and the few lines of them that are worth the screen."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslcli.commands.folder import Folder
from sslcli.core import Task
from sslcli.data.store import Store
from sslcli.errors import printable
from sslcli.evidence import features, suspicious
from sslcli.evidence.mistakes import Mistakes, excerpt, lines
from sslcli.run import storage
from sslcli.spreadsheet import write_table
from sslcli.trainer import Trainer

MOST, MOST_WORDS = 20_000, 60_000  # rows and tagged words whose labels are looked at; more take minutes
FIRST, TOLD = 50, 3  # suspicious labels that errors.json and the screen show; suspicious.csv has all
KNOWS = 0.25  # share of what lies between always saying the most frequent label and always being right
JUDGES = 0.6  # share of the labels that a probe must agree with before its doubts are worth a line each
COLUMNS = ("part", "file", "record", "word", "label", "suggested", "confidence", "margin", "text")

Listed = list[dict[str, Any]]


def analyse(folder: Folder, task: Task, stores: Mapping[str, Store], look: Callable[[], dict[str, Any]]) -> None:
    """Of the last split in `stores`, which predictions.jsonl is of. `look` finds suspicious labels: their `listed`, and what is said of
    how they were found. Nothing for tasks that do not tell labels."""
    path = folder.run.dir / "predictions.jsonl"
    split = next((s for s in ("test", "valid") if s in stores), None)
    if not folder.run.writes or not task.classifies or split is None or not path.is_file():
        return
    began = time.monotonic()
    found = Mistakes.of(lines(path), _traits(task, stores[split]))
    summary = {"of": split, **found.summary()}
    doubts = look()
    listed: Listed = doubts.pop("listed", [])
    if listed:
        with storage(folder.run.dir):
            write_table(folder.run.dir / "suspicious.csv", COLUMNS, [[row.get(c) for c in COLUMNS] for row in listed])
    doubts |= {"count": len(listed), "first": listed[:FIRST], "seconds": round(time.monotonic() - began, 2)}
    folder.run.write("errors.json", {**summary, "suspicious": doubts})
    for line in told(summary, doubts):
        folder.call.screen.say(line)


def cross_fitted(task: Task, stores: Mapping[str, Store], begin: Callable[[], Any], engine: Trainer) -> dict[str, Any]:
    """Labels of all parts against a probe on the network as it was before it was tuned (it knew no label then) and on words; each row by a
    probe that did not see it."""
    parts = {split: stores[split] for split in ("train", "valid", "test") if split in stores}
    if (count := sum(features.examples_of(store).count for store in parts.values())) > MOST:
        return {"why": f"not looked for: {count:,} rows are more than {MOST:,}"}
    every = [(split, row) for split, store in parts.items() for row in features.golds(store)]
    tagged = bool(every) and isinstance(every[0][1]["input"], list)
    if not every or (isinstance(every[0][1]["gold"], list) and not tagged) or not hasattr(task, "labels"):
        return {"why": "not looked for: of several labels a row it is not known how"}
    _, model = begin()
    blank = not model.loaded["tensors"]  # an untrained network says nothing of what texts are about
    model.to(engine.device).eval()
    if hasattr(model, "pack"):
        model.pack()
    with torch.autocast(engine.device.type, engine.precision, enabled=engine.precision != torch.float32):
        if tagged:
            return _of_words(task, model, parts, every)
        vectors = None if blank else np.concatenate([features.of_examples(task, model, store) for store in parts.values()])
    known = [suspicious.directions(v) for v in (vectors, _words(every)) if v is not None]
    if not known:
        return {"why": "not looked for: the network was untrained, and there are no words to go by"}
    label = np.array([list(task.labels).index(row["gold"]) for _, row in every])
    said = suspicious.best([np.hstack(known[: i + 1]) for i in range(len(known))], label, len(task.labels))
    return _found(said, label, task.labels, [(split, row, None) for split, row in every])


def by_predictions(path: Path, split: str, labels: Sequence[str]) -> dict[str, Any]:
    """Labels of rows that a finished run never saw, against its own probabilities."""
    rows = [row for row in lines(path) if isinstance(row.get("probabilities"), dict) and isinstance(row["gold"], str)]
    some = [row for row in rows if row["gold"] in labels]
    if not some:
        return {"why": "not looked for: there is no probability of each label"}
    said = np.array([[row["probabilities"][label] for label in labels] for row in some])
    label = np.array([list(labels).index(row["gold"]) for row in some])
    return _found(said, label, labels, [(split, row, None) for row in some])


def told(summary: Mapping[str, Any], doubts: Mapping[str, Any]) -> list[str]:
    """For the screen."""
    pairs = [
        f"{printable(c['gold'], 40)} taken for {printable(c['prediction'], 40)} ({c['count']:,})" for c in summary["confusions"][:TOLD]
    ]
    found = [
        f"errors     {summary['wrong']:,} of {summary['rows']:,} rows of {summary['of']} have one"
        + (f": {', '.join(pairs)}" if pairs else "")
    ]
    for row in [s for s in summary["slices"] if s["weak"]][:TOLD]:
        low, high = row["interval"]
        score = f"{summary['score']} {row['score']:.3f} ({low:.3f} to {high:.3f}), {row['rest']:.3f} elsewhere"
        found.append(f"weak       {row['by']} {printable(row['slice'], 40)}: {score}; {row['rows']:,} rows")
    if "why" in doubts:
        return [*found, f"labels     {doubts['why']}"]
    agrees = f"the probe agrees with {doubts['agrees']:.0%}"
    where = " (suspicious.csv)" if doubts["count"] else ""
    found.append(f"labels     {doubts['count']:,} of {doubts['checked']:,} are suspicious{where}; {agrees}")
    if not doubts["judged"]:
        found[-1] += " only, too little to judge: most of these are its own errors"
        return found
    for row in doubts["first"][:TOLD]:
        text = printable(row["text"], 60)
        found.append(f"           {_place(row)}: {printable(row['label'], 40)}, looks like {printable(row['suggested'], 40)}: {text}")
    return found


def _place(row: Mapping[str, Any]) -> str:
    return f"{printable(row['file'])}:{row['record']}" if row.get("file") else str(row["part"])


def _traits(task: Any, store: Store) -> dict[str, Sequence[Any]]:
    """Of pictures, what they look like."""
    if "place" not in store:
        return {}
    parts = np.array_split(np.arange(store.count), max(1, store.count // 1000))
    return {
        "brightness": np.concatenate([task.processor.take(store, p).float().flatten(1).mean(1).numpy() for p in parts]).round(1).tolist()
    }


def _words(every: Sequence[tuple[str, Mapping[str, Any]]]) -> np.ndarray | None:
    """Of texts; of pictures there are none."""
    texts = [row["input"] for _, row in every]
    return (
        suspicious.words(texts) if all("record" in row and isinstance(t, str) for t, (_, row) in zip(texts, every, strict=True)) else None
    )


def _of_words(task: Task, model: Any, parts: Mapping[str, Store], every: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    states, example, number, first = [], [], [], 0
    for store in parts.values():
        vectors, owner, word = features.of_words(task, model, store)
        states.append(vectors)
        example.append(owner + first)
        number.append(word)
        first += features.examples_of(store).count
    known, owner, word = (np.concatenate(x)[:MOST_WORDS] for x in (states, example, number))
    label = np.array([list(task.labels).index(every[i][1]["gold"][w]) for i, w in zip(owner, word, strict=True)])
    said = suspicious.out_of_fold(suspicious.directions(known), label, len(task.labels), owner)
    return _found(said, label, task.labels, [(*every[i], int(w)) for i, w in zip(owner, word, strict=True)])


def _found(
    said: np.ndarray, label: np.ndarray, labels: Sequence[str], rows: Sequence[tuple[str, Mapping[str, Any], int | None]]
) -> dict[str, Any]:
    listed: Listed = []
    for doubt in suspicious.confident(said, label):
        split, row, word = rows[doubt.row]
        place = {"part": split, "file": row.get("file"), "record": row.get("record")}
        place |= {} if word is None else {"word": word + 1}
        sure = {"confidence": round(doubt.confidence, 4), "margin": round(doubt.margin, 4)}
        text = row["input"] if word is None else [row["input"][word], "in:", *row["input"]]
        listed.append({**place, "label": labels[label[doubt.row]], "suggested": labels[doubt.suggested], **sure, "text": excerpt(text)})
    agrees = float((said.argmax(1) == label).mean())
    usual = float(np.bincount(label).max() / len(label))  # agreement of always saying the most frequent label
    judged = agrees >= JUDGES and agrees - usual >= KNOWS * (1 - usual)
    return {"checked": len(label), "agrees": round(agrees, 6), "judged": judged, "listed": listed}

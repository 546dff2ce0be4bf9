"""`ssl label-next`: which unlabelled rows to label next, as a table and as tasks of Label Studio, and what they may bring."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from sslcli import config, device
from sslcli.build import Modules
from sslcli.commands import Call
from sslcli.commands.evaluate import differing
from sslcli.commands.finished import Finished
from sslcli.commands.folder import NOTHING_KEPT
from sslcli.core import Task
from sslcli.data.examples import examples_of
from sslcli.data.labels import LabelCoder, Unread
from sslcli.data.store import Store
from sslcli.distributed import world
from sslcli.errors import BadInput, Refusal, printable
from sslcli.evidence import features, teaching
from sslcli.evidence.mistakes import excerpt
from sslcli.evidence.suspicious import directions
from sslcli.log import counted
from sslcli.modality import Modality, Start
from sslcli.run import storage, write_atomically
from sslcli.schema import Part
from sslcli.spreadsheet import write_table

COLUMNS = ("rank", "file", "record", "score", "prediction", "probability", "input")


class Pool:
    """The `data` node: what differs from the run's own data."""

    def __init__(
        self,
        own: Modality,
        *,
        unlabelled: str | list[str],
        columns: dict[Literal["text", "image"], str | None],
        encoding: str | None,
        delimiter: str | None,
        on_bad_record: Literal["fail", "skip"] | None,
    ):
        given = {"unlabelled": unlabelled, "encoding": encoding, "delimiter": delimiter, "on_bad_record": on_bad_record}
        self.data = differing(own, given, columns)
        if getattr(own, "too_long", None) == "drop":
            own.too_long = "truncate"  # type: ignore[attr-defined]
        own.columns = {role: name for role, name in own.columns.items() if role != "source"}  # it is not needed of rows to label


def label_next(
    call: Call, *, run: str, data: Part[Pool], count: Annotated[int, Field(ge=1)], out: str | None, plugins: list[str]
) -> dict[str, Any]:
    finished = Finished.open(Path(run), plugins)
    coder, goal = finished.coder, finished.goal
    if not isinstance(coder, LabelCoder) or not isinstance(goal, Task) or coder.labelling == "multi" or not goal.classifies:
        raise BadInput(f"run={printable(run)}: label-next is for one label a text or picture; name a run of such a classification")
    target = Path(out or f"{run}-label-next")
    if target.exists() and (
        not target.is_dir() or any(p.name not in ("next.csv", "label_studio.json", "next.json") for p in target.iterdir())
    ):
        raise BadInput(f"out={printable(target)}: already holds something else; choose another folder")
    with world(1) as replicas:
        # what is labelled, and what is not
        labelled = finished.source().examples(coder, finished.processor, finished.labels)
        source = data.build(finished.source()).data
        pool = source.examples(Unread(coder), finished.processor, finished.labels, only="unlabelled").stores["unlabelled"]
        device.prepare(replicas.device, False)
        Modules(finished.model, goal=goal).to(replicas.device).eval()
        examples = examples_of(pool)
        new = _new(goal, pool, labelled.stores)
        if not len(new):
            raise BadInput(f"data.unlabelled={printable(data.config['unlabelled'])}: all of its rows are labelled already; name others")
        call.screen.say(
            f"{len(new):,} of {counted(examples.count, 'row', 'are')} new; the others are labelled already, or stand there twice"
        )

        # which of them, and what for
        vectors, logits = features.with_logits(goal, finished.model, pool)
        said = _probabilities(logits)
        chosen = new[teaching.choose(vectors[new], said[new], min(count, len(new)), finished.seed)]
        expected = _expected(finished, labelled.stores, len(chosen))
    call.screen.say(expected["sentence"])
    rows = [json.loads(examples.text(i)) for i in chosen.tolist()]  # of all others no text is held
    listed = _listed(chosen, rows, said, finished.labels)
    table = [[r["rank"], r["score"], r["prediction"], r["input"][:70]] for r in listed[:10]]
    call.screen.table("to label next", ("", "score", "prediction", "input"), table)
    result: dict[str, Any] = {"out": str(target), "rows": len(listed), "of": len(new), "expected": expected}
    if call.dry_run:
        call.screen.say(NOTHING_KEPT)
        return result
    with storage(target.parent):
        target.mkdir(parents=True, exist_ok=True)
        write_table(target / "next.csv", COLUMNS, [[row[c] for c in COLUMNS] for row in listed])
        whole = [row["input"] for row in rows]
        write_atomically(
            target / "label_studio.json", json.dumps(tasks(listed, whole, coder.columns[0]), indent=1, ensure_ascii=False) + "\n"
        )
        write_atomically(target / "next.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    for name in ("next.csv", "label_studio.json"):
        call.screen.say(f"{name:18} {target / name}")
    return result


def tasks(listed: Sequence[Mapping[str, Any]], inputs: Sequence[Any], role: str) -> list[dict[str, Any]]:
    """Of Label Studio, for its import: the data, and the prediction as a choice that people confirm or change (`Choices name="label"`)."""
    found: list[dict[str, Any]] = []
    for row, whole in zip(listed, inputs, strict=True):
        choice = {"from_name": "label", "to_name": role, "type": "choices", "value": {"choices": [row["prediction"]]}}
        place = {"file": row["file"], "record": row["record"], "rank": row["rank"]}
        found.append({"data": {role: whole, **place}, "predictions": [{"score": row["probability"], "result": [choice]}]})
    return found


def _new(goal: Any, pool: Store, labelled: Mapping[str, Store]) -> np.ndarray:
    """Rows that stand in no part that the run has labels for, the first of those that are equal; without those that
    data.too_long=drop leaves out."""
    seen = {key for store in labelled.values() for key in _keys(goal, store)}
    found, read = [], np.bincount(pool["owner"].values[:, 0], minlength=examples_of(pool).count)
    for i, key in enumerate(_keys(goal, pool)):
        if read[i] and key not in seen:
            found.append(i)
            seen.add(key)
    return np.array(found, np.int64)


def _keys(goal: Any, store: Store) -> Iterator[bytes]:
    """What a row is, as a digest: a text as it is read aloud, or the values of a picture."""
    if "place" in store:
        said = (goal.processor.take(store, np.array([i])).numpy().tobytes() for i in range(store.count))
    else:
        examples = examples_of(store)
        inputs = (str(json.loads(examples.text(i))["input"]) for i in range(examples.count))
        said = (" ".join(text.split()).casefold().encode("utf-8", "surrogatepass") for text in inputs)
    yield from (hashlib.blake2b(one, digest_size=16).digest() for one in said)


def _probabilities(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _listed(chosen: np.ndarray, rows: Sequence[Mapping[str, Any]], said: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """`rows`: the chosen ones. `score`: 1 less the margin, how unsure the network is."""
    unsure, best = 1 - teaching.margins(said[chosen]), said[chosen].argmax(1)
    return [
        {
            "rank": n + 1,
            "file": row.get("file"),
            "record": row.get("record"),
            "score": round(float(unsure[n]), 4),
            "prediction": labels[best[n]],
            "probability": round(float(said[i, best[n]]), 4),
            "input": excerpt(row["input"]),
        }
        for n, (i, row) in enumerate(zip(chosen.tolist(), rows, strict=True))
    ]


def _expected(finished: Finished, stores: Mapping[str, Store], count: int) -> dict[str, Any]:
    """What so many labels drawn at random would bring a linear layer on the network as it was before it knew any of them."""
    split = next((s for s in ("test", "valid") if s in stores), None)
    start = _start(finished)
    if split is None or start is None:
        why = "no rows are held out to score on" if split is None else "the network that the run began from is not there, or was untrained"
        return {"sentence": f"what they bring cannot be told: {why}"}
    known, asked = (features.of_examples(finished.goal, start, stores[s]) for s in ("train", split))
    together = directions(np.concatenate([known, asked]))
    label, gold = (np.array([finished.labels.index(row["gold"]) for row in features.golds(stores[s])]) for s in ("train", split))
    found, points = teaching.gain(together[: len(label)], label, together[len(label) :], gold, count, finished.seed)
    curve: dict[str, Any] = {"of": split, "labels": [n for n, _ in points], "accuracy": [round(s, 6) for _, s in points]}
    if found is None or found.verdict == "cannot be told":
        width = "" if found is None else f": between {100 * found.interval[0]:+.1f} and {100 * found.interval[1]:+.1f} points"
        return {**curve, "sentence": f"what they bring cannot be told from {len(label):,} labels{width}"}
    low, high = (100 * x for x in found.interval)
    ends = {"gain": round(found.gain, 6), "gain_interval": [round(x, 6) for x in found.interval]}
    at = f"{count:,} labels at random would bring a linear layer on the frozen network {100 * found.gain:+.1f} points"
    return {**curve, **ends, "sentence": f"{at} of accuracy ({low:+.1f} to {high:+.1f}); chosen ones usually more"}


def _start(finished: Finished) -> Any:
    """The network that the run began from; None where it is gone, or had learnt nothing."""
    tree = config.load(finished.dir / "config.yaml")
    if not tree.get("from") or tree.get("init") == "random":
        return None
    first = Start.of(finished.part, tree["from"], finished.coder.columns, finished.seed, 0.0)
    try:
        _, model = finished.source().start(first, None, None, None, lambda _: None)
    except Refusal:
        return None
    if hasattr(model, "pack"):
        model.pack()
    return model.to(next(finished.model.parameters()).device).eval()

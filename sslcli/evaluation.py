"""Held-out losses and task scores, in memory that does not grow with the data set."""

import contextlib
import json
import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, TextIO

import numpy as np
import torch

from sslcli import calibration, device
from sslcli.calibration import Calibration
from sslcli.core import Backbone, Batch, Objective, Places, Task
from sslcli.data import chance
from sslcli.data.examples import examples_of
from sslcli.data.store import Store
from sslcli.data.stream import Stream, in_order, to_device
from sslcli.distributed import World
from sslcli.run import Run, storage

CHUNK = 4096  # examples that are predicted together
CHECKED = 8  # held-out examples that are looked at again when a temperature was divided in
SEED = 0x5C02E  # of masks and spans in evaluations: the same at every step and in every run


def held_out(
    objective: Objective, model: Backbone, store: Store, world: World, batch_size: int, most: int | None = None
) -> dict[str, float]:
    """Weighted means of the loss and the logs over a whole store (or `most` of its batches), with the same masks every time."""
    sums: dict[str, list[float]] = {}
    with torch.no_grad():
        for batch in islice(_batches(objective, store, world, batch_size), most):
            output = objective(model, batch)
            for name, value in {"loss": output.loss, **output.logs}.items():
                held = sums.setdefault(name, [0.0, 0.0])
                held[0] += float(value) * float(batch["weight"])
                held[1] += float(batch["weight"])
    names = sorted({name for found in world.gather(sorted(sums)) for name in found})
    flat = world.sum([x for name in names for x in sums.get(name, [0.0, 0.0])])
    means = {name: flat[2 * i] / max(flat[2 * i + 1], 1e-9) for i, name in enumerate(names)}
    scores = objective.summary(means)
    if "perplexity" in scores and store.meta.get("bytes") and store.meta.get("lossless"):  # else some of the bytes were never predicted
        scores["bits_per_byte"] = means["loss"] / np.log(2) * store.meta["tokens"] / store.meta["bytes"]
    return scores


def judge(
    task: Task, model: Backbone, store: Store, world: World, run: Run | None = None, chosen: np.ndarray | None = None
) -> dict[str, Any]:
    """The task's scores on a store of examples (or those `chosen`, numbers in ascending order); with `run`, predictions.jsonl is written
    there.

    What is held of an example is what it is called and was taken for: logits and texts go as they come.
    """
    task.look(model, store)
    examples = examples_of(store)
    chosen = np.arange(examples.count) if chosen is None else chosen
    gold: list[Any] = []
    said: list[Any] = []
    with _predictions_file(run) as file:
        for first in range(0, len(chosen), CHUNK):
            parts = _chunk(task, model, store, world, chosen[first : first + CHUNK])
            for i in sorted(parts):  # examples that data.too_long=drop left out have no prediction and no score
                example = json.loads(examples.text(i))
                prediction = task.merge(parts[i], example["gold"])
                gold.append(_interned(example["gold"]))
                said.append(_interned(task.kept(prediction)))
                if file is not None:
                    file.write(json.dumps({"id": i, **example, **prediction}, ensure_ascii=False) + "\n")
    return task.score(said, gold)


def calibrate(task: Task, model: Backbone, store: Store | None, world: World) -> dict[str, Any]:
    """Fit how the task's logits are read on held-out examples, and divide the temperature into its last layer; a receipt of that."""
    layer = task.last_layer()
    if store is None or layer is None:
        nothing = "no examples were held out (too few labels); name some with data.valid"
        why = "this head has no layer that a temperature could be divided into" if layer is None else nothing
        task.calibration = Calibration(facts={"why": why})
        return {"calibration": {"why": why}} if task.classifies else {}
    found, gold = _logits(task, model, store, world)
    multi = bool(gold) and isinstance(gold[0], list)
    target = np.array([[x in g for x in task.labels] if multi else task.labels.index(g) for g in gold], np.int64)
    fitted = calibration.fit(found, target, task.labels, task.risk)
    assert fitted.temperature is not None
    with device.exact():
        before, _ = _logits(task, model, store, world, CHECKED)
        calibration.fold(layer, fitted.temperature)
        after, _ = _logits(task, model, store, world, CHECKED)
    if not np.allclose(after * fitted.temperature, before, rtol=1e-3, atol=1e-3):
        raise AssertionError("the last layer does not divide the logits by the temperature that was fitted")
    task.calibration = fitted
    return {"calibration": {"temperature": fitted.temperature, "confident": fitted.confident, **fitted.facts}}


def _logits(task: Task, model: Backbone, store: Store, world: World, most: int | None = None) -> tuple[np.ndarray, list[Any]]:
    """(logits [N, C], gold) of a store's examples (or the first `most`)."""
    examples, found, gold = examples_of(store), [], []
    for i, mean in answers(task, model, store, world, min(examples.count, most or examples.count)):
        found.append(mean)
        gold.append(json.loads(examples.text(i))["gold"])
    return np.array(found), gold


def answers(task: Task, model: Backbone, store: Store, world: World, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number, logits [C]) of the first `count` examples, those of its windows averaged; without those that data.too_long=drop left out."""
    for first in range(0, count, CHUNK):
        parts = _chunk(task, model, store, world, np.arange(first, min(first + CHUNK, count)))
        for i in sorted(parts):
            yield i, np.mean([p["logits"] for p in parts[i]], 0)


def _interned(value: Any) -> Any:
    """Labels come from a short list: one object each, however many examples have it."""
    return sys.intern(value) if isinstance(value, str) else [_interned(v) for v in value] if isinstance(value, list) else value


def _chunk(task: Task, model: Backbone, store: Store, world: World, examples: np.ndarray) -> dict[int, list[Any]]:
    """Predictions for the rows of examples (numbers in ascending order), by example, from all ranks."""
    places, owners = task.rows(store), store["owner"].values[:, 0]
    begin, end = np.searchsorted(owners, [examples[0], examples[-1] + 1])
    rows = begin + np.flatnonzero(np.isin(owners[begin:end], examples))
    part = Places(len(rows), None if places.lengths is None else places.lengths[rows], places.width)
    found: list[tuple[int, Any]] = []
    with torch.no_grad():
        for places_ in in_order(part, device.token_budget(world.device), world.rank, world.size):
            chosen = rows[places_]
            batch = to_device(task.read(store, chosen, chance.keys(SEED, 0, chosen)), world.device)
            found += zip(owners[chosen].tolist(), task.predict(model, batch), strict=True)
    by_owner: dict[int, list[Any]] = {}
    for owner, prediction in (item for ranks in world.gather(found) for item in ranks):
        by_owner.setdefault(owner, []).append(prediction)
    return by_owner


@contextlib.contextmanager
def _predictions_file(run: Run | None) -> Iterator[TextIO | None]:
    if run is None or not run.writes:
        yield None
        return
    with storage(run.dir), (run.dir / "predictions.jsonl").open("w", encoding="utf-8") as file:
        yield file


def _batches(objective: Objective, store: Store, world: World, batch_size: int) -> Iterator[Batch]:
    places = objective.rows(store)
    if objective.couples_rows:
        # the loss depends on who else is in the batch: take the batches of one fixed epoch, alike on 1, 2, 4 or 8 ranks
        size = min(batch_size, places.count)
        size = size // 8 * 8 or size
        stream = Stream(places, partial(objective.read, store), size, SEED, world.rank, world.size, whole=True)
        for step in range(stream.steps_per_epoch):
            yield from (to_device(b, world.device) for b in stream.batches(step))
        return
    for rows in in_order(places, device.token_budget(world.device), world.rank, world.size):
        yield to_device(objective.read(store, rows, chance.keys(SEED, 0, rows)), world.device)

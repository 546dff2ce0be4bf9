"""Tasks on handwritten digits, by hand: made, begun, trained and judged without the verbs."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from sklearn.datasets import load_digits

from sslcli.core import Task
from sslcli.data import chance
from sslcli.data.examples import examples_of
from sslcli.data.pixels import Pixels
from sslcli.data.store import Store
from sslcli.data.stream import Stream, in_order
from sslcli.tasks.image_classification import ImageClassification
from sslcli.tasks.image_retrieval import ImageRetrieval
from tests.conftest import CONFIGS
from tests.splits import Small, split

NAMES = [str(i) for i in range(10)]


FACTS: dict[str, Any] = {"labelling": "single", "train": {"per_label": dict.fromkeys(NAMES, 10)}}


def digit_splits(folder: Path) -> tuple[Store, Store]:
    """1,000 to learn from, 400 to be scored on."""
    found = load_digits()
    images, gold = (found.images / 16 * 255).astype(np.uint8)[:, None], [str(t) for t in found.target]
    return split(folder / "train", images[:1000], gold[:1000], NAMES), split(folder / "test", images[1000:1400], gold[1000:1400], NAMES)


def pixels(augment: Any = None) -> Pixels:
    return Pixels(8, 1, [0.3], [0.37], False, augment)


def config(name: str, **changes: Any) -> dict[str, Any]:
    node = yaml.safe_load((CONFIGS / "task" / f"{name}.yaml").read_text())
    return {k: v for k, v in node.items() if k not in ("kind", "modality")} | changes


def classifier(augment: Any = None, facts: Any = FACTS, names: list[str] = NAMES, **changes: Any) -> tuple[Small, ImageClassification]:
    torch.manual_seed(0)
    model = Small()
    return model, ImageClassification(model, pixels(augment), names, facts, **config("image_classification", **changes))


def retriever(augment: Any = None, **changes: Any) -> tuple[Small, ImageRetrieval]:
    torch.manual_seed(0)
    model = Small()
    return model, ImageRetrieval(model, pixels(augment), NAMES, FACTS, **config("image_retrieval", **changes))


def begun(model: Small, task: Any, store: Store) -> Stream:
    stream = Stream(task.rows(store), partial(task.read, store), task.batch_size, 0)
    model.eval()
    task.eval()
    task.begin(model, stream)
    return stream


def train(model: Small, task: Task, stream: Stream, steps: int, lr: float = 2e-3) -> list[float]:
    learning = [p for p in [*model.parameters(), *task.parameters()] if p.requires_grad]
    engine = torch.optim.AdamW(learning, lr)
    losses = []
    for step in range(steps):
        model.train()
        task.train()
        (batch,) = stream.batches(step)
        output = task(model, batch)
        output.loss.backward()
        engine.step()
        engine.zero_grad()
        losses.append(float(output.loss.detach()))
    return losses


def judged(task: Any, model: Small, store: Store) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """As evaluation.judge: (scores, the lines of predictions.jsonl)."""
    model.eval()
    task.eval()
    if hasattr(task, "look"):
        task.look(model, store)
    examples, lines = examples_of(store), {}
    for rows in in_order(task.rows(store), 4096):
        batch = task.read(store, rows, chance.keys(0, 0, rows))
        for row, said in zip(rows.tolist(), task.predict(model, batch), strict=True):
            example = json.loads(examples.text(row))
            lines[row] = {"id": row, **example, **task.merge([said], example["gold"])}
    ordered = [lines[i] for i in range(store.count)]
    return task.score([task.kept(p) for p in ordered], [p["gold"] for p in ordered]), ordered

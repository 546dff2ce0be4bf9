"""Vectors of labelled examples by a network held still: of whole examples, or of each word that carries a tag."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslcli.core import Batch, Task
from sslcli.data import chance
from sslcli.data.examples import examples_of
from sslcli.data.store import Store
from sslcli.data.stream import in_order, to_device
from sslcli.evidence.watch import vectors_of

TOKENS = 4096  # of one forward pass


def of_examples(task: Any, model: Any, store: Store) -> np.ndarray:
    """[examples, D]: pooled vectors; of a text in several windows, their mean. The rows are read as `task` reads them."""
    if "place" in store:
        return vectors_of(model, task.processor, store).cpu().numpy()
    owners = store["owner"].values[:, 0]
    found = np.zeros((examples_of(store).count, model.dim), np.float32)
    for rows, batch, hidden in _states(task, model, store):
        np.add.at(found, owners[rows], model.pool(hidden, batch).float().cpu().numpy())
    return found / np.maximum(np.bincount(owners, minlength=len(found)), 1)[:, None]


def with_logits(task: Task, model: Any, store: Store) -> tuple[np.ndarray, np.ndarray]:
    """(pooled vectors [examples, D], logits [examples, C]), of several windows their mean. The network runs once for both."""
    owners, count = store["owner"].values[:, 0], examples_of(store).count
    vectors, said = np.zeros((count, model.dim), np.float32), np.zeros((count, len(task.labels)), np.float32)
    with _remembering(model):
        for rows, batch, hidden in _states(task, model, store):
            np.add.at(vectors, owners[rows], model.pool(hidden, batch).float().cpu().numpy())
            np.add.at(said, owners[rows], np.array([p["logits"] for p in task.predict(model, batch)], np.float32))
    windows = np.maximum(np.bincount(owners, minlength=count), 1)[:, None]
    return vectors / windows, said / windows


@contextmanager
def _remembering(model: Any) -> Iterator[None]:
    """Inside, the batch that was encoded last is not encoded again."""
    plain = model.encode
    last: list[tuple[Batch, Tensor]] = []

    def encode(batch: Batch) -> Tensor:
        if not last or batch is not last[0][0]:
            last[:] = [(batch, plain(batch))]
        return last[0][1]

    model.encode = encode
    try:
        yield
    finally:
        del model.encode


def of_words(task: Any, model: Any, store: Store) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(states of first sub-words [W, D], which example each is of [W], which word of it [W]), in order."""
    owners = store["owner"].values[:, 0]
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for rows, batch, hidden in _states(task, model, store):
        word = batch["word"].cpu().numpy()
        row, place = np.nonzero(word >= 0)
        found.append((hidden.float().cpu().numpy()[row, place], owners[rows][row], word[row, place]))
    states, example, number = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((number, example))
    return states[order], example[order], number[order]


def golds(store: Store) -> list[dict[str, Any]]:
    """What each example is, as it was read: input, gold, file and record."""
    examples = examples_of(store)
    return [json.loads(examples.text(i)) for i in range(examples.count)]


@torch.no_grad()
def _states(task: Task, model: Any, store: Store) -> Iterator[tuple[np.ndarray, Batch, Tensor]]:
    """(rows, their batch, hidden states [B, T, D])"""
    device = next(model.parameters()).device
    for rows in in_order(task.rows(store), TOKENS):
        batch = to_device(task.read(store, rows, chance.keys(0, 0, rows)), device)
        yield rows, batch, model.encode(batch)

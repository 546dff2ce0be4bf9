"""The pictures of a finished run, as PNG in its folder: from what it wrote down, and the pictures that it saw."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslcli.core import Backbone
from sslcli.data import chance
from sslcli.data.pixels import Pixels
from sslcli.data.store import Store
from sslcli.errors import BadInput
from sslcli.evidence.neighbours import nearest
from sslcli.evidence.watch import labels_of, vectors_of
from sslcli.report import pictures

ROWS, NEAR, ERRORS, PAINTED = 10, 8, 32, 10  # queries of a page, neighbours of each, errors of a page, reconstructions
SAMPLE = 2000  # pictures of a map, and among which neighbours of a pretrained network are looked for
SEED = 0xA1B


def album(folder: Path, goal: Any, model: Backbone, store: Store) -> tuple[list[str], str | None]:
    """Draw all that this run has: (names of the files, a line on those that could not be drawn). `goal`: objective or task; `store`: the
    split that predictions.jsonl is of, or held-out pictures of a pretraining run."""
    processor, gallery = goal.processor, getattr(goal, "gallery", None) or store
    first = next(_predictions(folder), None)
    draw: dict[str, Callable[[Path], None]] = {}
    if first is not None and "nearest" in first:
        found = list(_predictions(folder))
        draw["results.png"] = lambda path: _page(path, _one_a_label(found), processor, store, gallery, "Found first")
        wrong = sorted((p for p in found if p["prediction"] != p["gold"]), key=lambda p: -p["nearest"][0]["similarity"])
        if wrong:
            title = f"Wrong at first place, {len(wrong):,} of {len(found):,}: the surest"
            draw["errors.png"] = lambda path: _page(path, wrong[:ROWS], processor, store, gallery, title)
    elif first is not None and isinstance(first["gold"], str):
        said = [(p["id"], p["gold"], p["prediction"], max(p["probabilities"].values())) for p in _predictions(folder)]
        if any(gold != guess for _, gold, guess, _ in said):
            draw["errors.png"] = lambda path: _errors(path, said, processor, store)
        draw["confusion.png"] = lambda path: _confusion(path, said, list(first["probabilities"]))
    elif first is None:
        vectors = vectors_of(model, processor, store, rows := _sample(store))
        names = _names(store, rows)
        if hasattr(goal, "reconstruct"):
            draw["reconstruction.png"] = lambda path: _painted(path, goal, model, store)
        draw["neighbours.png"] = lambda path: _neighbours(path, vectors, names, processor, store, rows)
        if names is not None:
            draw["map.png"] = lambda path: pictures.embedding_map(path, vectors.cpu(), names)
    drawn: list[str] = []
    missing: list[str] = []
    for name, make in draw.items():
        try:
            make(folder / name)
            drawn.append(name)
        except BadInput as error:
            missing.append(f"{name}: not drawn: {error}")
    return drawn, missing[0] if missing else None


def _predictions(folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / "predictions.jsonl"
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def _sample(store: Store) -> np.ndarray:
    return np.sort(chance.permutation(SEED, 0, store.count)[:SAMPLE])


def _names(store: Store, rows: np.ndarray) -> list[str] | None:
    """Labels of rows, where pictures have one."""
    if labels_of(store)[0] is None:
        return None
    names, label = store.meta.get("labels"), store["label"].values[rows, 0].tolist()
    return ["no label" if i < 0 else str(names[i] if names else i) for i in label]


def _one_a_label(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first query of each label, of as many labels as there is room for, spread over all."""
    firsts = list({p["gold"]: p for p in reversed(found)}.values())[::-1]
    chosen = np.unique(np.linspace(0, len(firsts) - 1, min(ROWS, len(firsts))).round().astype(int))
    return [firsts[i] for i in chosen]


def _page(path: Path, found: list[dict[str, Any]], processor: Pixels, store: Store, gallery: Store, title: str) -> None:
    near = [p["nearest"][:NEAR] for p in found]
    pictures.neighbours(
        path,
        processor.take(store, np.array([p["id"] for p in found])),
        [str(p["gold"]) for p in found],
        [processor.take(gallery, np.array([n["id"] for n in row])) for row in near],
        [[str(n["gold"]) for n in row] for row in near],
        [[n["similarity"] for n in row] for row in near],
        title,
    )


def _errors(path: Path, said: list[tuple[int, str, str, float]], processor: Pixels, store: Store) -> None:
    wrong = sorted((s for s in said if s[1] != s[2]), key=lambda s: -s[3])
    ids, gold, guess, sure = zip(*wrong[:ERRORS], strict=True)
    title = f"{len(wrong):,} of {len(said):,} taken for something else" + (": the surest" if len(wrong) > ERRORS else "")
    pictures.worst(path, processor.take(store, np.array(ids)), gold, guess, sure, title)


def _confusion(path: Path, said: list[tuple[int, str, str, float]], names: list[str]) -> None:
    _, gold, guess, _ = zip(*said, strict=True)
    pictures.confusion(path, gold, guess, names)


def _neighbours(path: Path, vectors: torch.Tensor, names: list[str] | None, processor: Pixels, store: Store, rows: np.ndarray) -> None:
    queries = np.unique(np.linspace(0, len(rows) - 1, ROWS).round().astype(int))
    if names is not None:
        asked = _one_a_label([{"gold": name, "at": i} for i, name in enumerate(names)])
        queries = np.array([q["at"] for q in asked])
    own = torch.from_numpy(queries).to(vectors.device)
    how, where = (x.cpu() for x in nearest(vectors[own], vectors, NEAR, own))
    found = [processor.take(store, rows[w.numpy()]) for w in where]
    labels = [[names[i] for i in w] for w in where.tolist()] if names is not None else None
    gold = [names[i] for i in queries] if names is not None else None
    pictures.neighbours(path, processor.take(store, rows[queries]), gold, found, labels, how.tolist())


def _painted(path: Path, goal: Any, model: Backbone, store: Store) -> None:
    rows = np.arange(min(PAINTED, store.count))
    device = next(model.parameters()).device
    batch = {k: v.to(device) for k, v in goal.read(store, rows, chance.keys(SEED, 0, rows)).items()}
    pictures.reconstructions(path, *(part.float().cpu() for part in goal.reconstruct(model, batch)))

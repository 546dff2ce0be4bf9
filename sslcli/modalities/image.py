"""Pictures: decoded once, views made on the training device, vision transformers and residual networks."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslcli.augment import Augment
from sslcli.augment.preview import changes, doubt, draw, receipt
from sslcli.build import check_loaded
from sslcli.core import Batch, Objective
from sslcli.data import chance, image_store
from sslcli.data.image import ImageData
from sslcli.data.image_look import look
from sslcli.data.pixels import Pixels
from sslcli.data.store import Store
from sslcli.data.text import Prepared
from sslcli.errors import BadInput
from sslcli.evidence.watch import Watch, transfer
from sslcli.hf.folder import model_folder
from sslcli.hf.graph import Graph
from sslcli.hf.vision import vision_backbone, vision_graph
from sslcli.modality import Modality, Start
from sslcli.report.album import album
from sslcli.schema import Part

COMPARED = 16  # pictures that an export is compared on at a time
PREVIEWED, COMPARED_VIEWS = 10, 256  # pictures that a preview shows, and whose views a receipt compares


class Image(ImageData, Modality):
    def start(
        self, first: Start, model: Part | None, tokenizer: None, augment: Part[Augment] | None, say: Callable[[str], None]
    ) -> tuple[Pixels, Any]:
        if first.pooling is not None:
            raise BadInput(f"pooling={first.pooling}: is for texts; leave it out (model.pool says how a vision transformer's is made)")
        views = _augment(augment, first.views) if augment is not None else None
        torch.manual_seed(first.seed)
        if first.source is not None:
            folder = model_folder(first.source)
            network = vision_backbone(folder).load(folder, first.head, first.dropout, first.random)
            check_loaded(network.loaded, first.source, first.random)
            known = Pixels.load(folder)
            self._refuse_other_form(known, first.source)
            return Pixels(known.size, known.channels, known.mean, known.std, self.mirror, views, known.fit), network
        if model is None:
            raise BadInput("model: nothing to start from; give from=<run, folder or hub name>, or model=<name> to train from scratch")
        seen = look(self)
        processor = Pixels(seen.size, seen.channels, seen.mean, seen.std, self.mirror, views, self.fit)
        if first.dropout is not None and "dropout" in model.config:
            model = Part(model.path, model.cls, {**model.config, "dropout": first.dropout})
        return processor, model.build(processor)

    def _refuse_other_form(self, known: Pixels, source: str) -> None:
        for key, asked, is_ in (("size", self.size, known.size), ("channels", self.channels, known.channels)):
            if asked not in (None, "auto", is_):
                raise BadInput(f"data.{key}={asked}: the model of from={source} sees pictures with {key} {is_}; leave data.{key} out")

    def corpus(self, processor: Pixels, progress: Callable[[int], None], only: str | None = None) -> Prepared:
        return image_store.corpus(self, processor, progress, only)

    def beside(self, processor: Pixels, second: type[Objective], augment: Part[Augment] | None) -> Pixels:
        views = _augment(augment, getattr(second, "least_views", 1)) if augment is not None else None
        p = processor
        return Pixels(p.size, p.channels, p.mean, p.std, p.mirror, views, p.fit)

    def examples(self, coder: Any, processor: Pixels, labels: list[str] | None = None, only: str | None = None) -> Prepared:
        return image_store.examples(self, coder, processor, labels, only)

    def reopen(self, folder: Path, goal: Part[Any], length: int, augment: Part[Augment] | None, native: bool = True) -> tuple[Pixels, Any]:
        model = folder / "model"
        views = _augment(augment, getattr(goal.cls, "least_views", 1)) if augment is not None else None
        return Pixels.load(model, views), vision_backbone(model).load(model, goal.cls.starts_from(goal.config), None, native=native)

    def save(self, folder: Path, model: Any, head: nn.Module | None, processor: Pixels, labels: Sequence[str] | None, multi: bool) -> None:
        model.save(folder, head, list(labels) if labels else None, multi)
        processor.save(folder)

    def shown(self, batch: Batch, processor: Pixels, labels: Sequence[str]) -> str:
        side, what = "x".join(map(str, batch["pixels"].shape[1:])), ""
        if "label" in batch:
            label = batch["label"][0]
            named = [labels[i] for i in label.nonzero().flatten().tolist()] if label.ndim else [labels[int(label)]]
            what = f" -> {', '.join(named) or 'no label'}"
        return f"a picture of {side} (mean value {float(batch['pixels'][0].float().mean()):.1f} of 255){what}"

    def preview(self, path: Path, processor: Pixels, store: Store) -> None:
        if processor.augment is None:
            raise BadInput("--preview: nothing makes views of a picture here; choose an augmentation with augment=<name>")
        draw(path, processor.augment, *self._some(processor, store, PREVIEWED), processor.mirror)

    def views(self, processor: Pixels, store: Store) -> tuple[dict[str, Any], str | None]:
        if processor.augment is None:
            return {}, None
        found = receipt(processor.augment, *self._some(processor, store, COMPARED_VIEWS), processor.mirror)
        return {"views": found}, doubt(found, changes(processor.augment, processor.mirror))

    def _some(self, processor: Pixels, store: Store, most: int) -> tuple[Tensor, Tensor]:
        """Pixels and draws of pictures from all over a store, as the first epoch has them."""
        rows = np.linspace(0, store.count - 1, min(most, store.count)).astype(np.int64)
        batch = processor.read(store, rows, chance.keys(self.seed, 0, rows))
        return batch["pixels"], batch["draws"]

    def watch(self, processor: Pixels, valid: Store | None, train: Store) -> Watch | None:
        return Watch(processor, valid, train) if valid is not None else None

    def compared(
        self, processor: Pixels, stores: Mapping[str, Store], labelled: Modality | None, most: int
    ) -> Callable[[Any], dict[str, float]]:
        named = labelled.corpus(processor, lambda _: None, only="train").stores if labelled is not None else {}
        parts = [*named.values()] or [stores[name] for name in ("valid", "train") if name in stores]
        watch = Watch(processor, *parts)
        if named and not watch.metric:
            raise BadInput("objective.labelled: no labels were found there; name labelled pictures, or leave it out")
        return partial(watch.look, most=most)

    def transfer(self, model: Any, processor: Pixels, train: Store, test: Store) -> dict[str, Any]:
        return transfer(model, processor, train, test)

    def album(self, run: Path, goal: Any, model: Any, store: Store) -> tuple[list[str], str | None]:
        return album(run, goal, model, store)

    def graph(self, folder: Path, kind: str | None, longest: int, module: nn.Module | None = None) -> Graph:
        return vision_graph(folder, kind, module)

    def sample(
        self, run: Path, count: int, processor: Pixels, coder: Any
    ) -> Iterator[tuple[Batch, tuple[Tensor, ...], list[Mapping[str, Any]]]]:
        facts = json.loads((run / "data.json").read_text(encoding="utf-8"))
        kept = facts.get("labels_in_order") or None
        prepared = self.examples(coder, processor, kept) if coder else self.corpus(processor, lambda _: None)
        store = prepared.stores[next(s for s in ("test", "valid", "train") if s in prepared.stores)]
        recorded: list[Any] = [{}] * store.count
        if (run / "predictions.jsonl").exists():
            with (run / "predictions.jsonl").open(encoding="utf-8") as file:
                recorded = [json.loads(line) for _, line in zip(range(count), file, strict=False)]
        for start in range(0, min(count, store.count), COMPARED):
            rows = np.arange(start, min(start + COMPARED, count, store.count))
            pixels = processor.plain(processor.take(store, rows))
            yield {"pixels": pixels}, (pixels,), recorded[start : start + len(rows)]


def _augment(part: Part[Augment], views: int) -> Any:
    """As configured, but of one view where one is looked at and all are alike."""
    alike = all(not isinstance(x, list) for x in (part.config["blur"].probability, part.config["solarise"]))
    one = {"views": 1} if views == 1 and alike and not part.config["local"].count else {}
    return Part(part.path, part.cls, {**part.config, **one}).build()

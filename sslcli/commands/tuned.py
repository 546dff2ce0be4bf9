"""What `peft=` adds to a run: the method put in, said, saved as an adapter, merged, and what was saved compared with what was trained."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sslcli.build import parameters
from sslcli.commands.folder import Folder
from sslcli.core import Backbone, Task
from sslcli.data import chance
from sslcli.data.store import Store
from sslcli.data.stream import to_device
from sslcli.device import exact
from sslcli.errors import BadCheckpoint, BadInput, printable
from sslcli.hf import adapter
from sslcli.hf.tuning import Peft
from sslcli.modality import Modality
from sslcli.run import storage
from sslcli.schema import Part

COMPARED = 16  # rows that what was saved is compared on
# of what is predicted for them, where it is larger than 1 its share: a folder of plain transformers computes some heads in its own words
SAME_ADAPTER, SAME_MODEL = 1e-4, 2e-3


@dataclass
class Tuned:
    part: Part[Peft]
    method: Peft
    still: dict[str, torch.Tensor]  # of frozen weights and statistics, before training
    began: dict[str, torch.Tensor]  # of the method's own, before training
    facts: dict[str, Any] = field(default_factory=dict)  # what of the network trains

    @classmethod
    def insert(cls, part: Part[Peft] | None, task: Part[Task], model: Any, processor: Any, seed: int, source: str | None) -> "Tuned | None":
        left = adapter.beside(source)
        if left is not None and (part is None or part.config["load"] is None):
            remedy = f"add peft={left} peft.load={printable(source)} to go on with it, or name another from="
            raise BadInput(f"from={printable(source)}: what that run learnt is in its adapter, which could not be merged; {remedy}")
        if part is None:
            return None
        tune = task.config.get("tune", "full")
        if tune != "full":
            raise BadInput(f"task.tune={tune}: peft= decides what learns; use task.tune=full with it")
        torch.manual_seed(seed)
        method = put(part, model)
        _shorten(processor, model)
        own = set(method.own)
        began = {n: p.detach().cpu().clone() for n, p in model.named_parameters() if n in own}
        return cls(part, method, _still(model), began)

    def said(self, modules: nn.Module) -> str:
        sizes, names = parameters(modules), self.method.names
        own = sum(p.numel() for n, p in self.method.model.named_parameters() if n in set(self.method.own))
        share = sizes["trainable"] / sizes["parameters"]
        options = {k: v for k, v in self.part.config.items() if k in ("r", "tokens", "style", "reduction", "block", "init")}
        where = f" on {len(names)} x {','.join(dict.fromkeys(n.rsplit('.', 1)[-1] for n in names))}" if names else ""
        shown = " ".join([self.part.cls.__module__.rsplit(".", 1)[-1], *(f"{k}={v}" for k, v in options.items() if v != "default")])
        self.facts = {"kind": shown, "modules": names, **sizes, "of_the_method": own, "trainable_share": round(share, 6)}
        text = f"peft   {shown}{where}: {share:.2%} of {sizes['parameters'] / 1e6:,.1f}M parameters train, with the head"
        return text + (f"; the adapter of {printable(self.method.load)} goes on, in its own shape" if self.method.load else "")

    def keep(
        self, folder: Folder, source: Modality, task: Part[Task], goal: Task, processor: Any, prepared: Any, again: Callable[[], Any]
    ) -> dict[str, Any]:
        """adapter/ and model/, each opened again and compared. `again`: (processor, network) as the run began."""
        model, method = self.method.model, self.method
        _check_still(self.still, _still(model))
        now = dict(model.named_parameters())
        moved = sum(not torch.equal(before, now[n].detach().cpu()) for n, before in self.began.items())
        self.facts |= {"tensors": len(self.began), "tensors_moved": moved}
        multi, base = prepared.facts.get("labelling") == "multi", model.loaded.get("from")
        if not folder.run.writes:
            method.merge()
            return {}
        batch = _some(goal, prepared.stores["train"], next(model.parameters()).device)
        trained = _said(goal, model, batch)
        with storage(folder.run.dir):
            method.save(folder.run.dir / "adapter", base)
            adapter.save(folder.run.dir / "adapter" / adapter.HEAD, _head(model, goal))
        reloaded = _compare(f"{folder.run.dir}/adapter", trained, self._reload(folder, task, prepared, again, batch), SAME_ADAPTER)
        method.merge()
        merged = _compare("the merged network", trained, _said(goal, model, batch), SAME_ADAPTER)
        folder.save_model(source, model, *((goal, processor, prepared.labels, multi) if method.merges else (None, processor)))
        if not method.merges and goal.classifies:
            goal.calibration.save(folder.run.dir / "model", prepared.labels)
            folder.reliability(goal)
        opened = reopened(self.part, task, source, folder.run.dir, processor.length, None, prepared.labels, prepared.facts)
        same = _compare(f"{folder.run.dir}/model", trained, _said(opened[2], opened[1], batch), SAME_MODEL)
        if not method.merges:
            what = "this method cannot be merged: model/ is the network that it began from, adapter/ what was learnt and the head"
            folder.call.screen.warn(f"{what}; ssl evaluate and ssl export read both, plain transformers does not")
        size = sum(p.stat().st_size for p in (folder.run.dir / "adapter").iterdir())
        differences = {"adapter_reloaded": reloaded, "merged": merged if method.merges else None, "model_reloaded": same}
        return {**self.facts, "adapter_bytes": size, "frozen_moved": 0.0, "largest_differences": differences}

    def _reload(self, folder: Folder, task: Part[Task], prepared: Any, again: Callable[[], Any], batch: Any) -> np.ndarray:
        processor, model = again()
        _shorten(processor, model)
        return _said(_filled(self.part, task, processor, model, folder.run.dir, prepared.labels, prepared.facts), model, batch)


def _shorten(processor: Any, model: Any) -> None:
    """Rows leave room for a prompt."""
    if getattr(model, "positions", processor.length) < processor.length:
        processor.length = model.positions


def put(part: Part[Peft], model: Backbone, load: str | None = None) -> Peft:
    kind = part.cls.__module__.rsplit(".", 1)[-1]
    method = part.cls(**part.config)
    method.load = load or method.load
    try:
        method.insert(model)
    except ValueError as error:
        raise BadInput(f"peft.{error}" if str(error).startswith(("targets:", "tokens=")) else f"peft={kind}: {error}") from error
    return method


def reopened(
    part: Part[Peft] | None, goal: Part[Any], source: Modality, folder: Path, length: int, augment: Any, labels: Any, facts: Any
) -> tuple[Any, Any, Any]:
    """(processor, network, objective) of a finished run, with its adapter where the network could not take it in."""
    beside = part is not None and not part.cls.merges
    processor, model = source.reopen(folder, goal, length, augment, native=not beside)
    if beside and part is not None:
        return processor, model, _filled(part, goal, processor, model, folder, labels, facts)
    made = goal.build(model, processor, *(() if labels is None else (labels, facts)))
    if getattr(model, "head_state", None) is not None:  # a head that is kept beside the network
        made.head.load_state_dict(model.head_state)
    model.eval(), made.eval()
    return processor, model, made


def _filled(part: Part[Peft], task: Part[Any], processor: Any, model: Any, run: Path, labels: Any, facts: Any) -> Any:
    """The objective over a network with the adapter of a run, and the head that was trained with it."""
    put(part, model, str(run / "adapter"))
    goal = task.build(model, processor, labels, facts)
    path = run / "adapter" / adapter.HEAD
    if not path.is_file():
        raise BadCheckpoint(f"{path}: missing; the run's head was saved there")
    tensors = adapter.load(path)
    expected = _head(model, goal)
    adapter.check_same(str(path), expected, tensors)
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])
    model.eval(), goal.eval()
    return goal


def _head(model: Any, goal: Task) -> dict[str, torch.Tensor]:
    """All that was trained and is not the method's own."""
    pooler = {f"model.{n}": p for n, p in model.named_parameters() if n.startswith("base.pooler.")}
    return pooler | {f"task.{n}": t for n, t in goal.state_dict(keep_vars=True).items()}


def _still(model: nn.Module) -> dict[str, torch.Tensor]:
    """Some values of every frozen weight, and of statistics."""
    named: list[tuple[str, torch.Tensor]] = [(n, p) for n, p in model.named_parameters() if not p.requires_grad]
    named += [(n, b) for n, b in model.named_buffers() if "running_" in n]
    return {n: t.detach().flatten()[:: max(1, t.numel() // 256)].float().cpu().clone() for n, t in named}


def _check_still(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> None:
    moved = [n for n, t in before.items() if n not in after or not torch.equal(t, after[n])]
    if not before:
        raise AssertionError("peft= was to freeze the network, and all of it was trained")
    if moved:
        raise AssertionError(f"training moved what peft= had frozen: {', '.join(moved[:5])}")


def _some(goal: Task, store: Store, device: torch.device) -> Any:
    rows = np.arange(min(COMPARED, goal.rows(store).count))
    return to_device(goal.read(store, rows, chance.keys(0, 0, rows)), device)


def _said(goal: Task, model: Any, batch: Any) -> np.ndarray:
    """All numbers in what is predicted."""
    device = next(v.device for k, v in batch.items() if k != "weight")  # a weight stays with the host
    with torch.no_grad(), exact():
        return np.array(list(_numbers(goal.to(device).predict(model.to(device), batch))))


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple, np.ndarray)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)):
        yield float(value)


def _compare(what: str, trained: np.ndarray, got: np.ndarray, most: float) -> float:
    worst = float("inf")
    if trained.shape == got.shape:
        worst = float((np.abs(trained - got) / np.abs(trained).max(initial=1.0)).max(initial=0.0))
    if not worst <= most:
        raise BadCheckpoint(f"{what}: opened again, it does not say what was trained (largest difference {worst:.1e}, allowed {most:.0e})")
    return worst

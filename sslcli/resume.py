"""What a run is when it is interrupted: where it stands, how that is kept, and how it goes on from there."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from sslcli import checkpoint, device
from sslcli.distributed import World
from sslcli.errors import BadCheckpoint, Diverged, StorageFull
from sslcli.log import Screen
from sslcli.lowered import Lowered
from sslcli.optim import Optimizer
from sslcli.run import Run
from sslcli.vocabulary import Vocabulary

FAILURES = 3  # saves in a row that the storage may refuse


@dataclass
class Standing:
    """The numbers of a run after `done` steps; with the tensors, all that a resumed run needs."""

    steps: int = 0
    most: int | None = None  # steps, where they were known before one was taken
    done: int = 0
    elapsed: float = 0.0  # seconds of training, over all processes so far
    order: int = 0  # checksum of all rows so far, in the order in which they were learnt from
    # the chosen weights' score and step, the highest score so far, and evaluations since then
    best: dict[str, Any] = field(default_factory=lambda: {"score": None, "step": None, "top": None, "waited": 0})
    bad: dict[str, int] = field(default_factory=lambda: {"in_row": 0, "total": 0})  # non-finite steps
    sums: dict[str, list[Any]] = field(default_factory=dict)  # name -> [weighted sum, weight] since the last line of the log

    def judged(self, score: float, higher_is_better: bool, noise: float) -> bool:
        """Whether the weights of now are chosen: theirs is the best score, or no further from it than `noise`. Of scores that cannot be
        told apart the best is chance, and what has learnt longer is taken (cf. the one-standard-error rule, Breiman et al. 1984)."""
        top, sign = self.best.get("top", self.best["score"]), 1 if higher_is_better else -1
        gain = sign * (score - top) if top is not None else float("inf")
        chosen = gain > -noise
        self.best = {**self.best, "waited": 0, "top": score} if gain > 0 else {**self.best, "waited": self.best["waited"] + 1}
        if chosen:
            self.best |= {"score": score, "step": self.done}
        return chosen

    def facts(self, batch_size: int) -> dict[str, Any]:
        """What metrics.json says of the training itself."""
        return {
            "steps": self.done,
            "seconds": round(self.elapsed, 2),
            "examples_per_second": round(self.done * batch_size / max(self.elapsed, 1e-9), 2),
            "best_step": self.best["step"],
            "refused_steps": self.bad["total"],
            "data_order": f"{self.order:08x}",
        }


class Keeper:
    """Saves and restores one run. A failed save leaves older checkpoints alone and is tried again at the next interval."""

    def __init__(self, run: Run, world: World, screen: Screen):
        self.run, self.world, self.screen = run, world, screen
        self.root = run.dir / "checkpoints"
        self.saved, self.failures = -1, 0
        self.words: Vocabulary | None = None  # while a part of the word embeddings stands for all

    def check_space(self, optimizer: Optimizer, modules: nn.Module) -> None:
        """Before step 1: will the checkpoints fit?"""
        values = sum(m.numel() for m in optimizer.masters) + (self.words.spared if self.words else 0)
        size = values * 4 * (3 + bool(optimizer.average)) + sum(t.nbytes for t in _buffers(modules, optimizer.lowered).values())
        needed, free = size * (self.run.keep + 2), device.free_bytes(self.run.dir)
        if self.world.leads and free < needed:
            sizes = f"{needed / 1e6:,.0f} MB are needed for checkpoints, {free / 1e6:,.0f} MB are free"
            raise StorageFull(f"{self.run.dir}: {sizes}; free some space or lower run.keep")

    def save(self, standing: Standing, modules: nn.Module, optimizer: Optimizer, must: bool = False) -> bool:
        """Commit; whether this step is now on disk (as rank 0 knows). `must`: there is no later chance, so a refusal ends the run."""
        if self.saved == standing.done or not self.world.leads:
            return self.world.leads
        state = optimizer.state()
        tensors = {**(self.words.whole(state) if self.words else state), "buffers": _buffers(modules, optimizer.lowered)}
        if not all(bool(torch.isfinite(t).all()) for t in tensors["weights"].values()):
            raise Diverged(f"diverged: weights are not finite after step {standing.done}; lower optimizer.lr (now {optimizer.lr:.2g})")
        numbers = asdict(standing) | {"sums": {k: [float(s), w] for k, (s, w) in standing.sums.items()}}
        try:
            checkpoint.save(self.root, standing.done, self.run.id, tensors, numbers)
            checkpoint.rotate(self.root, self.run.id, self.run.keep, standing.best["step"])
            self.saved, self.failures = standing.done, 0
        except OSError as error:
            self.failures += 1
            self.screen.warn(f"step {standing.done}: checkpoint not written: {error.strerror}; older ones are intact")
            if must or self.failures >= FAILURES:
                raise StorageFull(
                    f"{self.root}: cannot write checkpoints: {error.strerror}; free some space, then continue with resume=auto"
                ) from error
        return self.saved == standing.done

    def find(self) -> checkpoint.Found | None:
        found = checkpoint.newest(self.root)
        for line in found.refused if found else []:
            self.screen.warn(f"refused {line}")
        return found

    def begin(self, found: checkpoint.Found | None, steps: int, modules: nn.Module, optimizer: Optimizer) -> Standing:
        """Where a run of `steps` begins: at its start, or after the checkpoint. What was told of later steps will be told again."""
        standing = self._restore(found, steps, modules, optimizer) if found else Standing(steps)
        for name in ("metrics.jsonl", "anomalies.jsonl"):
            self.run.forget_after(name, standing.done)
        return standing

    def _restore(self, found: checkpoint.Found, steps: int, modules: nn.Module, optimizer: Optimizer) -> Standing:
        names = ["weights", "moments", "buffers", *(["average"] if optimizer.average else [])]
        tensors = {name: found.tensors(name) for name in names}
        differing = sorted(set(optimizer.names) ^ set(tensors["weights"]))
        if differing:
            raise BadCheckpoint(f"{found.path}: made by another model or objective; it differs in {', '.join(differing[:5])}")
        optimizer.load(self.words.part(tensors) if self.words else tensors)
        modules.load_state_dict(tensors["buffers"], strict=False)
        standing = Standing(**{**found.state, "steps": steps})
        optimizer.refused.fill_(standing.bad["total"])
        self.saved = standing.done
        self.screen.say(f"resumed after step {standing.done:,} of {standing.steps:,}")
        return standing

    def end(self, standing: Standing, optimizer: Optimizer, modules: nn.Module) -> None:
        """`modules` have the best weights, whole."""
        optimizer.release(self._best_weights(standing, optimizer, modules))
        if self.words is not None:
            self.words.end()

    def _best_weights(self, standing: Standing, optimizer: Optimizer, modules: nn.Module) -> dict[str, torch.Tensor]:
        """Those of the best evaluation, with the statistics that go with them put back in `modules`; the last ones where nothing was
        evaluated (on rank 0: the others have what it has)."""
        best = standing.best["step"]
        if best is None or best == standing.done or not self.world.leads:
            return optimizer.best_weights()
        found = checkpoint.exact(self.root / f"step-{best:08d}")
        modules.load_state_dict(found.tensors("buffers"), strict=False)
        kept = {"best": found.tensors("average" if optimizer.average else "weights")}
        return (self.words.part(kept) if self.words else kept)["best"]


def _buffers(modules: nn.Module, lowered: Lowered | None = None) -> dict[str, torch.Tensor]:
    """State that is no trainable weight: teachers, queues, centres, and what is frozen as it was before it was lowered."""
    exact = lowered.exact() if lowered else {}
    state = modules.state_dict(keep_vars=True).items()
    return {n: exact.get(id(t), t) for n, t in state if not (isinstance(t, nn.Parameter) and t.requires_grad)}

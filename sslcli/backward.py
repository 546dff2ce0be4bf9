"""The gradient of a step: every micro-batch of every term is back-propagated as it comes, so memory is that of the largest."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sslcli import device
from sslcli.build import Modules
from sslcli.core import Batch, Term
from sslcli.data.stream import Stream, to_device
from sslcli.distributed import World
from sslcli.errors import OutOfMemory
from sslcli.joint import Balance
from sslcli.log import Screen
from sslcli.noise import Noise
from sslcli.optim import Optimizer
from sslcli.sentinel import Sentinel

TIMED = 3  # passes of each kind that a cost is the least of

Count = Callable[[str, Tensor, float], None]


@dataclass
class Backward:
    modules: Modules
    terms: Sequence[Term]
    noises: Sequence[Noise]
    optimizer: Optimizer
    balance: Balance | None
    world: World
    screen: Screen
    seed: int
    micro_rows: int | None  # what the user named
    count: Count
    sentinel: Sentinel
    pulls: list[Tensor] = field(default_factory=list)  # what pieces of the second term were weighed with in this step
    largest: dict[str, int] = field(default_factory=dict)  # of each term: rows a piece, of the step that was cut least
    again: float | None = None  # the share of its layers' passes that the backward pass made once more, where that was asked

    def __call__(self, step: int, batches: list[list[Batch]], totals: Sequence[float], compared: bool = False) -> None:
        """Each micro-batch weighed by its share of the global batch. `compared`: look at how the gradients of two terms go together."""
        device.seed(self.seed, step, self.world.rank)
        self.sentinel.before(step)
        first: list[Tensor | None] = []
        self.pulls.clear()
        for i, term in enumerate(self.terms):
            if compared and i == 1:
                first = [None if m.grad is None else m.grad.clone() for m in self.optimizer.masters]
            try:
                for batch in batches[i]:
                    self._back(i, batch, float(batch["weight"]) / totals[i])
            except torch.OutOfMemoryError as error:
                batches[i] = self._smaller(term, step, error)
                return self(step, batches, totals, compared)
            if self.micro_rows is not None and batches[i]:  # rows as they are drawn: a batch may hold each twice
                drawn = len(term.stream.rows(step)[self.world.rank :: self.world.size])
                self.largest[term.name] = max(self.largest.get(term.name, 0), -(-drawn // len(batches[i])))
        if first and self.balance is not None:
            cosine, ratio = self.balance.compare(first, self.optimizer, self.world)
            self.count("gradient_cosine", cosine, 1.0)
            self.count("gradient_ratio", ratio, 1.0)
            (weight,) = self.world.sum([float(sum(self.pulls))])
            self.count("weight", torch.tensor(weight, dtype=torch.float64), 1.0)
        self.sentinel.look(step)
        return None

    def _back(self, i: int, batch: Batch, share: float) -> None:
        term, noise = self.terms[i], self.noises[i]
        with noise.around(partial(term.objective, self.modules.model, batch)) as forward:
            for output in term.adversary(forward, noise):
                if i == 1:
                    output.loss.register_hook(self.pulls.append)  # what the loss is weighed with, as it is back-propagated
                (output.loss * (term.weight * share)).backward()
            self.sentinel.see(term.name, noise.clean)
            for name, value in noise.seen().items():
                self.count(f"{term.name}.{name}" if len(self.terms) > 1 else name, value, float(batch["weight"]))

    def _smaller(self, term: Term, step: int, error: Exception) -> list[Batch]:
        """Out of memory: take this step again in smaller pieces. The batch and its gradient stay the same."""
        stream: Stream = term.stream
        largest = max(map(_rows, stream.batches(step)), default=1)
        if self.micro_rows is not None or largest < 2 or stream.whole:
            shorter = "trainer.gradient_checkpointing=true, or a smaller data.max_length (texts), data.size or objective.chunk (pictures)"
            remedy = shorter if largest < 2 or stream.whole else f"trainer.micro_batch_size={largest // 2}"
            raise OutOfMemory(f"out of memory with {largest} rows at a time; use {remedy}") from error
        self.optimizer.forget_gradients()
        if self.world.device.type == "cuda":
            torch.cuda.empty_cache()
        stream.micro_rows = largest // 2
        self.screen.warn(f"out of memory with {largest} rows at a time; going on with {largest // 2} (same batch, same gradient)")
        return [to_device(b, self.world.device) for b in stream.batches(step)]

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Inside, passes leave nothing behind: no gradient, no statistics."""
        kept = [b.clone() for b in self.modules.buffers()]
        self.modules.train()
        yield
        self.optimizer.forget_gradients()
        with torch.no_grad():
            for buffer, before in zip(self.modules.buffers(), kept, strict=True):
                buffer.copy_(before)

    def rehearse(self, batches: Sequence[Sequence[Batch]]) -> None:
        """A step that changes nothing."""
        with self.rehearsal():
            for i, group in enumerate(batches):
                for batch in group:
                    self._back(i, batch, 1.0)

    def recomputes(self, batch: Batch) -> None:
        """Look at whether the backward pass computes activations again (gradient checkpointing): layers that run while it does."""
        calls: list[bool] = []
        with self.rehearsal():
            layers = [m for m in self.modules.model.modules() if not list(m.children())]
            hooks = [layer.register_forward_pre_hook(lambda *_: calls.append(True)) for layer in layers]
            try:
                loss = self.terms[0].objective(self.modules.model, batch).loss
                there = len(calls)
                loss.backward()
            except torch.OutOfMemoryError:
                return  # the first step will say so, and go on in smaller pieces
            finally:
                for hook in hooks:
                    hook.remove()
        self.again = round((len(calls) - there) / max(1, there), 4)

    def receipt(self) -> dict[str, Any]:
        """How a step was cut, where the user said how, and what was computed twice."""
        found: dict[str, Any] = {}
        if self.micro_rows is not None:
            whole = [term.name for term in self.terms if term.stream.whole]
            found["accumulation"] = {"asked": self.micro_rows, "largest": self.largest, "whole": whole}
        return found | ({} if self.again is None else {"gradient_checkpointing": {"computed_again": self.again}})

    def prices(self, read: Callable[[], Sequence[Sequence[Batch]]]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Of every term with an adversary: what it costs and does on a real batch (name, facts)."""
        hostile_terms = [i for i, term in enumerate(self.terms) if getattr(term.adversary, "on", None) is not None]
        batches = read() if hostile_terms else []
        for i in (i for i in hostile_terms if batches[i]):
            term, batch = self.terms[i], batches[i][0]
            plain = Noise(self.modules.model, term.objective)
            with self.rehearsal():
                times: dict[bool, list[float]] = {False: [], True: []}
                for _ in range(1 + TIMED):
                    for hostile, noise in ((False, plain), (True, self.noises[i])):
                        device.seed(self.seed, 0, self.world.rank)
                        seconds, seen = self._timed(term, noise, batch, hostile)
                        times[hostile].append(seconds)
            least = {kind: min(found[1:]) for kind, found in times.items()}
            facts = {key: float(seen[key]) for key in ("loss", "raised", "noise")}
            yield term.name, {"rows": _rows(batch), "cost": round(least[True] / least[False], 3), **facts}

    def _timed(self, term: Term, noise: Noise, batch: Batch, hostile: bool) -> tuple[float, dict[str, Tensor]]:
        """Seconds of a micro-batch, there and back, and what was seen."""
        self.optimizer.forget_gradients()
        start = time.monotonic()
        with noise.around(partial(term.objective, self.modules.model, batch)) as forward:
            for output in term.adversary(forward, noise) if hostile else (forward(),):
                output.loss.backward()
            seen = noise.seen()
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic() - start, seen


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def hostility(adversary: Any, rehearsed: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], prefix: str) -> dict[str, Any]:
    """The receipt of an adversary: what it cost, and the noise that was reached and the loss that it raised, on average over the run."""
    asked = {key: getattr(adversary, key) for key in ("on", "norm", "radius")}
    means = {key: mean(lines, f"{prefix}{key}", rehearsed[key]) for key in ("noise", "raised")}
    name = type(adversary).__module__.rpartition(".")[2]
    if asked["radius"] and not (rehearsed["noise"] > 0 and means["noise"] > 0):
        raise AssertionError(f"adversarial={name}: radius {asked['radius']} was asked, and the noise that the network saw is 0")
    return {"kind": name, **asked, "reached": means["noise"], "raised": means["raised"], "cost": rehearsed["cost"]}


def mean(lines: Sequence[Mapping[str, Any]], key: str, otherwise: float = 0.0) -> float:
    """Of what stands in the log."""
    found = [float(line[key]) for line in lines if key in line]
    return round(sum(found) / len(found) if found else otherwise, 6)

"""The collapse sentinel: beside training, for less than a hundredth of its time, it looks whether the network still tells rows apart."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sslcli.core import Objective, Output, Task, Term
from sslcli.distributed import World
from sslcli.errors import Collapsed
from sslcli.evidence import causes
from sslcli.evidence.collapse import IDLE, RULES, Rule, measured
from sslcli.log import Screen
from sslcli.optim import Optimizer
from sslcli.run import Run
from sslcli.teacher import Queue, Teacher

EARLY, EVERY = 200, 50  # steps in which a look is taken at the first and then at every 50th; later at every line of the log
SAMPLE = 512  # values of a weight, by which it is told whether it moves


class Sentinel:
    """Looks at the first micro-batch of each self-supervised term, on some steps. The first alarm is told, what follows from it is not.
    Of several ranks each looks at its own rows, and rank 0 decides for all."""

    def __init__(self, stops: bool, run: Run, screen: Screen, world: World, count: Callable[[str, Any, float], None]):
        self.stops, self.run, self.screen, self.world, self.count = stops, run, screen, world, count
        self.terms: dict[str, Objective] = {}
        self.alarm: dict[str, Any] | None = None  # of this process's steps
        self.due, self.looks, self.spent = False, 0, 0.0  # spent: seconds
        self.seen: dict[str, Output] = {}
        self.in_row: dict[tuple[str, Rule], int] = {}  # term and rule -> looks

    def begin(self, terms: Sequence[Term], optimizer: Optimizer, log_every: Callable[[], int]) -> None:
        """Before the first step (of a resumed run too). `log_every`: steps, as the run is planned now."""
        self.log_every = log_every
        self.terms = {t.name: t.objective for t in terms if not isinstance(t.objective, Task)}
        self.masters = {id(w): m for w, m in zip(optimizer.weights, optimizer.masters, strict=True)}
        self.parts = {name: dict(self._parts(objective)) for name, objective in self.terms.items()}
        self.taken, self.started = 0, time.monotonic()

    def before(self, step: int) -> None:
        """A step: is it one to look at?"""
        done, self.seen = step + 1, {}
        every = EVERY if done <= EARLY else max(EVERY, self.log_every())
        self.due = bool(self.terms) and (done == 1 or done % every == 0)
        self.taken += 1

    def see(self, name: str, output: Output | None) -> None:
        """A clean pass over a micro-batch."""
        if self.due and output is not None and name in self.terms and name not in self.seen:
            self.seen[name] = output

    def look(self, step: int) -> None:
        """After the passes of a step, before the weights move."""
        if not self.due:
            return
        start, found = time.monotonic(), None
        for name, output in self.seen.items():
            measures = measured(output.seen, output.loss.detach())
            for key, value in measures.items():
                self.count(f"sentinel.{name}.{key}" if len(self.terms) > 1 else f"sentinel.{key}", value, 1.0)
            found = found or self._idle(name, step + 1) or self._broken(name, measures, step + 1)
        self.seen, self.due, found = {}, False, self.world.gather(found)[0]
        if self.alarm is None and found is not None:
            self.alarm = found
            self.run.append("metrics.jsonl", {"step": step + 1, "alarm": found})
            if not self.stops:
                self.screen.warn(causes.sentence(found))
        self.looks, self.spent = self.looks + 1, self.spent + time.monotonic() - start

    @property
    def stop(self) -> str | None:
        """Whether the run is to end here."""
        return "collapse" if self.stops and self.alarm is not None else None

    def end(self) -> None:
        if self.stop and self.alarm is not None:
            go_on = f"run.dir={self.run.dir} resume=auto trainer.on_collapse=warn goes on all the same"
            raise Collapsed(f"stopped: {causes.sentence(self.alarm)}; {go_on}")

    def receipt(self) -> dict[str, Any]:
        """What was looked at and seen, over the run; the share of the time is of this process's steps."""
        if not self.terms:
            return {}
        lines = self.run.lines("metrics.jsonl")
        last = {k.removeprefix("sentinel."): round(v, 6) for line in lines for k, v in line.items() if k.startswith("sentinel.")}
        share = self.spent / max(time.monotonic() - self.started, 1e-9)
        alarms = [line["alarm"] for line in lines if "alarm" in line]
        return {"sentinel": {"looks": self.looks, "share_of_time": round(share, 5), "last": last, "alarms": alarms}}

    def _broken(self, name: str, measures: dict[str, float], step: int) -> dict[str, Any] | None:
        """The first rule that was broken for long enough: it explains the others."""
        for rule in RULES:
            is_broken = rule.measure in measures and step >= rule.after and rule.broken(measures[rule.measure])
            self.in_row[name, rule] = self.in_row.get((name, rule), 0) + 1 if is_broken else 0
        held = [rule for rule in RULES if self.in_row[name, rule] >= rule.looks]
        return self._told(held[0], name, measures[held[0].measure], step) if held else None

    def _idle(self, name: str, step: int) -> dict[str, Any] | None:
        """A part of the objective that has learnt nothing since this process began; looked at once, and not while it is frozen."""
        objective = self.terms[name]
        if self.taken < IDLE.after or getattr(objective, "progress", 1.0) < getattr(objective, "freeze", 0.0):
            return None
        before, now = self.parts[name], dict(self._parts(objective))
        self.parts[name] = {}
        for part, values in before.items():
            moved = max(_turned(a, b) for a, b in zip(values, now[part], strict=True))
            if IDLE.broken(moved):
                return self._told(IDLE, name, moved, step, part=part)
        return None

    def _told(self, rule: Rule, name: str, value: float, step: int, **more: str) -> dict[str, Any]:
        return causes.alarm(step, rule, value, self.terms[name], **more)

    @torch.no_grad()
    def _parts(self, objective: Objective) -> Iterator[tuple[str, list[Tensor]]]:
        """Samples of the weights of each part that learns, in the precision that they are kept in."""
        for part, module in objective.named_children():
            weights = [self.masters.get(id(w), w) for w in module.parameters()]
            if weights and not isinstance(module, (Teacher, Queue)):
                yield part, [w.detach().flatten()[:: -(-w.numel() // SAMPLE)].double() for w in weights]


def _turned(before: Tensor, now: Tensor) -> float:
    """How far weights moved, but for their length, which decay alone changes; as a share of what they are."""
    scale = (before @ now) / (before @ before).clamp(min=1e-30)
    return float((now - scale * before).norm() / now.norm().clamp(min=1e-30))

"""The one loop."""

import signal
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from sslcli import device
from sslcli.backward import Backward, hostility
from sslcli.build import Modules
from sslcli.core import Batch, Objective, Term
from sslcli.data.store import Store
from sslcli.data.stream import Stream, to_device
from sslcli.distributed import World
from sslcli.dropout import quicken
from sslcli.errors import BadInput, Diverged, Preempted
from sslcli.joint import Balance
from sslcli.log import Bar, Screen, duration, seconds
from sslcli.noise import noise_of
from sslcli.optim import Optimizer
from sslcli.pace import Pace
from sslcli.resume import Keeper, Standing
from sslcli.run import Run
from sslcli.schema import Part
from sslcli.sentinel import Sentinel
from sslcli.signals import heard
from sslcli.vocabulary import met

Count = Annotated[int, Field(ge=1)]
Judge = Callable[[bool], dict[str, Any]]  # scores on held-out data; True: of the last step, so that all that can be said must be

BAD_IN_ROW, BAD_SHARE = 5, 0.001  # non-finite steps that a run survives


class Trainer:
    def __init__(
        self,
        world: World,
        run: Run,
        screen: Screen,
        seed: int,
        usual: int,
        *,
        steps: Count | None,
        epochs: Annotated[float, Field(gt=0)] | None,
        batch_size: Count | None,
        micro_batch_size: Count | None,
        precision: Literal["auto", "fp32", "bf16"],
        devices: Count,
        eval_every: Count | None,
        save_every: Count | None,
        log_every: Count | None,
        time_limit: str | float | None,
        patience: Count | None,
        compile: bool | Literal["auto"],
        deterministic: bool,
        gradient_checkpointing: bool,
        on_collapse: Literal["stop", "warn"],
        seeds: Count | Literal["auto"] = 1,  # the verb's: a trainer has one
    ):
        self.world, self.run, self.screen, self.seed = world, run, screen, seed
        self.batch_size, self.micro_rows, self.patience = batch_size or usual, micro_batch_size, patience
        self.time_limit = seconds(time_limit)
        self.pace = Pace(steps, epochs, self.batch_size, {"eval": eval_every, "save": save_every, "log": log_every}, self.time_limit)
        self.device, self.precision = world.device, device.precision(precision, world.device)
        self.compile, self.gradient_checkpointing = compile, gradient_checkpointing
        device.prepare(world.device, deterministic)
        self.keeper, self.signal, self.at = Keeper(run, world, screen), 0, Standing()
        self.sentinel = Sentinel(on_collapse == "stop", run, screen, world, self._count)
        self.hostile: dict[str, dict[str, Any]] = {}  # of each term with an adversary: cost, noise and loss before the first step

    @staticmethod
    def contradiction(keys: Mapping[str, Any]) -> str | None:
        steps, epochs = keys["steps"], keys["epochs"]
        if steps is not None and epochs is not None:
            return f"steps={steps} and epochs={epochs} contradict each other; give one, and null for the other"
        try:
            seconds(keys["time_limit"])
        except ValueError as error:
            return str(error)
        return None

    def stream(self, objective: Objective, store: Store, seed: int, split: str = "train", batch_size: int | None = None) -> Stream:
        """The training batches of a term, cut so that a forward pass fits in memory."""
        places, budget = objective.rows(store), device.token_budget(self.device, "pixels" in store.meta)
        if places.count < objective.least:
            remedy = "more data is needed" + (", or a smaller objective.shortest" if hasattr(objective, "shortest") else "")
            raise BadInput(f"data.{split}: {places.count} rows that this objective can use, at least {objective.least} needed; {remedy}")
        rows = self.micro_rows or (None if places.lengths is not None else max(1, budget // places.width))
        tokens = budget if self.micro_rows is None else None
        read, worth = partial(objective.read, store), device.worth_a_pass(self.device)
        size, world = batch_size or self.batch_size, self.world
        return Stream(places, read, size, seed, world.rank, world.size, rows, tokens, worth, objective.couples_rows)

    def fit(
        self,
        modules: Modules,
        terms: Sequence[Term],
        optimizer: Part[Optimizer],
        judge: Judge | None,
        judged_rows: int,
        auto: Callable[[Stream], int],
        resume: bool,
        balance: Balance | None = None,
    ) -> dict[str, Any]:
        """Train; leaves `modules` in fp32 with the best weights. `auto`: steps where the user names none; `balance`: of the second term."""
        self.modules, self.terms, self.judge, self.judged_rows = modules.to(self.device), terms, judge, judged_rows
        self.model, self.balance = (model := cast(Any, quicken(modules).model)), balance
        if self.gradient_checkpointing:
            model.checkpoint_gradients()
        compiles = device.compiles(self.compile, self.device, self.pace.known(terms[0].stream, auto), self.time_limit)
        self.keeper.words = None if compiles else met(modules, terms)
        noises = [noise_of(term.adversary, model, term.objective, compiles) for term in terms]
        if compiles:
            model.compile(dynamic=True)
        found = self.keeper.find() if resume else None
        if found is None:
            self._begin()
        if not any(p.requires_grad for p in modules.parameters()):
            return self._facts()  # solved, not trained: a probe, a vote of neighbours
        self.optimizer = optimizer.build(modules, self.precision)
        known = (self.world, self.screen, self.seed, self.micro_rows, self._count, self.sentinel)
        self.backward = Backward(modules, terms, noises, self.optimizer, balance, *known)
        steps = self.pace.plan(terms[0].stream, auto, self.world, self._rehearse, found.state if found else None)
        self.at, self.optimizer.steps = self.keeper.begin(found, steps, modules, self.optimizer), steps
        self.at.most = self.pace.most
        self.keeper.check_space(self.optimizer, self.modules)
        self.sentinel.begin(terms, self.optimizer, partial(self._every, "log"))
        self._price()
        if self.gradient_checkpointing and not compiles:
            for batch in self._read(self.at.done)[0][0][:1]:  # a rank may have none
                self.backward.recomputes(batch)
        self.started = time.monotonic() - self.at.elapsed
        with heard(self._note), self.screen.progress("training", self.at.steps, self.at.done) as bar, ThreadPoolExecutor(1) as reader:
            self._loop(bar, reader)
        if self.world.sum([float(self.signal > 0)])[0]:
            name, place = signal.Signals(self.signal or signal.SIGTERM).name, f"{self.at.done:,} of {self.at.steps:,}"
            raise Preempted(f"stopped by {name} after step {place}; run.dir={self.run.dir} resume=auto continues")
        self.sentinel.end()
        self.keeper.end(self.at, self.optimizer, self.modules)
        self.world.same([*self.modules.parameters(), *self.modules.buffers()])
        return self._facts()

    def _facts(self) -> dict[str, Any]:
        kind = str(self.precision).removeprefix("torch.")
        return self.at.facts(self.batch_size) | {"peak_memory_bytes": device.peak_memory(self.device), "precision": kind}

    def receipts(self) -> dict[str, Any]:
        """What adversaries and a second term did, over the run; an AssertionError where an adversary did nothing."""
        lines, several = self.run.lines("metrics.jsonl"), len(self.terms) > 1
        found: dict[str, Any] = {}
        for term in (t for t in self.terms if t.name in self.hostile):
            found["adversarial"] = hostility(term.adversary, self.hostile[term.name], lines, f"{term.name}." if several else "")
        found |= self.optimizer.receipt() | self.backward.receipt() if self.at.done else {}  # nothing steps where a head is solved
        return found | self.sentinel.receipt() | (self.balance.receipt(lines) if self.balance is not None else {})

    def _begin(self) -> None:
        """Whatever objectives set from their data, alike on all ranks."""
        self.modules.eval()
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            for term in self.terms:
                term.objective.begin(self.model, term.stream)
        self.world.same([*self.modules.parameters(), *self.modules.buffers()])

    def _loop(self, bar: Bar, reader: ThreadPoolExecutor) -> None:
        at = self.at
        self.modules.train()
        ahead = reader.submit(self._read, at.done)
        while at.done < at.steps and not self._tired():
            step = at.done
            batches, rows = ahead.result()
            ahead = reader.submit(self._read, step + 1)
            totals, stop = self._agree(batches)

            # single training step
            if self.balance is not None:
                self.terms[1].weight = self.balance.at(step / at.steps)
            self.backward(step, batches, totals, self.balance is not None and self.balance.looks(step, at.steps))
            norm = self.optimizer.step(self.world, step)
            for term in self.terms:
                term.objective.after_step(self.model, (step + 1) / at.steps)
            at.order = zlib.crc32(rows, at.order)
            self._count("norm", norm, 1.0)
            self._watch_finite(step)
            at.done, at.elapsed = step + 1, time.monotonic() - self.started
            stop = "signal" if self.signal and self.world.size == 1 else stop or self.sentinel.stop  # alone, nobody else is asked

            # once in a while: log, evaluate, save
            last = at.done == at.steps or stop == "time"
            if last or stop == "collapse" or at.done % self._every("log") == 0:
                self._log(bar)
            if self.judge and (last or at.done % self._every("eval") == 0):
                self._evaluate(last)
            last = last or bool(stop) or self._tired()
            if last or at.done % self._every("save") == 0:
                self.keeper.save(at, self.modules, self.optimizer, must=last)

            # termination
            if stop == "time":
                self.screen.say(f"time limit of {duration(self.time_limit or 0)} reached after {at.done:,} of {at.steps:,} steps")
            if stop:
                return
        if self._tired():
            self.screen.say(f"no better score in {self.patience} evaluations: stopped after {at.done:,} of {at.steps:,} steps")

    def _every(self, kind: str) -> int:
        return self.pace.interval(kind, self.at.steps, self.judged_rows)

    def _tired(self) -> bool:
        return self.patience is not None and self.at.best["waited"] >= self.patience

    def _read(self, step: int) -> tuple[list[list[Batch]], bytes]:
        """This rank's micro-batches of every term, on the device, and the global batch's rows."""
        rows = b"".join(term.stream.rows(step).tobytes() for term in self.terms)
        return [[to_device(b, self.device) for b in term.stream.batches(step)] for term in self.terms], rows

    def _agree(self, batches: Sequence[Sequence[Batch]]) -> tuple[list[float], str | None]:
        """What all ranks must know before the first backward pass: global weights, how many steps there are, whether to stop after this."""
        weights = [sum(float(b["weight"]) for b in group) for group in batches]
        elapsed = (time.monotonic() - self.started) / self.world.size
        *totals, signalled, elapsed = self.world.sum([*weights, float(self.signal > 0), elapsed])  # on average over ranks
        self.at.steps = self.optimizer.steps = self.pace.again(self.at.steps, self.at.done, elapsed)
        return totals, "signal" if signalled else "time" if elapsed > (self.time_limit or float("inf")) else None

    def _count(self, name: str, value: Tensor, weight: float) -> None:
        held = self.at.sums.setdefault(name, [0.0, 0.0])
        held[0] = held[0] + value * weight  # stays on the device until it is logged
        held[1] += weight

    def _watch_finite(self, step: int) -> None:
        """A non-finite gradient has moved nothing (optim.py). Few such steps are survived; each is written down."""
        at = self.at
        if self.device.type == "cuda" and step % 16 and step + 1 < at.steps:
            return  # reading the count would make the host wait: look now and then
        refused = int(self.optimizer.refused.item())
        at.bad = {"in_row": at.bad["in_row"] + 1 if refused > at.bad["total"] else 0, "total": refused}
        if not at.bad["in_row"]:
            return
        rows = [term.stream.rows(step).tolist() for term in self.terms]
        self.run.append("anomalies.jsonl", {"step": step + 1, "what": "non-finite loss or gradient; no step taken", "rows": rows})
        self.screen.warn(f"step {step + 1}: non-finite loss or gradient; no step taken")
        if at.bad["in_row"] >= BAD_IN_ROW or refused > max(BAD_IN_ROW, BAD_SHARE * at.steps):
            what = f"diverged: {refused} steps with non-finite loss or gradient by step {step + 1}"
            raise Diverged(
                f"{what}; lower optimizer.lr (now {self.optimizer.lr:.2g}); their rows are in {self.run.dir / 'anomalies.jsonl'}"
            )

    def _log(self, bar: Bar) -> None:
        at = self.at
        names = dict.fromkeys(name for found in self.world.gather(list(at.sums)) for name in found)  # a rank may have had no rows
        flat = self.world.sum([float(x) for name in names for x in at.sums.get(name, (0.0, 0.0))])
        means = {name: flat[2 * i] / flat[2 * i + 1] for i, name in enumerate(names)}
        at.sums = {}
        line = {"step": at.done, **means, "lr": self.optimizer.rate(at.done - 1), "seconds": round(at.elapsed, 3)}
        self.run.append("metrics.jsonl", line)
        losses = "  ".join(f"{k} {v:.4f}" for k, v in means.items() if k.endswith(("loss", "accuracy")))
        best = f"  best {self.terms[0].objective.metric} {at.best['score']:.4f}" if at.best["score"] is not None else ""
        speed = at.done * self.batch_size / max(at.elapsed, 1e-9)
        bar.update(at.done, f"step {at.done:,}/{at.steps:,}  {losses}{best}  {speed:,.0f} rows/s", at.steps)

    def _evaluate(self, last: bool) -> None:
        assert self.judge is not None
        at, objective = self.at, self.terms[0].objective
        with self.optimizer.averaged():
            self.modules.eval()
            scores = self.judge(last)
            self.modules.train()
        plain = {k: v for k, v in scores.items() if isinstance(v, (int, float))}
        self.run.append("metrics.jsonl", {"step": at.done, "valid": plain})
        self.screen.detail(f"step {at.done:,}: " + "  ".join(f"{k} {v:.4f}" for k, v in plain.items()))
        if objective.metric not in scores:
            return  # nobody looked this time
        before, noise = at.best, float(scores.get(f"{objective.metric}_noise", 0.0))
        chosen = at.judged(float(scores[objective.metric]), objective.higher_is_better, noise)
        if chosen and not any(self.world.gather(self.keeper.save(at, self.modules, self.optimizer))):
            at.best = {**before, "waited": 0}  # what is not on disk cannot be delivered

    def _rehearse(self, step: int) -> None:
        self.backward.rehearse(self._read(step)[0])
        self.at.sums = {}

    def _price(self) -> None:
        """Say what adversaries cost and do, before the first step."""
        for name, facts in self.backward.prices(lambda: self._read(self.at.done)[0]):
            self.hostile[name] = facts
            what = f"{facts['cost']:.2f} times the time of a plain step (a pass of {facts['rows']} rows)"
            self.screen.say(f"adversary  {what}; noise {facts['noise']:.3g}, loss {facts['loss']:.4f} {facts['raised']:+.4f}")

    def _note(self, number: int, _: Any) -> None:
        if self.signal and number == signal.SIGINT:
            raise Preempted("interrupted twice: stopped at once; resume=auto continues from the last checkpoint")
        self.signal = number

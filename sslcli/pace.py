"""How many steps a run takes, and how often it logs, evaluates and saves, where the user names no number."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sslcli.data.stream import Stream
from sslcli.distributed import World

AUTO = {"eval": 10, "save": 10, "log": 100}  # times in a whole run
EVALUATING = 0.1  # share of the time that evaluations may take
LEAST, MEASURING = 4, 0.05  # steps, and share of a time limit, to measure a speed with
USABLE = 0.92  # share of the rest of a time limit that steps may use: evaluations and checkpoints take time too
AIM, NEAR = 0.97, 0.02  # share of a time limit at which a run under way means to end, and how far it may be off before it plans again
WARMING, AGAIN, SPENT = 2, 0.02, 0.85  # steps that are no measure; shares of a time limit between two plans, and after which it is used up


@dataclass
class Pace:
    steps: int | None
    epochs: float | None
    batch_size: int
    every: dict[str, int | None]  # eval, save, log -> steps
    time_limit: float | None  # seconds
    measuring: float = MEASURING
    least: int = LEAST
    most: int | None = None  # steps, where they were named beside the time limit
    first: int | None = None  # the step from which this process's speed is measured, and seconds of the run then and at the last plan
    origin: float = 0.0
    looked: float = 0.0

    def plan(self, stream: Stream, auto: Callable[[Stream], int], world: World, rehearse: Callable[[int], None], begun: Any = None) -> int:
        """Steps of the whole run; of one that goes on (`begun`: its state), those that it has, unless it is told others.

        `rehearse(step)` takes a step that changes nothing: with a time limit a few are timed, so that the schedule knows its end."""
        self.most = self.known(stream, auto)
        if begun is None:
            return self.most or self._measure(self.time_limit or 0.0, stream, world, rehearse)
        self.most = self.most or begun.get("most")
        spent = self.time_limit is not None and begun["elapsed"] > SPENT * self.time_limit
        return int(begun["steps"]) if spent or self.steps is None else self.steps

    def again(self, steps: int, done: int, elapsed: float) -> int:
        """`steps` of a run under way, asked before every step; under a time limit, now and then, as many as fit into it at the speed of
        this process, evaluations and all, but no more than were named. A machine that was busy in the first seconds, or is now, would
        else decide how far the schedule comes. The first steps are no measure: they warm the machine up."""
        if self.time_limit is None:
            return steps
        if self.first is None:
            self.first = done + WARMING
        if done == self.first:
            self.origin = self.looked = elapsed
        due = elapsed - self.looked >= AGAIN * self.time_limit
        if not due or elapsed > self.time_limit or not self.first < done < steps:
            return steps
        self.looked = elapsed
        fit = done + int((AIM * self.time_limit - elapsed) * (done - self.first) / (elapsed - self.origin))
        fit = max(done + 1, fit if self.most is None else min(fit, self.most))
        return fit if abs(fit - steps) > NEAR * steps else steps

    def known(self, stream: Stream, auto: Callable[[Stream], int]) -> int | None:
        """Steps of a run that begins, where they are known before one was taken: a time limit says nothing."""
        if self.steps is not None or self.epochs is not None:
            return self.steps or max(1, round((self.epochs or 0) * stream.steps_per_epoch))
        return auto(stream) if self.time_limit is None else None

    def _measure(self, limit: float, stream: Stream, world: World, rehearse: Callable[[int], None]) -> int:
        times: list[float] = []
        while len(times) < self.least or sum(times) < self.measuring * limit:
            start = time.monotonic()
            rehearse(len(times))
            times.append(max(world.gather(time.monotonic() - start)))  # ranks agree on when to stop
        later = range(len(times) // 2, len(times))  # the first ones also warm the machine up
        lengths = stream.places.lengths
        long = 1.0 if lengths is None else sum(lengths[stream.rows(i)].mean() for i in later) / len(later) / lengths.mean()
        mean = sum(times[i] for i in later) / len(later) / long  # of a step of mean length
        return max(10, int(USABLE * (limit - sum(times)) / mean))

    def interval(self, kind: str, steps: int, judged_rows: int) -> int:
        """Steps between two looks of this kind. An evaluation costs a forward pass a row, a third of a training step's."""
        chosen = self.every[kind]
        if chosen:
            return chosen
        least = math.ceil(judged_rows / 3 / (EVALUATING * self.batch_size)) if kind == "eval" else 1
        often = max(1, least, steps // AUTO[kind])
        return often if self.time_limit is None else _round(often)


def _round(steps: int) -> int:
    """Up to 1, 2 or 5 times a power of ten: what is planned again a little otherwise looks at the same steps."""
    power = 10 ** (len(str(steps)) - 1)
    return next(k * power for k in (1, 2, 5, 10) if k * power >= steps)

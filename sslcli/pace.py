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


@dataclass
class Pace:
    steps: int | None
    epochs: float | None
    batch_size: int
    every: dict[str, int | None]  # eval, save, log -> steps
    time_limit: float | None  # seconds
    measuring: float = MEASURING
    least: int = LEAST

    def plan(self, stream: Stream, auto: Callable[[Stream], int], world: World, rehearse: Callable[[int], None], begun: Any = None) -> int:
        """Steps of the whole run; of one that goes on (`begun`: its state), those that it has, unless it is told others.

        `rehearse(step)` takes a step that changes nothing: with a time limit a few are timed, so that the schedule knows its end."""
        if self.steps is None and begun is not None:
            return int(begun["steps"])
        return self.known(stream, auto) or self._measure(self.time_limit or 0.0, stream, world, rehearse)

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
        return max(1, least, steps // AUTO[kind])

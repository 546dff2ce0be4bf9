"""How many labels pretraining saved: two score curves over numbers of labels, read where both have the same score.

A row of a test set brings counts [C] to a score that is a function of their sums: one count, of being right, for accuracy; three (found
rightly, said, true) for F1. So a resample of rows is a product of matrices.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RESAMPLES, LEVEL = 2000, 0.95
FINE = 64  # places between two budgets at which a curve is read


@dataclass(frozen=True)
class Curve:
    """Of one way to start: counts [S, B, N, C] of S seeds, B budgets and N test rows."""

    counts: np.ndarray

    def scores(self) -> np.ndarray:
        """[S, B]"""
        return score(self.counts.sum(2))


@dataclass(frozen=True)
class Reading:
    """`few` labels after pretraining do what `many` do without. An interval's end may lie beyond the budgets: -inf or inf."""

    score: float
    few: float
    few_interval: tuple[float, float]
    many: float
    many_interval: tuple[float, float]
    saved: float  # share of the labels, 1 - few / many, below 0 when it hurt; the budgets' ends stand for what is beyond them
    saved_interval: tuple[float, float]

    @property
    def verdict(self) -> str:
        low, high = self.saved_interval
        return "saved" if low > 0 else "hurt" if high <= 0 else "nothing saved"


def score(sums: np.ndarray) -> np.ndarray:
    """[..., C] -> [...]: accuracy of (right, all), F1 of (found rightly, said, true)."""
    over = sums[..., 1:].sum(-1)
    return np.divide((sums.shape[-1] - 1) * sums[..., 0], over, out=np.zeros(over.shape), where=over > 0)


def counts_of(path: Path) -> np.ndarray:
    """[N, C] of a predictions.jsonl."""
    with path.open(encoding="utf-8") as file:
        rows = (row for row in map(json.loads, file) if row.get("rank", 0) >= 0)  # -1: nothing of its kind was to be found
        found = [tally(row["prediction"], row["gold"], isinstance(row["input"], list)) for row in rows]
    return np.array(found, np.float64) if found else np.zeros((0, 2))


def tally(said: Any, gold: Any, tagged: bool) -> tuple[float, ...]:
    """What a row brings: of single labels (right, 1); of several labels, or of the entities that tags mark (found rightly, said, true)."""
    if not isinstance(gold, list):
        return float(said == gold), 1.0
    said_, gold_ = (_entities(x) if tagged else set(x) for x in (said, gold))
    return float(len(said_ & gold_)), float(len(said_)), float(len(gold_))


def _entities(tags: Sequence[str]) -> set[Any]:
    """With their places."""
    from seqeval.metrics.sequence_labeling import get_entities

    return set(get_entities(list(tags)))


def isotonic(values: np.ndarray) -> np.ndarray:
    """[..., B] -> the nearest never-falling values, by max-min of means (Barlow et al. 1972, theorem 1.9)."""
    budgets = values.shape[-1]
    sums = np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, -1)], -1)
    means = np.full((*values.shape, budgets), np.inf)  # [..., first, last]
    for first in range(budgets):
        lengths = np.arange(1, budgets - first + 1)
        means[..., first, first:] = (sums[..., first + 1 :] - sums[..., first : first + 1]) / lengths
    least = np.minimum.accumulate(means[..., ::-1], -1)[..., ::-1]  # of all that end at or after `last`
    every = np.arange(budgets)
    return np.stack([least[..., : i + 1, i].max(-1) for i in every], -1)


def fine(budgets: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A never-falling curve [..., B] between its budgets: (log labels [M], values [..., M]), by monotone cubics (Fritsch and Carlson)."""
    from scipy.interpolate import PchipInterpolator

    x = np.log(budgets)
    if len(x) == 1:
        return x, values
    places = np.unique(np.concatenate([x, np.linspace(x[0], x[-1], FINE * (len(x) - 1))]))
    return places, np.maximum.accumulate(PchipInterpolator(x, values, axis=-1)(places), -1)


def needed(places: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Log labels [R] at which curves [R, M] come to `wanted` [R]; -inf where the fewest do, inf where the most do not."""
    reached = values >= wanted[:, None] - 1e-12
    at = reached.argmax(1)
    rows = np.arange(len(values))
    before = np.maximum(at - 1, 0)
    low, high = values[rows, before], values[rows, at]
    share = np.divide(wanted - low, high - low, out=np.ones_like(low), where=high > low)
    found = places[before] + np.clip(share, 0, 1) * (places[at] - places[before])
    return np.where(~reached.any(1), np.inf, np.where(at == 0, np.where(wanted < values[:, 0], -np.inf, places[0]), found))


def resampled(curves: Mapping[str, Curve], seed: int = 0) -> dict[str, np.ndarray]:
    """Mean scores of each curve, [R, B], the measured ones first: test rows are drawn anew (the same for all, which have the same), and
    the seeds' mean is moved as far as seeds differ, all curves by the same seeds: they are paired.

    Few seeds say little about how much seeds differ: moves are of a Student's t. Every curve counts with its own differences between
    seeds, for its budgets move together at worst.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, 0xC0FE]))
    first = next(iter(curves.values())).counts
    seeds, budgets, rows, _ = first.shape
    weights = random.multinomial(rows, np.full(rows, 1 / rows), RESAMPLES).astype(np.float64)
    scores = {name: curve.scores() for name, curve in curves.items()}
    moves = _moves(np.concatenate(list(scores.values()), 1), len(curves), random)
    found = {}
    for i, (name, curve) in enumerate(curves.items()):
        flat = curve.counts.transpose(2, 0, 1, 3).reshape(rows, -1)
        drawn = score((weights @ flat).reshape(RESAMPLES, seeds, budgets, -1)).mean(1)
        measured = scores[name].mean(0)
        found[name] = np.concatenate([measured[None], drawn + moves[:, i * budgets : (i + 1) * budgets]])
    return found


def _moves(scores: np.ndarray, curves: int, random: np.random.Generator) -> np.ndarray:
    """What another draw of seeds would add to the mean over seeds: [S, K] -> [R, K]."""
    seeds = len(scores)
    if seeds < 2:
        return np.zeros((RESAMPLES, scores.shape[1]))
    residual = scores - scores.mean(0)
    freedom = (seeds - 1) * curves
    heavy = np.sqrt(freedom / random.chisquare(freedom, (RESAMPLES, 1)))
    mixed = random.standard_normal((RESAMPLES, seeds)) @ residual / np.sqrt(seeds * (seeds - 1))
    return mixed * heavy


def read(curves: Mapping[str, np.ndarray], budgets: np.ndarray, with_: str, without: str, at: tuple[str, float]) -> Reading:
    """Both curves ([R, B] of `resampled`) at the score that one of them, `at[0]`, has with `at[1]` labels."""
    fitted = {name: fine(budgets, isotonic(values)) for name, values in curves.items() if name in (with_, without)}
    places, values = fitted[at[0]]
    column = np.interp(np.log(at[1]), places, np.arange(len(places)))
    below, share = int(column), column - int(column)
    wanted = values[:, below] * (1 - share) + values[:, min(below + 1, len(places) - 1)] * share
    few, many = (needed(*fitted[name], wanted) for name in (with_, without))
    exact = np.full(len(wanted), np.log(at[1]))  # where the score is read off a curve, that curve has it there
    few, many = (exact if at[0] == with_ else few), (exact if at[0] == without else many)
    return Reading(float(wanted[0]), *_told(few, budgets), *_told(many, budgets), *_saved(few, many, budgets))


def _bounds(logs: np.ndarray, budgets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(least, most) labels that log labels may mean: beyond the budgets all that is known is on which side."""
    labels = np.exp(logs)
    return np.where(logs == np.inf, budgets[-1], labels), np.where(logs == -np.inf, budgets[0], labels)


def _told(logs: np.ndarray, budgets: np.ndarray) -> tuple[float, tuple[float, float]]:
    least, most = _bounds(logs[1:], budgets)
    return float(np.exp(logs[0])), _interval(least, most)


def _saved(few: np.ndarray, many: np.ndarray, budgets: np.ndarray) -> tuple[float, tuple[float, float]]:
    (fewest, few_most), (least, most) = _bounds(few, budgets), _bounds(many, budgets)
    with np.errstate(divide="ignore"):
        lows, highs = (np.round(1 - x, 12) + 0.0 for x in (few_most / least, fewest / most))  # 200 of 200 saves 0, not -4e-16
    shown = 1 - np.exp(np.clip(few[0], *np.log(budgets[[0, -1]])) - np.clip(many[0], *np.log(budgets[[0, -1]])))
    return float(shown), _interval(lows[1:], highs[1:])


def _interval(lows: np.ndarray, highs: np.ndarray) -> tuple[float, float]:
    """Percentiles, infinite ends kept."""
    low, high = (np.quantile(v, q, method="nearest") for v, q in ((lows, (1 - LEVEL) / 2), (highs, (1 + LEVEL) / 2)))
    return float(low), float(high)


def rises(curves: Mapping[str, np.ndarray]) -> bool:
    """Whether labels teach anything at all: some curve's score with the most is above that with the fewest, beyond chance."""
    return any(float(np.quantile(values[1:, -1] - values[1:, 0], (1 - LEVEL) / 2)) > 0 for values in curves.values())


def apart(curves: Mapping[str, np.ndarray]) -> bool:
    """Whether the two curves differ in their mean over budgets, in every resample: of flat curves a small gap reads as a large saving."""
    one, other = (values[1:].mean(1) for values in curves.values())
    return bool((one > other).all() or (one < other).all())

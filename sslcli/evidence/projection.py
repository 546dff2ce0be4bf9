"""What more of the same would bring: a learning curve carried on beyond its last point, with how little that is sure.

Learning curves are power laws, score = a - b x^-c (Hestness et al. 2017; Viering and Loog 2022), where c = 0 is a logarithm and c = -1 has
not begun to bend yet, or exponentials, a - b exp(-x / c). Few points do not tell which it is, so none is chosen: each counts by how well
it fits, and the interval is that of all of them together. What lies far behind says little of what lies ahead, and is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sslcli.log import duration

POWERS = (-1.5, *np.linspace(-1, 1, 9).tolist(), 1.5, 2.0, 3.0)
DECAYS = np.geomspace(0.05, 1, 12).tolist()  # times the last x
RECENT = 0.25  # of the last x: points from there on are looked at, if they are enough
LEAST = 5  # points without which nothing is told
LEVEL = 0.95
WIDE = 0.2  # an interval so wide says nothing
SMALL = 0.005  # a gain that is certainly below is not worth waiting for
QUANTILES = (np.arange(400) + 0.5) / 400  # of a distribution, as which it is mixed with others


@dataclass(frozen=True)
class Projection:
    gain: float  # the middle of what is believed
    interval: tuple[float, float]
    points: int

    @property
    def verdict(self) -> str:
        low, high = self.interval
        if high - low > WIDE:
            return "cannot be told"
        return "hardly helps" if high < SMALL else "helps" if low > 0 else "may help"


def project(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, ahead: float) -> Projection | None:
    """Scores y [N] after x [N] (steps, labels; rising, above 0): what going on from the last x to `ahead` adds, by the curve. None where
    points are too few.

    Each curve is a straight line of y over a function of x; under the reference prior its weight is RSS^-(N-2)/2, and the gain along it
    is Student's t with N - 2 degrees of freedom. Noise is taken as alike and independent at all points. None of these
    curves turns: a score that has begun to fall is told too well.
    """
    from scipy.stats import t

    place, score = np.asarray(x, float), np.asarray(y, float)
    if len(np.unique(place)) < LEAST or place.min() <= 0:
        return None
    recent = np.flatnonzero(place >= min(RECENT * place[-1], place[-LEAST]))
    place, score, end = place[recent] / place[-1], score[recent], ahead / place[-1]
    count, left = len(place), len(place) - 2
    spread = score - score.mean()
    floor = 1e-12 + 1e-6 * float(spread @ spread)
    doubt, gains, weights = t.ppf(QUANTILES, left), [], []
    for curve in (*(partial(_power, c) for c in POWERS), *(partial(_decay, c) for c in DECAYS)):
        rising = curve(place)
        scale = rising.std()
        design = (rising - rising.mean()) / scale
        slope = float(design @ spread) / count
        residual = float(np.square(spread - slope * design).sum()) + floor
        step = float(curve(np.array([end]))[0] - curve(np.ones(1))[0]) / scale
        gains.append(step * (slope + np.sqrt(residual / left / count) * doubt))
        weights.append(-left / 2 * np.log(residual))
    share = np.exp(np.array(weights) - max(weights))
    mixed, weight = np.concatenate(gains), np.repeat(share / share.sum(), len(QUANTILES)) / len(QUANTILES)
    order = np.argsort(mixed)
    reached = np.cumsum(weight[order])
    places = np.searchsorted(reached, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2]).clip(max=len(order) - 1)
    low, middle, high = mixed[order][places].clip(max=1 - float(np.max(y))).tolist()  # scores end at 1
    return Projection(middle, (low, high), count)


def _power(exponent: float, x: np.ndarray) -> np.ndarray:
    return np.log(x) if exponent == 0 else -np.sign(exponent) * x**-exponent


def _decay(pace: float, x: np.ndarray) -> np.ndarray:
    return -np.exp(-x / pace)


def of_run(metric: str | None, log: Sequence[Mapping[str, Any]], done: Mapping[str, Any]) -> dict[str, Any]:
    """`projection`: what half as much training again would add to `metric`, that the log of a run (the lines of metrics.jsonl) has beside
    held-out losses, higher being better; nothing where there is none. `done`: `steps` and `seconds` of the run."""
    if metric is None:
        return {}
    points = {int(line["step"]): float(line["valid"][metric]) for line in log if metric in line.get("valid", {})}
    more = {"metric": metric, "points": len(points), "steps": int(done["steps"]) // 2, "seconds": round(float(done["seconds"]) / 2, 1)}
    found = project(list(points), list(points.values()), max(points) * 1.5) if points else None
    if found is None:
        return {"projection": {**more, "verdict": "cannot be told"}}
    ends = {"gain": round(found.gain, 6), "gain_interval": [round(v, 6) for v in found.interval]}
    return {"projection": {**more, "verdict": found.verdict, **ends}}


def sentence(found: Mapping[str, Any]) -> str:
    """For the screen."""
    more = f"another {duration(found['seconds'])} ({found['steps']:,} steps)"
    if "gain" not in found:
        return f"{more}: cannot be told from {found['points']} looks at {found['metric']}; {LEAST} are needed (trainer.eval_every)"
    low, high = (100 * v for v in found["gain_interval"])
    gain = f"{100 * found['gain']:+.1f} points of {found['metric']} ({low:+.1f} to {high:+.1f}), as its curve goes on"
    advice = {
        "helps": "it still rises",
        "may help": "that may be nothing",
        "hardly helps": "more training will hardly help",
        "cannot be told": "so it cannot be told",
    }
    return f"{more}: {gain}; {advice[found['verdict']]}"

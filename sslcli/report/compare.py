"""Whether one run is better than another: paired where both answered the same examples, unpaired where their intervals are all there is."""

import math
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from sslcli import metrics
from sslcli.report.record import LOWER_IS_BETTER, RIGHT, Record, lines


@dataclass(frozen=True)
class Difference:
    value: float  # of the score, second minus first
    low: float
    high: float
    paired: int  # examples that both answered; 0: unpaired

    def verdict(self, key: str) -> str:
        low, high = (-self.high, -self.low) if key in LOWER_IS_BETTER else (self.low, self.high)
        return "better" if low > 0 else "worse" if high < 0 else "same"


def between(first: Record, second: Record, most: int | None = None) -> Difference | None:
    """None where the two have no score in common, or no interval to judge it by."""
    key, split = first.score, first.split
    if key is None or second.score != key or second.split != split:
        return None
    one, two = first.value(split, key), second.value(split, key)
    assert one is not None and two is not None
    if key in RIGHT and (answers := _answers(first, most)) is not None and (others := _answers(second, most)) is not None:
        (asked, right), (asked_too, right_too) = answers, others
        # pairs are only claimed where the files hold what the scores are of
        if asked == asked_too and abs(right.mean() - one) < 1e-9 and abs(right_too.mean() - two) < 1e-9:
            low, high = metrics.interval(np.stack([right, right_too], 1), lambda s: (s[:, 1] - s[:, 0]) / len(right))
            return Difference(two - one, low, high, len(right))
    return unpaired(one, first.interval(split, key), two, second.interval(split, key))


def unpaired(one: float, interval: tuple[float, float] | None, two: float, other: tuple[float, float] | None) -> Difference | None:
    """From two intervals of independent samples: half widths add as the sides of a right triangle."""
    if interval is None or other is None:
        return None
    low = math.hypot(two - other[0], interval[1] - one)
    high = math.hypot(other[1] - two, one - interval[0])
    return Difference(two - one, two - one - low, two - one + high, 0)


def _answers(record: Record, most: int | None) -> tuple[list[int], np.ndarray] | None:
    """(what was asked, example by example; whether the answer is right), of a file that was read whole."""
    path = record.dir / "predictions.jsonl"
    if not path.is_file():
        return None
    asked: list[int] = []
    right: list[bool] = []
    for row in islice(lines(path), None if most is None else most + 1):
        gold, said = row.get("gold"), row.get("prediction")
        asked.append(hash((str(row.get("id")), str(row.get("input")), str(gold))))
        right.append(_plain(gold) == _plain(said))
    return (asked, np.array(right, np.int64)) if right and (most is None or len(right) <= most) else None


def _plain(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, list) else value

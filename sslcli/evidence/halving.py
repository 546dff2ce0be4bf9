"""Successive halving (Jamieson and Talwalkar 2016; the bracket of Hyperband that begins with all): rungs, their times, who goes on."""

import math
from collections.abc import Mapping, Sequence

REDUCTION = 3  # of so many on a rung one goes on


def rungs(candidates: int) -> list[int]:
    """How many run on each rung, until one is left: 8, 3."""
    found = [candidates]
    while (rest := math.ceil(found[-1] / REDUCTION)) > 1:
        found.append(rest)
    return found


def times(counts: Sequence[int], seconds: float) -> list[float]:
    """Until when a candidate has trained at the end of each rung, in seconds from its start: all rungs take the same time in all."""
    found, total = [], 0.0
    for count in counts:
        total += seconds / len(counts) / count
        found.append(total)
    return found


def best(scores: Mapping[str, float]) -> list[str]:
    """From the best to the worst; of equal ones the first named."""
    return sorted(scores, key=lambda name: -scores[name])

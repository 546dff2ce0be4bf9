"""What a run gets wrong, from the predictions that it wrote down: labels that are confused, rows of the highest loss, weak slices.

A slice is a part of the rows that somebody could name: a label, texts of some length, a file. Many are looked at, so some are low by
chance: only those are called weak that stay so after Holm's correction.
"""

import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sslcli import metrics
from sslcli.data.tags import split
from sslcli.errors import printable
from sslcli.evidence.efficiency import score, tally

PAIRS, WORST = 30, 50  # confusions and rows that are listed
LEAST = 10  # rows of a slice, and of the rest
MOST = 60  # slices of one kind: the largest
DRAWS, LEVEL = 9999, 0.05
LETTERS = 300  # of a text that is shown
NOTHING = "(nothing)"  # of several labels: one too many, or too few
BOUNDS = "(other bounds)"  # of tagged words: the kind is right, where it begins is not


@dataclass
class Mistakes:
    """Of N predictions, in one pass: `counts` [N, C] as in evidence.efficiency, what slices are cut by, and the rows of most loss."""

    counts: list[tuple[float, ...]] = field(default_factory=list)
    traits: dict[str, list[Any]] = field(default_factory=dict)  # by what -> of each row its value, or its values
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)  # how often each label is right
    worst: list[tuple[float, int, dict[str, Any]]] = field(default_factory=list)
    wrong: int = 0

    @classmethod
    def of(cls, rows: Iterator[Mapping[str, Any]], traits: Mapping[str, Sequence[Any]]) -> "Mistakes":
        """`rows`: of predictions.jsonl; `traits`: more to cut slices by, of each example."""
        found = cls(traits={name: [] for name in ("label", "length", "file", "source", *traits)})
        for row in rows:
            found._add(row, traits)
        return found

    def _add(self, row: Mapping[str, Any], traits: Mapping[str, Sequence[Any]]) -> None:
        gold, said, shown = row["gold"], row["prediction"], row["input"]
        tagged = isinstance(shown, list)
        self.counts.append(tally(said, gold, tagged))
        self.pairs.update(_confused(gold, said, tagged))
        self.seen.update(_kinds(gold) if tagged else gold if isinstance(gold, list) else [gold])
        own = sorted(set(_kinds(gold)) - {"O"}) if tagged else gold
        values = {"label": own, "length": _length(shown), "file": row.get("file"), "source": row.get("source")}
        for name, held in self.traits.items():
            held.append(traits[name][row["id"]] if name in traits else values[name])
        if said == gold:
            return
        self.wrong += 1
        loss = _loss(row)
        if loss is not None:
            listed = {k: row[k] for k in ("file", "record") if row.get(k) is not None}
            listed |= {"input": excerpt(shown), "gold": _said(gold, shown), "prediction": _said(said, shown), "loss": round(loss, 4)}
            item = (loss, -int(row["id"]), {"id": row["id"], **listed})
            (heapq.heappush if len(self.worst) < WORST else heapq.heappushpop)(self.worst, item)

    def summary(self) -> dict[str, Any]:
        """Plain values for errors.json."""
        total = sum(self.pairs.values())
        confusions = [
            {
                "gold": a,
                "prediction": b,
                "count": n,
                "share_of_errors": round(n / total, 6),
                "share_of_label": round(n / self.seen[a], 6) if a in self.seen else None,
            }
            for (a, b), n in sorted(self.pairs.items(), key=lambda p: (-p[1], p[0]))[:PAIRS]
        ]
        worst = [row for _, _, row in sorted(self.worst, key=lambda w: w[:2], reverse=True)]
        counts = np.array(self.counts)
        found = slices(counts, {name: _groups(name, values) for name, values in self.traits.items()})
        return {
            "rows": len(counts),
            "wrong": self.wrong,
            "score": "accuracy" if counts.shape[1] == 2 else "f1",
            "value": _scored(counts),
            "confusions": confusions,
            "worst": worst,
            "slices": found,
        }


def slices(counts: np.ndarray, groups: Mapping[str, Mapping[str, np.ndarray]], seed: int = 0) -> list[dict[str, Any]]:
    """Of rows with counts [N, C], the score of each named part (by what -> its name -> which rows, [N] bool) beside that of the rest.

    `p`: how often so many rows drawn at random score as far below the rest (a permutation test; rows alike are drawn by their number).
    `weak`: below 0.05 after the correction for all slices that were looked at (Holm 1979).
    """
    kinds, kind = np.unique(counts, axis=0, return_inverse=True)
    total = np.bincount(kind.ravel(), minlength=len(kinds))
    random = np.random.Generator(np.random.Philox(key=[seed, 0x511CE]))
    found: list[dict[str, Any]] = []
    for by, parts in groups.items():
        sized = [(name, rows) for name, rows in parts.items() if LEAST <= rows.sum() <= len(rows) - LEAST]
        for name, rows in sorted(sized, key=lambda part: -int(part[1].sum()))[:MOST]:
            own, rest = counts[rows], counts[~rows]
            drawn = random.multivariate_hypergeometric(total, int(rows.sum()), size=DRAWS, method="marginals")
            below = score(own.sum(0)) - score(rest.sum(0))
            by_chance = score(drawn @ kinds) - score((total - drawn) @ kinds)
            p = (1 + int((by_chance <= below + 1e-12).sum())) / (1 + DRAWS)
            scores = {"score": _scored(own), "interval": _interval(own), "rest": _scored(rest)}
            found.append({"by": by, "slice": name, "rows": len(own), **scores, "p": p})
    for row, adjusted in zip(found, holm([row["p"] for row in found]), strict=True):
        row |= {"p_adjusted": round(adjusted, 6), "weak": adjusted <= LEVEL}
    return sorted(found, key=lambda row: (not row["weak"], row["score"]))


def holm(p: Sequence[float]) -> list[float]:
    """p-values that hold for all of a family at once (Holm 1979): the k-th smallest of n times n - k + 1, never falling, at most 1."""
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(np.asarray(p, float)[order] * np.arange(len(p), 0, -1)) if len(p) else np.zeros(0)
    found = np.empty(len(p))
    found[order] = raised.clip(max=1.0)
    return found.tolist()


def excerpt(shown: Any) -> str:
    """An input as it is listed: a text, words, or both sides of a pair, cut short."""
    parts = shown.values() if isinstance(shown, Mapping) else [" ".join(shown) if isinstance(shown, list) else shown]
    return printable(" | ".join(str(part) for part in parts), LETTERS)


def lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _confused(gold: Any, said: Any, tagged: bool) -> Iterator[tuple[str, str]]:
    """(is, taken for) of one row: of one label at most one pair, of tagged words one a word, of several labels all that were missed
    with all that were given instead."""
    if tagged:
        for a, b, is_, taken in zip(gold, said, _kinds(gold), _kinds(said), strict=True):
            if a != b:
                yield is_, taken if is_ != taken else BOUNDS
    elif isinstance(gold, list):
        missed, given = ([x for x in one if x not in other] for one, other in ((gold, said), (said, gold)))
        if missed or given:
            yield from ((a, b) for a in missed or [NOTHING] for b in given or [NOTHING])
    elif gold != said:
        yield gold, said


def _kinds(tags: Sequence[str]) -> list[str]:
    """Of what kind of entity each word is; O of none."""
    return [split(tag)[1] or "O" for tag in tags]


def _loss(row: Mapping[str, Any]) -> float | None:
    """As written down; of several labels, the mean cross-entropy of each given or not."""
    if "loss" in row:
        return float(row["loss"])
    p = row.get("probabilities")
    if not isinstance(p, dict) or not isinstance(row["gold"], list):
        return None
    right = np.array([v if label in row["gold"] else 1 - v for label, v in p.items()])
    return float(-np.log(right.clip(1e-7)).mean())


def _said(label: Any, shown: Any) -> str:
    """A label, labels, or the words that are tagged."""
    if isinstance(shown, list):
        return ", ".join(f"{word}/{tag}" for word, tag in zip(shown, label, strict=True) if tag != "O") or "O"
    return ", ".join(label) if isinstance(label, list) else str(label)


def _length(shown: Any) -> int | None:
    """Of a text in characters, of words their number."""
    if isinstance(shown, list):
        return len(shown)
    return sum(len(str(part)) for part in (shown.values() if isinstance(shown, Mapping) else [shown]))


def _groups(name: str, values: Sequence[Any]) -> dict[str, np.ndarray]:
    """Named parts of the rows, [N] bool: the quarters of numbers, or the rows of each value."""
    some = [v for v in values if v is not None]
    if some and all(isinstance(v, (int, float)) for v in some) and len(some) == len(values):
        numbers = np.array(values, float)
        cuts = np.unique(np.quantile(numbers, [0.25, 0.5, 0.75], method="lower"))
        which = np.searchsorted(cuts, numbers)  # a cut belongs to the part below it
        parts = {int(i): which == i for i in np.unique(which)}
        return {f"{numbers[rows].min():g}–{numbers[rows].max():g}": rows for rows in parts.values()} if len(parts) > 1 else {}
    sets = [set(v) if isinstance(v, list) else {v} for v in values]
    often = Counter(x for s in sets for x in s if x is not None)
    return {str(x): np.array([x in s for s in sets]) for x, _ in often.most_common(MOST)} if len(often) > 1 or name == "label" else {}


def _scored(counts: np.ndarray) -> float:
    return round(float(score(counts.sum(0))), 6)


def _interval(counts: np.ndarray) -> list[float]:
    """95 %: of shares the exact one (Clopper and Pearson 1934), of F1 by a bootstrap."""
    if counts.shape[1] > 2:
        return metrics.interval(counts.astype(np.int64), score)
    right, rows = int(counts[:, 0].sum()), len(counts)
    return [round(1 - metrics.binomial_upper(rows - right, rows, 0.025), 6), round(metrics.binomial_upper(right, rows, 0.025), 6)]

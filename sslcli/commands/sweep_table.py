"""What a sweep ends in: sweep.json, sweep.csv and a table; of a comparison also compare.json, with differences to the plain value."""

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sslcli.commands.job import Job
from sslcli.comparison import Comparison
from sslcli.log import Screen, shown
from sslcli.metrics import mean_interval
from sslcli.report.record import HEADLINE
from sslcli.run import write_atomically

SHOWN = (*HEADLINE[:3], "macro_f1", *HEADLINE[3:])  # on the screen; the files have every score
COSTS = ("trainable_share", "peak_memory_bytes", "train_seconds")
EVEN = 1e-9  # the ends of an interval are as far from its middle


def report(root: Path, jobs: Sequence[Job], comparison: Comparison | None, screen: Screen) -> None:
    """State, scores, cost and where to look, a line a run; of a comparison, a line a value."""
    scores, costs = _keys(job.scores for job in jobs), [k for k in COSTS if any(k in job.cost for job in jobs)]
    keys = _keys(job.choice for job in jobs)
    rows = [
        {"run": str(j.folder), **j.choice, "state": j.state, "exit": j.code, "seconds": round(j.seconds, 1), **j.scores, **j.cost}
        for j in jobs
    ]
    write_atomically(root / "sweep.json", json.dumps(rows, indent=2) + "\n")
    with (root / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["run", *keys, "state", "exit", "seconds", *scores, *costs])
        writer.writeheader()
        writer.writerows(rows)
    best = [k for name in SHOWN for k in scores if k.partition("_")[2] == name]
    if comparison:
        compared = compare(jobs, comparison, next(iter(best), ""))
        write_atomically(root / "compare.json", json.dumps(compared, indent=2, ensure_ascii=False) + "\n")
        _comparison_table(root, compared, screen)
    else:
        table = [[j.folder.name, *(j.choice[k] for k in keys), j.state, *(shown(j.scores.get(k)) for k in best)] for j in jobs]
        screen.table(str(root), ("run", *keys, "state", *best), table)
        _over_seeds(jobs, keys, best, screen)
    _failures(jobs, screen)
    screen.result({"sweep": str(root), "runs": len(jobs), "failed": sum(job.code != 0 for job in jobs)})


def compare(jobs: Sequence[Job], comparison: Comparison, score: str) -> dict[str, Any]:
    """A row a setting: the score over seeds, its difference to the plain value seed by seed, what it costs. The baseline comes last."""
    settings: dict[tuple[str, ...], list[Job]] = {}
    keys = [comparison.axis, *(k for k in _keys(job.choice for job in jobs) if k not in (comparison.axis, "seed"))]
    for job in jobs:
        settings.setdefault(tuple(job.choice[k] for k in keys), []).append(job)
    rows = []
    for setting, runs in settings.items():
        plain = settings[(comparison.values[0], *setting[1:])]
        done = [job for job in runs if job.code == 0]
        costs = {k: reduce([job.cost[k] for job in done]) for k, reduce in _REDUCED.items() if done and all(k in job.cost for job in done)}
        failed = {job.choice.get("seed", ""): job.state for job in runs if job.code != 0}
        means = _means(_by_seed(runs, score), None if plain is runs else _by_seed(plain, score))
        single = done[0].intervals.get(score) if len(done) == 1 else None  # of one run: what its own resampled examples say
        rows.append(dict(zip(keys, setting, strict=True)) | means | ({"interval": single} if single else {}) | costs | {"failed": failed})
    cheap: dict[tuple[str, ...], list[Job]] = {}  # what else was swept -> runs with a baseline: it is of the same labels, whatever the axis
    for setting, runs in settings.items():
        cheap.setdefault(setting[1:], []).extend(job for job in runs if score in job.cheap)
    for others, runs in cheap.items():
        if runs:
            name, plain = dict(zip(keys, (runs[0].method, *others), strict=True)), settings[(comparison.values[0], *others)]
            found = {job.choice.get("seed", ""): job.cheap[score] for job in runs}
            rows.append(name | _means(found, _by_seed(plain, score)) | {"failed": {}, "baseline": True})
    return {"axis": comparison.axis, "plain": comparison.values[0], "keys": keys, "score": score, "rows": rows}


_REDUCED: dict[str, Any] = {"trainable_share": statistics.fmean, "peak_memory_bytes": max, "train_seconds": statistics.fmean}


def _by_seed(jobs: Sequence[Job], score: str) -> dict[str, float]:
    return {job.choice.get("seed", ""): job.scores[score] for job in jobs if score in job.scores}


def _means(mine: Mapping[str, float], plain: Mapping[str, float] | None) -> dict[str, Any]:
    """Mean over seeds, and of the differences on the seeds that both have, each with its 95 % interval."""
    differences = {seed: value - plain[seed] for seed, value in mine.items() if seed in plain} if plain else {}
    found: dict[str, Any] = {"each": dict(mine)}
    for name, interval, values in (("mean", "interval", mine), ("difference", "difference_interval", differences)):
        each = list(values.values())
        found |= {name: statistics.fmean(each) if each else None, interval: list(mean_interval(each)) if len(each) > 1 else None}
    return found


def _comparison_table(root: Path, compared: Mapping[str, Any], screen: Screen) -> None:
    """Narrow enough for 80 columns."""
    keys, rows = compared["keys"], []
    for row in compared["rows"]:
        done, asked = len(row["each"]), len(row["each"]) + len(row["failed"])
        name = f"{row[keys[0]]} ({done} of {asked} runs)" if row["failed"] else row[keys[0]]
        costs = [
            f"{row['trainable_share']:.2%}" if "trainable_share" in row else "",
            f"{row['peak_memory_bytes'] / 1e6:,.0f} MB" if "peak_memory_bytes" in row else "",
            f"{row['train_seconds']:,.1f}" if "train_seconds" in row else "",
        ]
        own, against = (_within(row[k], row[f"{i}interval"], form) for k, i, form in (("mean", "", ""), ("difference", "difference_", "+")))
        rows.append([name, *(row.get(k, "") for k in keys[1:]), own, against, *costs])
    title = f"{root / 'compare.json'}: {compared['score'].replace('_', ' ', 1) or 'no scores'}, means of seeds with 95 % intervals"
    screen.table(title, (*keys, "score", f"against {compared['plain']}", "trained", "memory", "seconds"), rows)


def _within(value: float | None, interval: Sequence[float] | None, sign: str) -> str:
    """`0.823 ±0.021`; both ends where they are not alike, as those of one run are not."""
    if value is None:
        return ""
    places = f"{sign}{'.3f' if abs(value) < 100 else ',.1f'}"
    if interval is None:
        return f"{value:{places}}"
    low, high = interval
    even = abs((low + high) / 2 - value) < EVEN * max(abs(value), 1)
    return f"{value:{places}} " + (f"±{(high - low) / 2:{places[len(sign) :]}}" if even else f"({low:{places}} to {high:{places}})")


def _over_seeds(jobs: Sequence[Job], keys: Sequence[str], scores: Sequence[str], screen: Screen) -> None:
    """Where the seed was swept: each setting's mean score with its 95 % interval, beside what a cheap method makes of the same labels."""
    keys = [k for k in keys if k != "seed"]
    found: dict[tuple[str, ...], dict[str, dict[str, float]]] = {}  # setting -> score -> seed -> value
    for job in jobs:
        if "seed" not in job.choice:
            return
        first, *others = (job.choice[k] if k.startswith("data.") else "" for k in keys or [""])  # a cheap method depends on data alone
        cheap = (f"{first} baseline".strip(), *others)
        for setting, values in ((tuple(job.choice[k] for k in keys), job.scores), (cheap, job.cheap)):
            for score in scores:
                if score in values:
                    found.setdefault(setting, {}).setdefault(score, {})[job.choice["seed"]] = values[score]
    rows = []
    for setting, by_score in found.items():
        for score, by_seed in by_score.items():
            values_ = list(by_seed.values())
            low, high = mean_interval(values_, score.partition("_")[2]) if len(values_) > 1 else (values_[0], values_[0])
            spread = f"{min(values_):.4f} to {max(values_):.4f}"
            rows.append([*(setting or ("",)), score, len(values_), statistics.mean(values_), f"{low:.4f} to {high:.4f}", spread])
    methods = " or ".join(dict.fromkeys(job.method for job in jobs if job.cheap))
    screen.table(
        f"over seeds{methods and f' (baseline: {methods})'}",
        (*(keys or [""]), "score", "seeds", "mean", "95 % interval", "lowest to highest"),
        rows,
    )


def _failures(jobs: Sequence[Job], screen: Screen) -> None:
    """Why runs failed, each reason once."""
    reasons: dict[str, list[str]] = {}
    for job in jobs:
        if job.code:
            reasons.setdefault(f"{job.state}: {job.last_line()}", []).append(job.folder.name)
    for reason, names in reasons.items():
        screen.warn(f"{', '.join(names)} {reason}")


def _keys(tables: Any) -> list[str]:
    """All keys, in the order in which they are met."""
    return list(dict.fromkeys(k for table in tables for k in table))

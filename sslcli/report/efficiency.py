"""Score against labels, a line a way to start, with what is read off them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sslcli.report.pictures import keep, plotter

COLOURS = ("#1a7f37", "#0969da", "#6e7781")


def draw(path: Path, arms: Mapping[str, Sequence[Mapping[str, Any]]], reading: Mapping[str, Any], metric: str) -> None:
    """`arms`: by name, points with `labels`, `score` (mean), `interval` and `scores` (of each seed)."""
    pyplot = plotter()
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for colour, (name, points) in zip(COLOURS, arms.items(), strict=False):
        labels = np.array([p["labels"] for p in points])
        axes.plot(labels, [p["score"] for p in points], "o-", color=colour, label=name, zorder=3)
        axes.fill_between(labels, *np.array([p["interval"] for p in points]).T, color=colour, alpha=0.15, linewidth=0)
        for x, point in zip(labels, points, strict=True):
            axes.plot([x] * len(point["scores"]), point["scores"], ".", color=colour, alpha=0.4)
    ends = [reading["few"], reading["many"]]
    if all(np.isfinite(x) and x > 0 for x in ends):
        axes.plot(ends, [reading["score"]] * 2, "--", color="#24292f", linewidth=1)
    ticks = sorted({p["labels"] for points in arms.values() for p in points})
    axes.set(xscale="log", xlabel="labels", ylabel=metric)
    axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
    axes.minorticks_off()
    axes.set_title(reading["sentence"], fontsize=9, loc="left", wrap=True)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    keep(pyplot, figure, path)

"""What a classifier's confidence is worth, drawn. Needs matplotlib."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sslcli.calibration import Calibration
from sslcli.report.pictures import keep, plotter
from sslcli.robustness import strength

BINS = 15


def reliability(path: Path, sure: np.ndarray, right: np.ndarray, before: np.ndarray | None = None, confident: float | None = None) -> None:
    """Accuracy against confidence [N] in bins of equal width (a reliability diagram, Guo et al. 2017), and how many are in each.
    `before`: confidences without the temperature; `confident`: below it is abstained."""
    pyplot = plotter()
    figure, (top, low) = pyplot.subplots(2, 1, figsize=(5.4, 6.4), sharex=True, height_ratios=(3, 1))
    figure.subplots_adjust(0.14, 0.08, 0.98, 0.95, hspace=0.06)  # to lay it out by its letters takes as long as to draw it
    top.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="says what it is")
    middle, accuracy, confidence, count = _binned(sure, right)
    top.bar(middle, accuracy, 1 / BINS, color="#8fb4e3", edgecolor="white", label="right")
    lower, height = np.minimum(accuracy, confidence), np.abs(confidence - accuracy)
    top.bar(middle, height, 1 / BINS, lower, color="none", edgecolor="#cd2d2d", hatch="///", linewidth=0.6, label="gap to the confidence")
    error = _error(accuracy, confidence, count)
    title = f"{len(sure):,} predictions, ECE {error:.3f}"
    if before is not None:
        _, accuracy, confidence, was = _binned(before, right)
        top.plot(confidence, accuracy, color="0.25", marker=".", linewidth=1, label="before the temperature")
        title += f" (before: {_error(accuracy, confidence, was):.3f})"
    low.bar(middle, count, 1 / BINS, color="#8fb4e3", edgecolor="white")
    for axes in (top, low):
        if confident is not None and confident <= 1:
            axes.axvline(confident, color="#008c46", linewidth=1.2, label="abstains to the left")
    top.set(ylabel="share that is right", title=title, xlim=(0, 1), ylim=(0, 1))
    low.set(xlabel="confidence", ylabel="predictions")
    top.legend(loc="upper left", frameon=False, fontsize=8)
    keep(pyplot, figure, path)


def draw_robustness(path: Path, found: dict[str, Any]) -> None:
    """Accuracy under each disturbance and strength with its interval, beside that of clean input (sslcli.robustness)."""
    pyplot = plotter()
    rows, clean = found["disturbed"], found["clean"]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.24 * (len(rows) + len(kinds))), layout="constrained")
    axes.axvspan(*clean["accuracy_interval"], color="#8fb4e3", alpha=0.35, linewidth=0)
    axes.axvline(clean["accuracy"], color="#285abe", linewidth=1.2, label=f"clean: {clean['accuracy']:.3f}")
    places, names = [], []
    for i, row in enumerate(rows):
        place, value, (low, high) = i + kinds.index(row["kind"]), row["accuracy"], row["accuracy_interval"]
        error = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.errorbar(value, place, xerr=error, fmt="o", color="#cd2d2d", markersize=4, linewidth=1.2)
        places.append(place)
        names.append(f"{row['kind']} {strength(row)}")
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.set(xlabel="accuracy, 95 % interval", title="Clean against disturbed", xlim=(-0.02, 1.02))
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    keep(pyplot, figure, path)


def draw_reliability(folder: Path, calibration: Calibration) -> bool:
    """reliability.png of a run's predictions.jsonl; whether there was anything to draw."""
    sure: list[float] = []
    before: list[float] = []
    right: list[bool] = []
    if not (folder / "predictions.jsonl").exists():
        return False
    with (folder / "predictions.jsonl").open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            if not isinstance(row.get("probabilities"), dict):
                return False
            _read(row, calibration.temperature or 1.0, sure, before, right)
    was = None if calibration.temperature is None else np.array(before)
    reliability(folder / "reliability.png", np.array(sure), np.array(right), was, calibration.confident)
    return True


def _read(row: dict[str, Any], heat: float, sure: list[float], before: list[float], right: list[bool]) -> None:
    """Of one label what was predicted; of several every label, given or not."""
    p = np.array(list(row["probabilities"].values()))
    if isinstance(row["gold"], list):
        odds = (p.clip(1e-7, 1 - 1e-7) / (1 - p.clip(1e-7, 1 - 1e-7))) ** heat
        sure += p.tolist()
        before += (odds / (1 + odds)).tolist()
        right += [label in row["gold"] for label in row["probabilities"]]
        return
    powers = p**heat
    sure.append(float(p.max()))
    before.append(float(powers.max() / powers.sum()))
    right.append(row["prediction"] == row["gold"])


def _binned(sure: np.ndarray, right: np.ndarray) -> Sequence[np.ndarray]:
    """(middle, accuracy, mean confidence, count) of the bins that are not empty."""
    at = np.clip(np.ceil(sure * BINS).astype(np.int64) - 1, 0, BINS - 1)
    count = np.bincount(at, minlength=BINS)
    some = count > 0
    accuracy, confidence = (np.bincount(at, np.asarray(x, float), BINS)[some] / count[some] for x in (right, sure))
    return (np.flatnonzero(some) + 0.5) / BINS, accuracy, confidence, count[some]


def _error(accuracy: np.ndarray, confidence: np.ndarray, count: np.ndarray) -> float:
    return float((np.abs(accuracy - confidence) * count).sum() / count.sum())

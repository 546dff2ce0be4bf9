"""What a scout decided from, on the screen: a line a candidate, the best first."""

import math
from pathlib import Path
from typing import Any

from sslcli.log import Screen, shown
from sslcli.report.scouted import SHOWN

MOST = 3  # scores side by side; the file has all
FEW = 10  # steps of a pilot that say little


def show(board: Any, root: Path, screen: Screen) -> None:
    """`board`: commands.scout.Board."""
    keys = [k for k in SHOWN if k in board.untrained][:MOST]
    rows = []
    for pilot in sorted(board.pilots, key=lambda p: (-len(p.looks), -p.best(board.by) if p.looks else 0.0)):
        look = pilot.peak(board.by) if pilot.looks else {"seconds": None, "steps": None, "scores": {}}
        end = "left out" if pilot.why else "goes on" if pilot.name == board.chosen else f"rung {len(pilot.looks)}"
        seconds = f"{look['seconds']:,.1f} s" if pilot.looks else ""
        rows.append([pilot.name, seconds, look["steps"], *(look["scores"].get(k) for k in keys), end])
    rows.append(["(untrained)", "", "", *(board.untrained[k] for k in keys), ""])
    screen.table(f"{root / 'scout.json'}: {board.by} decides", ("objective", "trained", "steps", *keys, "until"), rows)
    for pilot in (p for p in board.pilots if p.name == board.chosen):
        if (peak := pilot.peak(board.by)) != pilot.looks[-1]:
            screen.say(f"{pilot.name}: by its best look, {board.by} {shown(peak['scores'][board.by])} after {peak['steps']:,} steps")
    if doubt := _doubt(board):
        screen.warn(doubt)
    if few := [p.name for p in board.pilots if p.looks and p.looks[0]["steps"] < FEW]:
        screen.warn(f"{', '.join(few)}: fewer than {FEW} steps in a pilot say little; a longer budget or a smaller model helps")


def _doubt(board: Any) -> str | None:
    """Whether the last rung could have gone either way: best accuracies whose difference is less than two of its standard errors."""
    last = [p.peak(board.by)["scores"] | {"name": p.name} for p in board.pilots if not p.why and len(p.looks) == len(board.until)]
    if board.by != "probe" or len(last) < 2:
        return None
    first, second = sorted(last, key=lambda s: -s["probe"])[:2]
    error = math.sqrt(sum(s["probe"] * (1 - s["probe"]) / s["rows"] for s in (first, second)))
    if first["probe"] - second["probe"] >= 2 * error:
        return None
    both = f"{first['name']} {first['probe']:.3f} and {second['name']} {second['probe']:.3f}"
    return f"{both} are within chance of each other on {first['rows']:,} rows: either may be the better one"

"""What a scout decided from, on the screen: a line a candidate, the best first."""

from pathlib import Path
from typing import Any

from sslcli.log import Screen

SHOWN = ("probe", "spearman", "knn", "rankme", "alignment", "uniformity")
MOST = 3  # scores side by side; the file has all
FEW = 10  # steps of a pilot that say little


def show(board: Any, root: Path, screen: Screen) -> None:
    """`board`: commands.scout.Board."""
    keys = [k for k in SHOWN if k in board.untrained][:MOST]
    rows = []
    for pilot in sorted(board.pilots, key=lambda p: (-len(p.looks), -p.score(board.by, -1) if p.looks else 0.0)):
        look = pilot.looks[-1] if pilot.looks else {"seconds": None, "steps": None, "scores": {}}
        end = "left out" if pilot.why else "goes on" if pilot.name == board.chosen else f"rung {len(pilot.looks)}"
        seconds = f"{look['seconds']:,.1f} s" if pilot.looks else ""
        rows.append([pilot.name, seconds, look["steps"], *(look["scores"].get(k) for k in keys), end])
    rows.append(["(untrained)", "", "", *(board.untrained[k] for k in keys), ""])
    screen.table(f"{root / 'scout.json'}: {board.by} decides", ("objective", "trained", "steps", *keys, "until"), rows)
    if few := [p.name for p in board.pilots if p.looks and p.looks[0]["steps"] < FEW]:
        screen.warn(f"{', '.join(few)}: fewer than {FEW} steps in a pilot say little; a longer budget or a smaller model helps")

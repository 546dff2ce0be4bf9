"""One run of a sweep: what it is asked to do, where, and what it left."""

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sslcli.report.record import number

STATES = {
    0: "done",
    2: "bad input",
    4: "diverged",
    5: "bad checkpoint",
    6: "storage",
    8: "memory",
    9: "busy",
    10: "refused",
    75: "preempted",
}


@dataclass
class Job:
    name: str  # what it runs, however that was written
    choice: dict[str, str]  # the swept keys and this job's values
    overrides: list[str]
    folder: Path  # the sweep's, until the job has one of its own
    number: int = 0
    code: int | None = None
    seconds: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, list[float]] = field(default_factory=dict)  # of those scores that have one
    cheap: dict[str, float] = field(default_factory=dict)  # the same scores, of the baseline
    method: str = ""  # the baseline's
    cost: dict[str, float] = field(default_factory=dict)  # trainable_share, peak_memory_bytes, train_seconds

    def read(self) -> None:
        """The scores of the last split, and what they cost, out of the folder."""
        metrics, receipts = _mapping(self.folder / "metrics.json"), _mapping(self.folder / "receipts.json")
        split, cheap = "test" if "test" in metrics else "valid", metrics.get("baseline") or {}
        own, train, sizes = metrics.get(split) or {}, metrics.get("train") or {}, receipts.get("parameters") or {}
        self.scores = {f"{split}_{k}": v for k, v in own.items() if number(v) is not None}
        self.intervals = {f"{split}_{k.removesuffix('_interval')}": v for k, v in own.items() if k.endswith("_interval") and v}
        self.cheap = {f"{split}_{k}": v for k, v in cheap.items() if number(v) is not None}
        self.method = cheap.get("method", "")
        share = {"trainable_share": sizes["trainable"] / sizes["parameters"]} if sizes.get("parameters") else {}
        spent = {"peak_memory_bytes": train.get("peak_memory_bytes"), "train_seconds": train.get("seconds")}
        self.cost = share | {k: v for k, v in spent.items() if v is not None}

    @property
    def state(self) -> str:
        return "waiting" if self.code is None else STATES.get(self.code, f"failed ({self.code})")

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def last_line(self) -> str:
        """Its error, or the last that it said."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            errors = [line for line in lines if line.startswith("error:")]
            return (errors or lines or [""])[-1]
        return ""


def _mapping(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where a run has not come so far."""
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads(path.read_text(encoding="utf-8")))
    return {}

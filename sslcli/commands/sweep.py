"""`-m`: every combination of the swept values, each in a process of its own, so that one that fails takes nothing with it."""

import contextlib
import csv
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from sslcli.config import parse
from sslcli.errors import BadInput, printable
from sslcli.log import Screen, shown
from sslcli.metrics import mean_interval
from sslcli.run import write_atomically

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
SCORES = ("accuracy", "macro_f1", "f1", "loss", "perplexity")


@dataclass
class Job:
    name: str  # what it runs, however that was written
    choice: dict[str, str]  # the swept keys and this job's values
    overrides: list[str]
    folder: Path  # the sweep's, until the job has one of its own
    number: int = 0
    code: int | None = None
    seconds: float = 0.0
    scores: dict[str, Any] = field(default_factory=dict)
    cheap: dict[str, Any] = field(default_factory=dict)  # the same scores, of the baseline
    method: str = ""  # the baseline's

    def read(self) -> None:
        """The scores out of its metrics.json."""
        with contextlib.suppress(OSError, ValueError):
            metrics = json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))
            split, cheap = "test" if "test" in metrics else "valid", metrics.get("baseline") or {}
            self.scores = {f"{split}_{k}": v for k, v in metrics.get(split, {}).items() if k in SCORES}
            self.cheap = {f"{split}_{k}": v for k, v in cheap.items() if k in SCORES}
            self.method = cheap.get("method", "")

    @property
    def state(self) -> str:
        return "waiting" if self.code is None else STATES.get(self.code, f"failed ({self.code})")


def sweep(verb: str, overrides: Sequence[str], flags: Mapping[str, Any]) -> int:
    """Runs all jobs, `sweep.parallel=N` at a time; exit 1 if any failed. The same command again runs only what is not complete."""
    own = {o.partition("=")[0]: o.partition("=")[2] for o in overrides if o.startswith("sweep.")}
    rest = [o for o in overrides if not o.startswith("sweep.")]
    unknown = sorted(set(own) - {"sweep.dir", "sweep.parallel"})
    if unknown or not own.get("sweep.parallel", "1").isdigit():
        raise BadInput(
            f"{printable(unknown[0] if unknown else 'sweep.parallel')}: sweep.dir=<folder> and sweep.parallel=<number> are there"
        )
    screen = Screen(flags.get("quiet", False), flags.get("verbose", False))
    root = Path(own.get("sweep.dir") or f"sweeps/{time.strftime('%Y%m%d-%H%M%S')}-{verb}")
    jobs = _jobs(rest, root)
    root.mkdir(parents=True, exist_ok=True)
    _place(jobs, root)
    screen.say(f"{len(jobs)} runs in {root}, {own.get('sweep.parallel', 1)} at a time")
    passed = [w for flag, w in (("dry_run", "--dry-run"),) if flags.get(flag)]
    if "folder" in flags:
        passed += ["--config-dir", str(Path(flags["folder"]).resolve())]
    _run_all(verb, jobs, int(own.get("sweep.parallel", "1")), passed, screen)
    _report(root, jobs, screen)
    return 0 if all(job.code == 0 for job in jobs) else 1


def _jobs(overrides: Sequence[str], root: Path) -> list[Job]:
    """The cross product of all swept values, in the order in which they were written."""
    parser = OverridesParser.create()
    axes: list[list[tuple[str, str, str, bool]]] = []  # the override, its key, its value, whether it is swept
    for text in overrides:
        try:
            parsed = parse(parser, text)
        except HydraException as error:
            raise BadInput(f"{printable(text)}: not an override; write key=value, or key=a,b to sweep") from error
        if parsed.key_or_group == "run.dir":
            raise BadInput("run.dir: a sweep names its own folders; use sweep.dir=<folder>")
        if parsed.is_sweep_override():
            key = parsed.get_key_element()
            axes.append([(f"{key}={v}", key, str(v), True) for v in parsed.sweep_string_iterator()])
        else:
            axes.append([(text, parsed.get_key_element(), str(parsed.value()), False)])
    jobs: dict[str, Job] = {}
    for combination in itertools.product(*axes):
        name = " ".join(f"{key}={value}" for _, key, value, _ in combination)
        choice = {key: value for _, key, value, swept in combination if swept}
        jobs.setdefault(name, Job(name, choice, [text for text, *_ in combination], root))
    return list(jobs.values())


def _place(jobs: Sequence[Job], root: Path) -> None:
    """A folder of its own for every combination, the one that it had before if this sweep goes on or was extended."""
    path = root / "jobs.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    taken = {name: int(number) for number, name in before.items()}
    for job in jobs:
        job.number = taken.setdefault(job.name, max(taken.values(), default=-1) + 1)
        job.folder = root / f"{job.number:03d}"
    write_atomically(path, json.dumps({f"{n:03d}": name for name, n in taken.items()}, indent=2, ensure_ascii=False) + "\n")


def _run_all(verb: str, jobs: Sequence[Job], parallel: int, passed: Sequence[str], screen: Screen) -> None:
    waiting = [job for job in jobs if not _complete(job)]
    if len(waiting) < len(jobs):
        screen.say(f"{len(jobs) - len(waiting)} runs are complete already")
    running: list[tuple[Job, subprocess.Popen, float]] = []
    threads = max(1, len(os.sched_getaffinity(0)) // parallel)
    env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    try:
        with screen.progress("sweep", len(jobs), len(jobs) - len(waiting)) as bar:
            while waiting or running:
                while waiting and len(running) < parallel:
                    job = waiting.pop(0)
                    running.append((job, _start(verb, job, passed, env), time.monotonic()))
                time.sleep(0.1)
                for item in [r for r in running if r[1].poll() is not None]:
                    running.remove(item)
                    job, process, started = item
                    job.code, job.seconds = process.returncode, time.monotonic() - started
                    job.read()
                    bar.update(sum(j.code is not None for j in jobs), f"{job.number:03d} {job.state}")
    finally:
        for _, process, _ in running:  # asked to stop: pass it on, and let them save
            process.send_signal(signal.SIGTERM)
            process.wait()


def _start(verb: str, job: Job, passed: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen:
    """The job's own process; what it says goes to a file beside its folder, so that nothing is shown only at the end."""
    log = job.folder.with_suffix(".log")
    where = [f"run.dir={job.folder}", "resume=auto"] if verb in ("pretrain", "finetune") else [f"out={job.folder}"]
    if verb == "finetune" and not any(o.lstrip("+").startswith("trainer.seeds=") for o in job.overrides):
        where.append("trainer.seeds=1")  # a sweep is over its own seeds
    command = [sys.executable, "-m", "sslcli", verb, *job.overrides, *where, *passed]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=dict(env), start_new_session=True)


def _complete(job: Job) -> bool:
    if not any((job.folder / name).exists() for name in ("metrics.json", "ssl_export.json")):
        return False
    job.code = 0
    job.read()
    return True


def _report(root: Path, jobs: Sequence[Job], screen: Screen) -> None:
    """sweep.json, sweep.csv and the table: state, scores and where to look, a line a run."""
    scores = list(dict.fromkeys(k for job in jobs for k in job.scores))
    keys = list(dict.fromkeys(k for job in jobs for k in job.choice))
    rows = [
        {"run": str(job.folder), **job.choice, "state": job.state, "exit": job.code, "seconds": round(job.seconds, 1), **job.scores}
        for job in jobs
    ]
    write_atomically(root / "sweep.json", json.dumps(rows, indent=2) + "\n")
    with (root / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["run", *keys, "state", "exit", "seconds", *scores])
        writer.writeheader()
        writer.writerows(rows)
    table = [[job.folder.name, *(job.choice[k] for k in keys), job.state, *(shown(job.scores.get(k)) for k in scores)] for job in jobs]
    screen.table(str(root), ("run", *keys, "state", *scores), table)
    _over_seeds(jobs, keys, screen)
    for job in jobs:
        if job.code:
            screen.warn(f"{job.folder.name} {job.state}: {_last_line(job)}")
    screen.result({"sweep": str(root), "runs": len(jobs), "failed": sum(job.code != 0 for job in jobs)})


def _over_seeds(jobs: Sequence[Job], keys: Sequence[str], screen: Screen) -> None:
    """Where the seed was swept: each setting's mean score with its 95 % interval, beside what a cheap method makes of the same labels."""
    keys = [k for k in keys if k != "seed"]
    found: dict[tuple[str, ...], dict[str, dict[str, float]]] = {}  # setting -> score -> seed -> value
    for job in jobs:
        if "seed" not in job.choice:
            return
        setting = tuple(job.choice[k] for k in keys)
        for score, value in job.scores.items():
            found.setdefault(setting, {}).setdefault(score, {})[job.choice["seed"]] = value
        for score, value in job.cheap.items():
            found.setdefault((job.method, *("",) * (len(keys) - 1)), {}).setdefault(score, {})[job.choice["seed"]] = value
    rows = []
    for setting, scores in found.items():
        for score, by_seed in scores.items():
            values = list(by_seed.values())
            low, high = mean_interval(values) if len(values) > 1 else (values[0], values[0])
            shown_values = f"{min(values):.4f} to {max(values):.4f}"
            rows.append([*(setting or ("",)), score, len(values), statistics.mean(values), f"{low:.4f} to {high:.4f}", shown_values])
    screen.table("over seeds", (*(keys or [""]), "score", "seeds", "mean", "95 % interval", "lowest to highest"), rows)


def _last_line(job: Job) -> str:
    with contextlib.suppress(OSError):
        lines = job.folder.with_suffix(".log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("error:")]
        return (errors or lines or [""])[-1]
    return ""

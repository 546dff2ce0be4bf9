"""`-m`: every combination of the swept values, each in a process of its own, so that one that fails takes nothing with it."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from sslcli.commands import warm
from sslcli.commands.folder import NOTHING_KEPT
from sslcli.commands.job import Job
from sslcli.commands.sweep_table import report
from sslcli.commands.warm import Oven, Warm
from sslcli.comparison import KEY, SEEDS, Comparison
from sslcli.config import compose, parse
from sslcli.errors import BadInput, Preempted, printable
from sslcli.log import Screen
from sslcli.run import cores, write_atomically


def sweep(verb: str, overrides: Sequence[str], flags: Mapping[str, Any]) -> int:
    """Runs all jobs, `sweep.parallel=N` at a time; exit 1 if any failed. The same command again runs only what is not complete."""
    own = {o.partition("=")[0]: o.partition("=")[2] for o in overrides if o.startswith("sweep.")}
    rest = [o for o in overrides if not o.startswith("sweep.")]
    unknown = sorted(set(own) - {"sweep.dir", "sweep.parallel"})
    if unknown or not own.get("sweep.parallel", "1").isdecimal() or int(own.get("sweep.parallel", "1")) < 1:
        raise BadInput(
            f"{printable(unknown[0] if unknown else 'sweep.parallel')}: sweep.dir=<folder> and sweep.parallel=<number> are there"
        )
    screen = Screen(flags.get("quiet", False), flags.get("verbose", False))
    root = Path(own.get("sweep.dir") or f"sweeps/{time.strftime('%Y%m%d-%H%M%S')}-{verb}")
    folder = Path(flags["folder"]) if "folder" in flags else None
    comparison, rest = _comparison(rest, folder)
    with kept(root, flags) as root:
        jobs = _jobs(rest, root)
        if comparison:
            _refuse_unfit(verb, jobs[0], folder)
        run_all(verb, jobs, root, int(own.get("sweep.parallel", "1")), flags, screen)
        report(root, jobs, comparison, screen)
    if flags.get("dry_run"):
        screen.say(NOTHING_KEPT)
    return 0 if all(job.code == 0 or (comparison and unfit(job, jobs, comparison)) for job in jobs) else 1


def unfit(job: Job, jobs: Sequence[Job], comparison: Comparison) -> bool:
    """Whether this is one of a list of methods for all networks that does not fit the one at hand: bad input, which it would not be with
    the plain method."""
    others = {k: v for k, v in job.choice.items() if k != comparison.axis} | {comparison.axis: comparison.values[0]}
    return job.code == 2 and not comparison.named and any(other.choice == others and other.code == 0 for other in jobs)


@contextlib.contextmanager
def kept(root: Path, flags: Mapping[str, Any]) -> Iterator[Path]:
    """The folder of all runs; a dry run's is gone when it ends."""
    if not flags.get("dry_run"):
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="sslcli-dry-") as folder:
        yield Path(folder)


def run_all(verb: str, jobs: Sequence[Job], root: Path, parallel: int, flags: Mapping[str, Any], screen: Screen) -> None:
    """Each job in a process and a folder of its own; what is complete is left as it is."""
    root.mkdir(parents=True, exist_ok=True)
    _place(jobs, root)
    screen.say(f"{len(jobs)} runs in {root}, {parallel} at a time")
    passed = [w for flag, w in (("dry_run", "--dry-run"),) if flags.get(flag)]
    if "folder" in flags:
        passed += ["--config-dir", str(Path(flags["folder"]).resolve())]
    _run_all(verb, jobs, parallel, passed, screen)


def _comparison(overrides: Sequence[str], folder: Path | None) -> tuple[Comparison | None, list[str]]:
    """What `+compare=<name>` asks for, and the overrides with its values and seeds in its place, where the user names none."""
    given = {o.lstrip("+").partition("=")[0]: o.partition("=")[2] for o in overrides}
    if KEY not in given:
        return None, list(overrides)
    made = Comparison.open(given[KEY], folder)
    rest = [o for o in overrides if o.lstrip("+").partition("=")[0] != KEY]
    asked = f"{made.axis}={given.get(made.axis) or ','.join(made.values)}"
    values = [job.choice[made.axis] for job in _jobs([asked], Path()) if job.choice]  # as jobs have them
    if len(values) < 2:
        raise BadInput(f"{printable(asked)}: {KEY}={made.name} needs several values of it, the plain one first; or leave it out")
    rest = [*(o for o in rest if o.lstrip("+").partition("=")[0] != made.axis), asked]
    made = replace(made, values=values, named=made.axis in given)
    return made, rest if "seed" in given else [*rest, f"seed={','.join(SEEDS)}"]


def _refuse_unfit(verb: str, job: Job, folder: Path | None) -> None:
    """A key that this kind of run does not have is told once, before a run of a comparison begins."""
    if problems := compose(verb, job.overrides, folder).problems:
        raise BadInput("\n".join(problems))


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
    before = _seconds(jobs[0].folder.parent)
    waiting = [job for job in jobs if not _complete(job, before)]
    if len(waiting) < len(jobs):
        screen.say(f"{len(jobs) - len(waiting)} runs are complete already")
    running: list[tuple[Job, subprocess.Popen | Warm, float]] = []
    threads = max(1, cores() // parallel)
    env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    oven = Oven(env) if warm.POSSIBLE and len(waiting) > 1 else None
    try:
        with screen.progress("sweep", len(jobs), len(jobs) - len(waiting)) as bar:
            while waiting or running:
                while waiting and len(running) < parallel:
                    job = waiting.pop(0)
                    running.append((job, _start(verb, job, passed, env, oven), time.monotonic()))
                time.sleep(0.1)
                for item in [r for r in running if r[1].poll() is not None]:
                    running.remove(item)
                    job, process, started = item
                    job.code, job.seconds = process.returncode, time.monotonic() - started
                    job.read()
                    bar.update(sum(j.code is not None for j in jobs), f"{job.number:03d} {job.state}")
    except Preempted as error:
        what, where = str(error).partition(";")[0], jobs[0].folder.parent
        raise Preempted(f"{what}; the same command with sweep.dir={where} goes on where it was") from error
    finally:
        for _, process, _ in running:  # asked to stop: pass it on, and let them save
            process.send_signal(signal.SIGTERM)
            process.wait()
        if oven:
            oven.close()


def _start(verb: str, job: Job, passed: Sequence[str], env: Mapping[str, str], oven: Oven | None) -> subprocess.Popen | Warm:
    """The job's own process; what it says goes to a file beside its folder, so that nothing is shown only at the end."""
    where = [f"run.dir={job.folder}", "resume=auto"] if verb in ("pretrain", "finetune") else [f"out={job.folder}"]
    if verb == "finetune" and not any(o.lstrip("+").startswith("trainer.seeds=") for o in job.overrides):
        where.append("trainer.seeds=1")  # a sweep is over its own seeds
    words = [verb, *job.overrides, *where, *passed]
    command = [sys.executable, "-m", "sslcli", *words]
    with job.log.open("ab") as file:
        with contextlib.suppress(OSError):
            if oven:
                return oven.start(words, file, file, env)
        return subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=dict(env), start_new_session=True)


def _seconds(root: Path) -> dict[str, float]:
    """What the runs that stand in the sweep's table took, by folder."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        return {row["run"]: float(row["seconds"]) for row in json.loads((root / "sweep.json").read_text(encoding="utf-8"))}
    return {}


def _complete(job: Job, before: Mapping[str, float]) -> bool:
    if not any((job.folder / name).exists() for name in ("metrics.json", "ssl_export.json")):
        return False
    job.code, job.seconds = 0, before.get(str(job.folder), 0.0)
    job.read()
    return True

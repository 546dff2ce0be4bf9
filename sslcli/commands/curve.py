"""`ssl curve`: how many labels pretraining saved. Fine-tunings with few to all labels, from a pretraining run and from its start."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from sslcli import config, schema
from sslcli.commands.finetune import finetune
from sslcli.commands.folder import NOTHING_KEPT
from sslcli.commands.job import Job
from sslcli.commands.sweep import kept, run_all
from sslcli.errors import BadInput, printable
from sslcli.evidence import efficiency, saved
from sslcli.log import Screen, shown
from sslcli.metrics import mean_interval
from sslcli.report.efficiency import draw
from sslcli.run import write_atomically
from sslcli.schema import Part
from sslcli.unlabelled import OfTask

WITH = "pretrained"
SCRATCH = "from scratch"
Count = Annotated[int, Field(ge=1)]
DECIDED = {
    "data.shots": "curve.labels says how many labels of each class",
    "init": "both starts are fine-tuned here",
    "run.dir": "a curve names its own folders; use sweep.dir=<folder>",
    "resume": "the same command again runs only what is not complete",
    "trainer.seeds": "curve.seeds says how many",
}
NAMES = {2: ("accuracy", "recall@1"), 3: ("f1", "micro_f1")}  # of the scores, by how many counts a row has


class Budgets:
    """The `curve` node. `labels`: of each class; `at`: in all, where the untouched start is read, the most where none is named;
    `unlabelled`: which of the starts objective= stands beside, with the rows that have no labels."""

    def __init__(
        self,
        *,
        labels: Annotated[list[Count | Literal["all"]], Field(min_length=2)],
        seeds: Annotated[int, Field(ge=2)],
        at: Count | None,
        unlabelled: Literal["both", "pretrained"],
        label_price: Annotated[float, Field(gt=0)] | None,
    ):
        self.labels, self.seeds, self.at, self.unlabelled, self.price = labels, seeds, at, unlabelled, label_price


class Where:
    """The `sweep` node."""

    def __init__(self, *, dir: str | None, parallel: Count):
        self.dir, self.parallel = dir, parallel


@dataclass
class Arm:
    """A way to start, and what its runs found: `labels` [B] in all, `counts` [S, B, N, C] of the test rows."""

    name: str
    overrides: list[str]
    jobs: list[list[Job]]  # by seed, by budget
    labels: np.ndarray
    counts: np.ndarray

    def points(self, resampled: np.ndarray) -> list[dict[str, Any]]:
        scores = efficiency.score(self.counts.sum(2))
        ends = np.quantile(resampled[1:], [0.025, 0.975], axis=0).clip(0, 1)
        return [
            {"labels": int(n), "score": float(scores[:, i].mean()), "interval": ends[:, i].tolist(), "scores": scores[:, i].tolist()}
            for i, n in enumerate(self.labels)
        ]


def nodes(*, curve: Part[Budgets], sweep: Part[Where]) -> None:
    """What this verb knows beside the configuration of a fine-tuning."""


def curve(overrides: Sequence[str], flags: Mapping[str, Any], composed: config.Composed, places: Mapping[str, str]) -> int:
    own = {key: composed.tree.pop(key, None) for key in ("curve", "sweep")}
    parts = schema.check(nodes, own)
    tuning = schema.check(finetune, composed.tree, composed.problems, places)
    chosen: Budgets = parts["curve"].build()
    where: Where = parts["sweep"].build()
    given = {o.lstrip("+~").partition("=")[0]: o for o in overrides}
    for key, why in DECIDED.items():
        if key in given:
            raise BadInput(f"{key}: {why}; leave it out")
    source = tuning["from_"]
    if source is None:
        raise BadInput("from: missing; name a pretraining run, a folder or a hub name with from=<where>")
    made = tuning["data"].build(tuning["seed"])
    if not made.has_test:
        raise BadInput("data.test: missing; a curve needs test data that is the same for all its runs")
    if tuning["task"].cls.embeds:
        name = tuning["task"].cls.__module__.rpartition(".")[2]
        raise BadInput(f"task={name}: a curve counts right answers, and its score is no share of them; compare runs of -m")
    objective = tuning["objective"]
    of_task = objective is not None and issubclass(objective.cls, OfTask)
    if of_task and "all" in chosen.labels and made.unlabelled == made.train:
        raise BadInput("curve.labels: with all rows labelled none are left for objective=; leave all out, or name data.unlabelled")
    screen = Screen(flags.get("quiet", False), flags.get("verbose", False))
    root = Path(where.dir or (f"{source}-curve" if Path(source).is_dir() else f"curves/{Path(source).name}"))
    passed = [o for k, o in given.items() if k.split(".")[0] not in ("curve", "sweep", "seed", "from")]
    seeds = range(tuning["seed"], tuning["seed"] + chosen.seeds)
    open_ended = all(tuning["trainer"].config[k] is None for k in ("steps", "epochs", "time_limit"))
    if of_task and chosen.unlabelled == "pretrained" and open_ended:
        passed.append(f"trainer.steps={objective.cls.least_steps}")  # as many for both starts: alone one would take fewer
    starts = _starts(source, passed, objective, chosen.unlabelled)
    with kept(root, flags) as root:
        jobs = {
            name: [_jobs(start, not number, seed, chosen.labels, root) for seed in seeds]
            for number, (name, start) in enumerate(starts.items())
        }
        every = [job for rows in jobs.values() for row in rows for job in row]
        run_all("finetune", every, root, where.parallel, flags, screen)
        for job in (j for j in every if j.code):
            screen.warn(f"{job.folder.name} {job.state}: {job.last_line()}")
    failed = sum(job.code != 0 for job in every)
    if failed or flags.get("dry_run"):
        screen.say(f"{failed} of {len(every)} runs failed; the same command again runs what is not complete" if failed else NOTHING_KEPT)
        return int(failed > 0)
    arms = [_arm(name, starts[name], rows) for name, rows in jobs.items()]
    screen.result(_report(root, arms, chosen, screen))
    return 0


def _starts(source: str, passed: Sequence[str], objective: Part[Any] | None, unlabelled: str) -> dict[str, list[str]]:
    """Name -> words. The network from pretraining, and as it was before: what that run continued from, or its architecture untrained."""
    if unlabelled == "pretrained" and objective is None:
        raise BadInput(
            "curve.unlabelled=pretrained: no loss learns from unlabelled rows; add objective=label_propagation (image_propagation)"
        )
    path = Path(source).expanduser() / "config.yaml"
    before = config.load(path).get("from") if path.is_file() else None
    name, start = ("untouched start", [f"from={before}"]) if before else (SCRATCH, [f"from={source}", "init=random"])
    if objective is None or unlabelled == "both":
        return {WITH: [*passed, f"from={source}"], name: [*passed, *start]}
    own = ("objective", "joint", "augment@objective", "data.unlabelled")
    alone = [o for o in passed if not o.lstrip("+~").partition("=")[0].startswith(own)]
    return {
        f"{WITH} and {objective.cls.__module__.rpartition('.')[2]}": [*passed, f"from={source}"],
        name: [*alone, "objective=null", *start],
    }


def _jobs(start: Sequence[str], first: bool, seed: int, labels: Sequence[Any], root: Path) -> list[Job]:
    """Cheap baselines and leaks beside the first arm alone: they are the same in all."""
    found = []
    for shots in labels:
        quiet = ["verdict=false", "errors=false", "trainer.seeds=1", *([] if first else ["baseline=false", "leaks=false"])]
        few = [] if shots == "all" else [f"data.shots={shots}"]
        words = [*start, *quiet, *few, f"seed={seed}"]
        found.append(Job(" ".join(words), {"shots": str(shots), "seed": str(seed)}, words, root))
    return found


def _arm(name: str, start: list[str], jobs: list[list[Job]]) -> Arm:
    labels = np.array([[_labels(job) for job in row] for row in jobs])
    order = np.unique(labels.mean(0).round().astype(int), return_index=True)[1]  # rising; 64 of each and all may be the same
    counts = [[_counts(row[i]) for i in order] for row in jobs]
    if len({len(c) for row in counts for c in row}) > 1:
        raise BadInput(f"{name}: its runs were scored on unlike numbers of test rows; use another sweep.dir")
    if len(order) < 2:
        raise BadInput("curve.labels: all come to the same number of labels; the data has no more")
    return Arm(name, start, [[row[i] for i in order] for row in jobs], labels.mean(0).round().astype(int)[order], np.array(counts))


def _labels(job: Job) -> int:
    """All that were paid for: trained on, or held out of them."""
    facts = json.loads((job.folder / "data.json").read_text(encoding="utf-8"))
    held = facts["valid"]["examples"] if "valid" in facts and not facts["valid_is"].startswith("none") else 0
    return int(facts["train"]["examples"] + (held if "valid_is" in facts else 0))


def _steps(job: Job) -> int:
    return int(json.loads((job.folder / "metrics.json").read_text(encoding="utf-8"))["train"].get("steps", 0))


def _counts(job: Job) -> np.ndarray:
    """Of its predictions, which must add up to what it said of itself."""
    counts = efficiency.counts_of(job.folder / "predictions.jsonl")
    said = json.loads((job.folder / "metrics.json").read_text(encoding="utf-8"))["test"]
    key = next((k for k in NAMES[counts.shape[1]] if k in said), None)
    score = float(efficiency.score(counts.sum(0)))
    assert key is None or abs(said[key] - score) < 1e-6, f"{job.folder}: predictions give {score}, metrics.json {said[key]} as {key}"
    return counts


def _report(root: Path, arms: Sequence[Arm], chosen: Budgets, screen: Screen) -> dict[str, Any]:
    budgets = arms[0].labels
    if any(len(a.labels) != len(budgets) or (a.labels != budgets).any() or a.counts.shape != arms[0].counts.shape for a in arms):
        raise BadInput("the two starts were not trained and tested on the same data; use another sweep.dir")
    if chosen.at is not None and not budgets[0] <= chosen.at <= budgets[-1]:
        raise BadInput(f"curve.at={chosen.at}: the runs have {budgets[0]} to {budgets[-1]} labels; name a number between")
    drawn = efficiency.resampled({arm.name: efficiency.Curve(arm.counts) for arm in arms})
    (one, other), metric = (arm.name for arm in arms), NAMES[arms[0].counts.shape[-1]][0]
    main_reading = efficiency.read(drawn, budgets, one, other, (other, chosen.at or int(budgets[-1])))
    main = saved.told(main_reading, (one, other), efficiency.rises(drawn) or efficiency.apart(drawn), budgets, chosen.price)
    readings = [efficiency.read(drawn, budgets, one, other, (one, n)) for n in budgets.tolist()]
    each = [saved.told(reading, (one, other), True, budgets, None) for reading in readings]
    points = {arm.name: arm.points(drawn[arm.name]) for arm in arms}
    if main["verdict"] == "saved" and (doubt := saved.unripe(points[other], other)):
        main["sentence"] += f"; {doubt}"
    points |= _cheap(arms[0], metric)
    facts = {"metric": metric, **main, "at_each_budget": each, "arms": points, "test_rows": int(arms[0].counts.shape[2])}
    steps = [_steps(job) for arm in arms for row in arm.jobs for job in row]
    facts["steps"] = [min(steps), max(steps)]
    runs = [[a.name, j.choice["shots"], int(n), j.choice["seed"], s, str(j.folder)] for a in arms for n, s, j in _rows(a)]
    write_atomically(root / "curve.json", json.dumps(saved.plain({**facts, "runs": runs}), indent=2) + "\n")
    with (root / "curve.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["start", "shots", "labels", "seed", metric, "run"], *runs])
    table = [[name, f"{p['labels']:,}", p["score"], " to ".join(map(shown, p["interval"]))] for name, row in points.items() for p in row]
    screen.table(str(root), ("start", "labels", metric, "95 % interval"), table)
    screen.table("the same score", (f"{one}, labels", f"{other}, labels", "95 % interval"), saved.table(each, budgets))
    try:
        draw(root / "curve.png", points, facts, metric)
    except BadInput as error:
        screen.warn(f"curve.png: not drawn: {error}")
    screen.say(main["sentence"])
    if other == SCRATCH and max(steps):  # digits, 5 a class: 0.87 after 100 steps, 0.94 after 1,800
        longer = f"the same with trainer.steps={3 * max(steps)} sweep.dir={root}-longer tells"
        screen.say(f"runs of {' to '.join(f'{n:,}' for n in dict.fromkeys(facts['steps']))} steps; from scratch may want more: {longer}")
    return {"curve": str(root), **{k: main[k] for k in ("verdict", "sentence")}}


def _rows(arm: Arm) -> list[tuple[int, float, Job]]:
    scores = efficiency.score(arm.counts.sum(2))
    return [(int(arm.labels[b]), float(scores[s, b]), job) for s, row in enumerate(arm.jobs) for b, job in enumerate(row)]


def _cheap(arm: Arm, metric: str) -> dict[str, list[dict[str, Any]]]:
    """What a cheap method made of the same labels, where all runs of a budget have one."""
    found: dict[str, list[dict[str, Any]]] = {}
    for b, labels in enumerate(arm.labels.tolist()):
        said = [json.loads((row[b].folder / "metrics.json").read_text(encoding="utf-8")).get("baseline") or {} for row in arm.jobs]
        scores = [float(s[metric]) for s in said if metric in s]
        if len(scores) == len(arm.jobs):
            point = {
                "labels": labels,
                "score": float(np.mean(scores)),
                "interval": np.clip(mean_interval(scores), 0, 1).tolist(),
                "scores": scores,
            }
            found.setdefault(printable(said[0]["method"]), []).append(point)
    return found

"""Several seeds of one fine-tuning: with few labels, one run says more of its luck than of its method.

Every seed is a run folder like any other, `seeds/<seed>/`: what `seed=<seed> trainer.seeds=1` would have made, bit for bit. A seed
decides the order, dropout, fresh weights, and what is drawn of the data: the labels of data.shots, the part that is held out.
"""

import gc
import json
import os
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sslcli import metrics
from sslcli.build import parameters
from sslcli.commands import Call
from sslcli.commands.folder import Folder
from sslcli.core import Backbone, Task
from sslcli.data.text import Prepared
from sslcli.distributed import World
from sslcli.errors import Diverged, Preempted
from sslcli.log import Screen, duration, seconds, shown
from sslcli.run import Run, storage
from sslcli.schema import Part

FEW, SEVERAL = 1000, 3  # labels that are few, and seeds where they are
ROOTS_OWN = ("config.yaml", "environment.json", "metrics.json", "run.lock")


@dataclass
class Several:
    """The runs of all seeds inside one run folder, and what they come to."""

    seeds: Sequence[int]
    one: partial[dict[str, Any]]  # the verb, with all that it was given
    folder: Folder
    world: World
    task: type[Task]
    chooses: bool  # all seeds are judged on the same held-out data, which so can choose among them

    @classmethod
    def wanted(
        cls, one: partial[dict[str, Any]], folder: Folder, world: World, prepared: Prepared, model: Backbone, processor: Any
    ) -> "Several | None":
        """None where one seed is to be run, as in a dry run. Says why there are several, where the user named no number."""
        given, say, labels = one.keywords, folder.call.screen.say, int(prepared.facts["train"]["examples"])
        asked = given["trainer"].config["seeds"]
        count = (SEVERAL if labels < FEW else 1) if asked == "auto" else asked
        if count == 1:
            return None
        why = f", because {labels:,} labels are few (trainer.seeds=1 for one)" if asked == "auto" else ""
        say(f"{count} seeds{why}" + (": a dry run tries the first" if folder.call.dry_run else f": {count} times the time of one"))
        if folder.call.dry_run:
            return None
        folder.model(model, processor, parameters(model))
        model.to("meta")  # each seed has its own
        seeds = range(given["seed"], given["seed"] + count)
        return cls(seeds, one, folder, world, given["task"].cls, given["data"].config["valid"] is not None)

    def run(self, headline: Sequence[str]) -> dict[str, Any]:
        """One after the other; a seed that is complete already is not run again. What is left is that of the seed that is delivered."""
        seeds, screen = self.seeds, OfMany(self.folder.call.screen)
        found: dict[int, dict[str, Any]] = {}
        for seed in seeds:
            screen.name = f"seed {seed}"
            found[seed] = complete(self._place(seed), self.world) or self._one(seed, screen)
            said = "  ".join(f"{split} {k} {shown(v)}" for split, k, v in _headlines(found[seed], headline))
            self.folder.call.screen.say(f"seed {seed}: {said or found[seed].get('failed', 'done')}")
        failed = {seed: reason for seed, scores in found.items() if (reason := self._failure(seed, scores))}
        done = [seed for seed in seeds if "failed" not in found[seed]]
        if not done:
            raise Diverged(f"all {len(seeds)} seeds failed; seed {seeds[0]} {failed[seeds[0]]}")
        chosen, why = self._choose({seed: found[seed] for seed in done if seed not in failed} or {seed: found[seed] for seed in done})
        summary = {
            "asked": len(seeds),
            "delivered": chosen,
            "delivered_because": why,
            "failed": {str(seed): reason for seed, reason in failed.items()},
            "repeated": len(done) - self._different({seed: found[seed] for seed in done}),
            "seconds": round(sum(found[seed]["train"]["seconds"] for seed in done), 2),
            **{split: over for split in ("valid", "test", "baseline") if (over := _over({s: found[s].get(split) for s in done}))},
        }
        if gain := _gain(summary, headline):
            summary["above_baseline"] = {gain[0]: gain[1]}
        if self.folder.run.writes:
            with storage(self.folder.run.dir):
                self._deliver(chosen)
        return self._report({**found[chosen], "seeds": summary}, headline)

    def _report(self, scores: dict[str, Any], headline: Sequence[str]) -> dict[str, Any]:
        over, folder = scores["seeds"], self.folder
        scores.pop("run", None)
        folder.run.write("metrics.json", scores)
        rows: list[list[Any]] = []
        for split, title in (("valid", "valid"), ("test", "test"), ("baseline", f"{(scores.get('baseline') or {}).get('method')}:")):
            rows += [[f"{title} {key}", *_row(over[split][key])] for key in headline if key in over.get(split, {})]
        rows += [[f"{key} above it", *_row(gain)] for key, gain in over.get("above_baseline", {}).items()]
        rows.append(["time", duration(over["seconds"]), f"{over['asked']} x {scores['train']['steps']:,} steps"])
        rows.append(["peak memory", f"{scores['train']['peak_memory_bytes'] / 1e6:,.0f} MB", ""])
        folder.call.screen.table(f"{folder.run.dir}: {over['asked']} seeds", ("", "mean", "95 % interval"), rows)
        if over["repeated"]:
            what = f"{over['repeated']} of {over['asked']} runs repeat another to the last digit, so their interval says too little"
            folder.call.screen.warn(f"{what}; where nothing is drawn, trainer.seeds=1 does")
        for seed, reason in over["failed"].items():
            folder.call.screen.warn(f"seed {seed} failed: {reason}")
        folder.call.screen.say(f"model/ and predictions.jsonl are of seed {over['delivered']}: {over['delivered_because']}")
        return folder.end(scores)

    def _place(self, seed: int) -> Path:
        return self.folder.run.dir / "seeds" / str(seed)

    def _one(self, seed: int, screen: Screen) -> dict[str, Any]:
        call, run, given = self.folder.call, self.folder.run, self.one.keywords
        trainer, limit = given["trainer"], seconds(given["trainer"].config["time_limit"])
        own = {"seeds": 1, "time_limit": limit and limit / len(self.seeds)}
        changes = {"seed": seed, "run.dir": str(self._place(seed)), **{f"trainer.{k}": v for k, v in own.items()}}
        parts = {
            "call": told(call, screen, changes),
            "run": Part("run", Run, {"dir": str(self._place(seed)), "keep": run.keep}),
            "trainer": Part(trainer.path, trainer.cls, {**trainer.config, **own}),
        }
        gc.collect()  # a network that was trained holds on to itself by its hooks, and the collector does not know how large it is
        try:
            return self.one(**parts, seed=seed, resume="auto")
        except Preempted as error:
            raise Preempted(f"seed {seed}: {str(error).replace(str(self._place(seed)), str(run.dir))}") from error
        except Diverged as error:
            if self.world.size > 1:
                raise  # the others may not know
            self._place(seed).mkdir(parents=True, exist_ok=True)  # it goes where nothing was learnt
            run.write(f"seeds/{seed}/metrics.json", {"failed": str(error)})
            return {"failed": str(error)}

    def _failure(self, seed: int, scores: Mapping[str, Any]) -> str | None:
        """Why a seed is not to be trusted: it diverged, or what it says of every example is worth no more than one answer for all."""
        if "failed" in scores:
            return str(scores["failed"])
        path = self._place(seed) / "predictions.jsonl"
        if not self.task.classifies or not path.is_file():
            return None
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return metrics.collapse([row["gold"] for row in rows], [row["prediction"] for row in rows])

    def _choose(self, found: Mapping[int, Mapping[str, Any]]) -> tuple[int, str]:
        """The seed whose model is delivered. Never by test scores; by held-out ones only where all were judged on the same data."""
        held = {seed: scores["valid"][self.task.metric] for seed, scores in found.items() if self.task.metric in scores.get("valid", {})}
        if not self.chooses or len(held) < len(found):
            return next(iter(found)), "the first that did not fail"
        best = max if self.task.higher_is_better else min
        return best(held, key=held.__getitem__), f"best {self.task.metric} on data.valid"

    def _different(self, found: Mapping[int, Mapping[str, Any]]) -> int:
        """How many of the runs differ in how far their weights moved or in what they scored."""
        scores = ({k: v for k, v in run.items() if k in ("valid", "test")} for run in found.values())
        moved = (self._place(seed) / "receipts.json" for seed in found)
        traces = [json.loads(path.read_text(encoding="utf-8")).get("moved") if path.is_file() else None for path in moved]
        return len({json.dumps(both, sort_keys=True, default=str) for both in zip(traces, scores, strict=True)})

    def _deliver(self, chosen: int) -> None:
        """What the chosen seed left is what the run left, linked, so that it takes no space twice. The others' checkpoints have served."""
        for seed in self.seeds:
            if seed != chosen:
                shutil.rmtree(self._place(seed) / "checkpoints", ignore_errors=True)
        deliver(self._place(chosen), self.folder.run.dir)


def complete(place: Path, world: World) -> dict[str, Any] | None:
    """The scores of one run of many, if it has ended (before an interruption); as rank 0 knows."""
    path = place / "metrics.json"
    return world.gather(json.loads(path.read_text(encoding="utf-8")) if world.leads and path.is_file() else None)[0]


def told(call: Call, screen: Screen, changes: Mapping[str, Any]) -> Call:
    """The call of one run of many: its own configuration has these keys."""
    config = OmegaConf.create(call.config_yaml)
    for key, value in changes.items():
        OmegaConf.update(config, key, value)
    return replace(call, config_yaml=OmegaConf.to_yaml(config), screen=screen)


def deliver(place: Path, folder: Path) -> None:
    """What one run of many left, into the folder of all: linked."""
    for path in place.iterdir():
        if path.name in ROOTS_OWN or path.name.startswith("."):
            continue
        final, making = folder / path.name, folder / f".{path.name}.tmp"
        shutil.rmtree(making, ignore_errors=True)
        making.unlink(missing_ok=True) if not making.is_dir() else None
        shutil.copytree(path, making, copy_function=link) if path.is_dir() else link(path, making)
        shutil.rmtree(final, ignore_errors=True)
        final.unlink(missing_ok=True)  # of two links to one file a rename would leave both
        making.replace(final)


class OfMany(Screen):
    """What one run of many shows: progress under its name, and warnings that no other has given."""

    def __init__(self, whole: Screen):
        super().__init__(whole.quiet, whole.verbose, whole.silent)
        self.name, self.warned = "", set[str]()

    def say(self, text: str) -> None:
        self.detail(text)

    def warn(self, text: str) -> None:
        if text not in self.warned:
            super().warn(f"{self.name}: {text}")
        self.warned.add(text)

    def progress(self, what: str, total: float | None, done: float = 0) -> Any:
        return super().progress(f"{self.name}: {what}", total, done)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        if self.verbose:
            super().table(title, columns, rows)


def _over(found: Mapping[int, Mapping[str, Any] | None], differences: bool = False) -> dict[str, Any]:
    """Score (or the difference of two) -> its mean over seeds, Student's interval of that mean, and each seed's own."""
    some = {seed: scores for seed, scores in found.items() if scores}
    over: dict[str, Any] = {}
    for key, first in next(iter(some.values()), {}).items():
        if isinstance(first, (int, float)) and not isinstance(first, bool):
            each = {seed: float(scores[key]) for seed, scores in some.items() if key in scores}
            score = None if differences or isinstance(first, int) else key  # counts are integers
            interval = list(metrics.mean_interval(list(each.values()), score)) if len(each) > 1 else None
            over[key] = {"mean": statistics.fmean(each.values()), "interval": interval, "each": {str(s): v for s, v in each.items()}}
    return over


def _gain(over: Mapping[str, Any], headline: Sequence[str]) -> tuple[str, dict[str, Any]] | None:
    """How far the network is above the cheap method, seed by seed on the same labels: (score, as `_over` says it)."""
    split = next((s for s in ("test", "valid") if s in over), "")
    key = next((k for k in headline if k in over.get(split, {}) and k in over.get("baseline", {})), None)
    if key is None:
        return None
    mine, cheap = over[split][key]["each"], over["baseline"][key]["each"]
    return key, _over({int(s): {key: mine[s] - cheap[s]} for s in mine if s in cheap}, differences=True)[key]


def _row(score: Mapping[str, Any]) -> list[str]:
    interval = score["interval"]
    return [shown(score["mean"]), f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""]


def _headlines(scores: Mapping[str, Any], headline: Sequence[str]) -> list[tuple[str, str, float]]:
    """(split, key, value) of the first two headline scores of the last split."""
    split = next((s for s in ("test", "valid") if s in scores), "")
    return [(split, k, scores[split][k]) for k in headline if k in scores.get(split, {})][:2]


def link(source: Any, target: Any) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)

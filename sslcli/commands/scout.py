"""`ssl pretrain objective=auto budget=30m`: which objective? Short pilots of several on the user's data, halved again and again; the
long run goes on from the best. The run folder is then that of `ssl pretrain objective=<the best>`, with `scout.json` and `pilots/`."""

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import OmegaConf
from pydantic import Field

from sslcli import config, schema
from sslcli.commands import Call
from sslcli.commands.pilot import DECIDING, Pilot, first_look, write_config
from sslcli.commands.pretrain import pretrain
from sslcli.commands.scout_table import show
from sslcli.commands.seeds import OfMany, link
from sslcli.errors import BadInput, Diverged, Preempted
from sslcli.evidence import halving
from sslcli.log import Screen, duration, seconds, shown
from sslcli.modality import Modality
from sslcli.run import Run, storage, write_atomically
from sslcli.schema import Part

ASKED, BOARD = "scout.yaml", "scout.json"  # what the user asked for, and what came of it
LEAST = 1.0  # seconds of training without which a pilot says nothing
SPARE, ENDING = 0.5, 2.5  # seconds beside building and looking that a pilot takes, and that the end of a run takes
LOOKING = 0.25  # share of the pilots' time that looking may take
ROOM = 1.1  # times the steps that the long run's time is good for at its pilot's speed: the most that it takes, the clock decides (pace.py)
FALLS = ("linear", "cosine")  # schedules that depend on the number of steps from the first on
DECIDED = ("trainer.steps", "trainer.epochs", "trainer.time_limit")


class Auto:
    """The `objective` node. `share`: of the budget, for pilots."""

    def __init__(
        self,
        *,
        kind: Literal["auto"],
        candidates: Annotated[list[str], Field(min_length=2)],
        labelled: str | list[str] | None,
        share: Annotated[float, Field(gt=0, lt=1)],
    ):
        self.candidates, self.labelled, self.share = list(dict.fromkeys(candidates)), labelled, share


def nodes(*, objective: Part[Auto], budget: str | float | None) -> None:
    """What this verb knows beside the configuration of a pretraining."""


@dataclass
class Board:
    """`scout.json`. Seconds are of the clock; `spent`: by all processes so far."""

    budget: float
    pilots: list[Pilot]
    spent: float = 0.0
    untrained: dict[str, float] = field(default_factory=dict)
    by: str = ""  # the score that decides
    rows: int = 0  # that networks are compared on
    counts: list[int] = field(default_factory=list)  # of pilots on each rung
    until: list[float] = field(default_factory=list)  # seconds of training at the end of each rung
    horizon: float = 0.0  # of the long run, as planned
    ending: float = 0.0  # seconds from the last step to the end of the command
    chosen: str = ""
    long_run: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, root: Path) -> "Board":
        found = json.loads((root / BOARD).read_text(encoding="utf-8"))
        return cls(**found | {"pilots": [Pilot(p["name"], root / "pilots" / p["name"], p["why"], p["looks"]) for p in found["pilots"]]})

    def save(self, root: Path) -> None:
        plain = asdict(self) | {"pilots": [asdict(p) | {"folder": f"pilots/{p.name}"} for p in self.pilots]}
        write_atomically(root / BOARD, json.dumps(plain, indent=2, ensure_ascii=False) + "\n")


def scout(overrides: Sequence[str], flags: Mapping[str, Any], composed: config.Composed, places: Mapping[str, str]) -> int:
    tree, config_yaml = config.resumed(composed, overrides, ASKED)
    found = schema.check(nodes, {key: tree.get(key) for key in ("objective", "budget")}, composed.problems, places)
    auto, budget = found["objective"].build(), _seconds(found["budget"])
    for key in DECIDED:
        if any(o.lstrip("+~").partition("=")[0] == key for o in overrides):
            raise BadInput(f"{key}: budget says how long all of it may take; leave it out")
    if flags.get("preview"):
        raise BadInput("--preview: shows what one objective sees; name it, as in objective=simclr")
    if tree["trainer"]["devices"] != 1:
        raise BadInput("trainer.devices: objective=auto compares on one device; use the objective that it finds with trainer.devices")
    screen, resume = Screen(flags.get("quiet", False), flags.get("verbose", False)), bool(composed.tree["resume"])
    call = Call(config_yaml, overrides, screen, flags.get("dry_run", False))
    call.refuse_beside_from()
    words = [o for o in overrides if o.lstrip("+~").partition("=")[0].split(".")[0] not in ("objective", "budget", "run", "resume")]
    yamls = Path(flags["folder"]) if "folder" in flags else None
    scouting = Scouting(call, Path(tree["run"]["dir"]), tree, auto, budget, flags["began"])
    if call.dry_run:
        return scouting.dry(words, composed, yamls)
    if not (resume and scouting.decided()):
        with Run(**tree["run"]).claim(config_yaml, resume) as run:
            scouting.decide(run, words, composed, yamls)
    screen.result(scouting.long_run())
    return 0


def _seconds(budget: str | float | None) -> float:
    if budget is None:
        raise BadInput("budget: missing; objective=auto needs to know how long all of it may take, as in budget=30m")
    try:
        return seconds(budget) or 0.0
    except ValueError as error:
        raise BadInput(str(error).replace("time_limit", "budget")) from error


@dataclass
class Scouting:
    call: Call
    root: Path
    tree: Mapping[str, Any]
    auto: Auto
    budget: float
    began: float
    checked: dict[str, dict[str, Any]] = field(default_factory=dict)  # what `pretrain` takes, of each pilot

    def now(self) -> float:
        """Seconds of this process so far."""
        return time.monotonic() - self.began

    def decided(self) -> bool:
        return (self.root / BOARD).is_file() and bool(Board.open(self.root).chosen)

    def dry(self, words: Sequence[str], composed: config.Composed, yamls: Path | None) -> int:
        """Each candidate, as a dry run of its own."""
        with tempfile.TemporaryDirectory(prefix=".sslcli-dry-") as folder:
            pilots = [Pilot(name, Path(folder) / name) for name in self.auto.candidates]
            for pilot in pilots:
                pilot.lay(words, composed, yamls, "")
            for pilot in pilots:
                parts = pilot.parts(self.tree["plugins"])
                pilot.fits(self.call, parts)
                self.call.screen.say(f"{pilot.name}: {pilot.why or 'fits'}")
                if not pilot.why:
                    pretrain(self.call, **{**parts, "run": Part("run", Run, {"dir": str(self.root)})})
        return 0

    def decide(self, run: Run, words: Sequence[str], composed: config.Composed, yamls: Path | None) -> None:
        """Rung by rung, until one is left; what an interrupted process has seen is not looked at again."""
        screen, first = self.call.screen, not (self.root / BOARD).is_file()
        if first:
            board = Board(self.budget, [Pilot(name, self.root / "pilots" / name) for name in self.auto.candidates])
            with storage(self.root):
                write_atomically(self.root / ASKED, self.call.config_yaml)
                for pilot in board.pilots:
                    pilot.lay(words, composed, yamls, run.id)
        else:
            board = Board.open(self.root)
        before = board.spent
        try:
            if not board.until:
                self._plan(board, before)
            going = [p.name for p in board.pilots if not p.why]
            for rung, until in enumerate(board.until):
                going = self._rung(board, rung, until, going, before)
            board.chosen = going[0]
            show(board, self.root, screen)
            self._begin(run, board, before)
        finally:
            board.spent = before + self.now()
            if run.dir.is_dir():
                board.save(self.root)

    def _plan(self, board: Board, before: float) -> None:
        """Which of the candidates fit, what looking costs, and so how long each rung may train."""
        quiet, screen = self._quiet(""), self.call.screen
        took = [p.fits(quiet, self._parts(p)) for p in board.pilots]
        some = [p for p in board.pilots if not p.why]
        for pilot in (p for p in board.pilots if p.why):
            screen.say(f"{pilot.name} does not fit: {pilot.why}")
        if not some:
            raise BadInput(f"objective.candidates: none fits; {board.pilots[0].why}")
        counts = halving.rungs(len(some))
        affordable = partial(self._affordable, board, before, sum(counts))
        found = first_look(quiet, self._parts(some[0]), self._labelled(some[0]), affordable)
        board.untrained, board.rows, looking, more = found
        board.by = next(k for k in DECIDING if k in board.untrained)
        building = statistics.median(took)  # the first one imports as well
        each = building + looking + SPARE
        board.counts, board.ending = counts, ENDING + 2 * building + looking * (1 + more)
        left = board.budget - before - self.now() - board.ending
        training = self.auto.share * left - each * sum(counts)
        board.until = halving.times(counts, training)
        if board.until[0] < LEAST:
            need = (board.budget - left) + (each * sum(counts) + LEAST * counts[0] * len(counts)) / self.auto.share
            what = f"is too short for pilots of {len(some)} objectives; at least {duration(need + 1)} are needed here"
            raise BadInput(f"budget={shown(self.tree['budget'])}: {what}, or fewer objective.candidates")
        board.horizon = (1 - self.auto.share) * left + board.until[-1]
        board.save(self.root)
        goes = ", ".join(f"{n} for {u:,.1f} s" for n, u in zip(counts, board.until, strict=True))
        screen.say(f"pilots {goes}, then one for {duration(board.horizon)}; {board.by} decides")

    def _affordable(self, board: Board, before: float, visits: int) -> float:
        """Seconds that one look may take."""
        return LOOKING * self.auto.share * (board.budget - before - self.now() - ENDING) / visits

    def _rung(self, board: Board, rung: int, until: float, going: list[str], before: float) -> list[str]:
        """Those that go on, the best first."""
        screen = self.call.screen
        pilots = [p for p in board.pilots if p.name in going]
        with screen.progress(f"rung {rung + 1}", len(pilots)) as bar:
            for done, pilot in enumerate(pilots):
                if len(pilot.looks) <= rung and not pilot.why:
                    self._train(board, pilot, until)
                    if pilot.why:
                        screen.warn(f"{pilot.name}: {pilot.why}")
                    board.spent = before + self.now()
                    board.save(self.root)
                said = pilot.why or f"{board.by} {shown(pilot.score(board.by, rung))} after {pilot.looks[rung]['steps']:,} steps"
                screen.detail(f"{pilot.name}: {said}")
                bar.update(done + 1, f"{pilot.name} {said}")
        ranked = halving.best({p.name: p.best(board.by) for p in pilots if not p.why})
        if not ranked:
            raise Diverged(f"no pilot came through; {pilots[0].name}: {pilots[0].why}")
        return ranked[: [*board.counts, 1][rung + 1]]

    def _train(self, board: Board, pilot: Pilot, until: float) -> None:
        try:
            pilot.tried(self._quiet(pilot.name), self._parts(pilot), until, board.horizon, self._labelled(pilot), board.rows)
        except Preempted as error:
            raise Preempted(f"{pilot.name}: {str(error).replace(str(pilot.folder), str(self.root))}") from error

    def _begin(self, run: Run, board: Board, before: float) -> None:
        """The run folder becomes that of the chosen objective, with its pilot's checkpoints where the schedule allows it."""
        pilot = next(p for p in board.pilots if p.name == board.chosen)
        chosen, look = OmegaConf.load(pilot.folder / "config.yaml"), pilot.looks[-1]
        falls = chosen.optimizer.schedule in FALLS
        left = board.budget - before - self.now() - board.ending
        had, steps = (0.0, 0) if falls else (look["seconds"], look["steps"])
        limit = max(had + left, had + LEAST)
        planned = steps + max(1, int(ROOM * (limit - had) / pilot.pace()))
        for key, value in {"trainer.steps": planned, "trainer.time_limit": round(limit, 2)}.items():
            OmegaConf.update(chosen, key, value)
        why = f"goes on from its pilot's {steps:,} steps"
        if falls:
            why = f"begins anew: optimizer.schedule={chosen.optimizer.schedule} falls over all steps, whose number is known only now"
        board.long_run = {"continues": not falls, "why": why, "steps": planned, "time_limit": round(limit, 2)}
        self.call.screen.say(f"{board.chosen} {why}; at most {planned:,} steps in all, {duration(left)} are left for it")
        with storage(self.root):
            if not falls:
                shutil.copytree(pilot.folder / "checkpoints", self.root / "checkpoints", copy_function=link, dirs_exist_ok=True)
                shutil.copy2(pilot.folder / "metrics.jsonl", self.root / "metrics.jsonl")
            board.save(self.root)
            write_config(self.root, chosen)  # last: from here on this is a run of that objective

    def long_run(self) -> dict[str, Any]:
        tree = config.load(self.root / "config.yaml") | {"plugins": self.tree["plugins"], "run": dict(self.tree["run"])}
        parts = schema.check(pretrain, tree)
        result = pretrain(self.call, **{**parts, "resume": "auto"})
        board = Board.open(self.root)
        return {**result, "scout": {"chosen": board.chosen, "by": board.by, "deciding_seconds": round(board.spent, 2), **board.long_run}}

    def _parts(self, pilot: Pilot) -> dict[str, Any]:
        if pilot.name not in self.checked:
            self.checked[pilot.name] = pilot.parts(self.tree["plugins"])
        return self.checked[pilot.name]

    def _labelled(self, pilot: Pilot) -> Modality | None:
        """What objective.labelled names, read as data.train would be."""
        if self.auto.labelled is None:
            return None
        parts = self._parts(pilot)
        data = parts["data"]
        own = {"train": self.auto.labelled, "valid": None, "test": None}
        return Part("objective.labelled", data.cls, {**data.config, **own}).build(parts["seed"]).serving(parts["objective"])

    def _quiet(self, name: str) -> Call:
        screen = OfMany(self.call.screen)
        screen.name = name
        return Call("", (), screen)

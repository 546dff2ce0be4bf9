"""Did pretraining help? The same labels on two frozen networks: the pretrained one, and the one that pretraining began from."""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslcli import config
from sslcli.build import Modules
from sslcli.core import Task
from sslcli.data.store import Store
from sslcli.distributed import World
from sslcli.errors import BadInput
from sslcli.evaluation import judge
from sslcli.evidence.efficiency import LEVEL, RESAMPLES, counts_of, score
from sslcli.hf.pooling import Pooling
from sslcli.modality import Modality, Start
from sslcli.run import Run
from sslcli.schema import Part
from sslcli.trainer import Trainer

FROZEN = {"start": "probe", "tune": "probe", "head": "linear"}  # of the keys that a task has


@dataclass(frozen=True)
class Origin:
    """Where a pretraining run began: the model that it went on with, or (None) its own architecture, untrained."""

    run: str
    source: str | None
    seed: int
    pooling: Pooling | None = None  # of either, where not as the network has it

    @classmethod
    def of(cls, run: str | None, pooling: Pooling | None = None) -> "Origin | None":
        """None where `run` is not a pretraining run of ours."""
        path = Path(run or "").expanduser() / "config.yaml"
        if run is None or not path.is_file():
            return None
        tree = config.load(path)
        return cls(run, tree.get("from"), int(tree["seed"]), pooling) if "objective" in tree else None


def asked(wanted: str | bool, run: str | None, init: str, task: Part[Task], pooling: Pooling | None = None) -> Origin | None:
    """What to compare with; None where nothing is to be compared. `auto`: wherever it can be; `true`: or else say why it cannot."""
    origin = Origin.of(run, pooling) if wanted and init == "pretrained" else None
    other = ("prompt", "zero_shot")  # heads that read other rows
    solved = task.cls.classifies and "start" in task.config and task.config.get("head") not in other
    if wanted is True and (origin is None or not solved):
        why = "task has no head that can be solved on a frozen network" if origin else "from= is to name a pretraining run of ours"
        raise BadInput(f"verdict=true: {why}; leave verdict out")
    return origin if solved else None


def verdict(
    origin: Origin | None,
    task: Part[Task],
    source: Modality,
    prepared: Any,
    gallery: Callable[[str], Store | None],
    engine: Trainer,
) -> dict[str, Any]:
    """`verdict`: scores of a head solved on either frozen network, on the same held-out rows, and their difference with its interval, by a
    bootstrap of rows. Nothing where nothing is compared or held out, or where the network brings a head of its own."""
    split = next((s for s in ("test", "valid") if s in prepared.stores), None)
    if origin is None or split is None:
        return {}
    began = time.monotonic()
    still = Part(task.path, task.cls, {**task.config, **{k: v for k, v in FROZEN.items() if k in task.config}})
    starts = {
        "pretrained": (origin.run, False, engine.seed),
        "start": (origin.source or origin.run, origin.source is None, origin.seed),
    }
    found: dict[str, np.ndarray] = {}
    for name, (where, random, seed) in starts.items():
        first = Start.of(still, where, task.cls.coder(task.config).columns, seed, 0.0, random, origin.pooling)
        processor, model = source.start(first, None, None, None, lambda _: None)
        goal = still.build(model, processor, prepared.labels, prepared.facts)
        if getattr(getattr(goal, "classifier", None), "borrows", False):
            return {}
        goal.gallery = gallery(split)
        modules = Modules(model, goal=goal).to(engine.device).eval()
        with torch.autocast(engine.device.type, engine.precision, enabled=engine.precision != torch.float32):
            goal.begin(model, engine.stream(goal, prepared.stores["train"], engine.seed))
            found[name] = _counts(goal, model, prepared.stores[split], engine.world)
        del modules
    facts = {"rows": len(found["start"]), "seconds": round(time.monotonic() - began, 2)}
    told = {**compared(found["pretrained"], found["start"]), **facts}
    engine.screen.say(sentence(told))
    return {"verdict": told}


def _counts(goal: Task, model: Any, store: Store, world: World) -> np.ndarray:
    """[N, C] of each row's prediction, as predictions.jsonl would have them; of no rows on ranks that write none."""
    with tempfile.TemporaryDirectory(prefix="sslcli-verdict-") as folder:
        judge(goal, model, store, world, Run(dir=folder))
        path = Path(folder) / "predictions.jsonl"
        return counts_of(path) if path.exists() else np.zeros((0, 2))


def compared(pretrained: np.ndarray, start: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Counts [N, C] of the same rows -> both scores, their difference with its interval, and what that comes to."""
    rows = len(start)
    random = np.random.Generator(np.random.Philox(key=[seed, 0x7E2D1C7]))
    weights = random.multinomial(rows, np.full(rows, 1 / max(1, rows)), RESAMPLES) if rows else np.zeros((RESAMPLES, 0))
    differences = score(weights @ pretrained) - score(weights @ start)
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    ours, theirs = float(score(pretrained.sum(0))), float(score(start.sum(0)))
    word = "helped" if low > 0 else "hurt" if high < 0 else "no difference"
    return {
        "verdict": word,
        "pretrained": round(ours, 6),
        "start": round(theirs, 6),
        "difference": round(ours - theirs, 6),
        "difference_interval": [round(float(low), 6), round(float(high), 6)],
    }


def sentence(found: Mapping[str, Any]) -> str:
    low, high = found["difference_interval"]
    word = found["verdict"].replace("no difference", "made no difference that can be told from chance")
    scores = f"frozen features {found['pretrained']:.4f}, before pretraining {found['start']:.4f}"
    return f"pretraining {word}: {scores} ({found['difference']:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}; {found['seconds']:.1f} s)"

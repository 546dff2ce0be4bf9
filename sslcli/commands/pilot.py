"""A pilot: the beginning of a long run, stopped after some seconds and looked at. A longer pilot, and the long run, go on from there."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sslcli import config, schema
from sslcli.build import Modules, parameters
from sslcli.commands import Call
from sslcli.commands.folder import claimed
from sslcli.commands.pretrain import auto_steps, judgeable, network, pretrain
from sslcli.core import Term
from sslcli.distributed import world
from sslcli.errors import BadInput, Diverged, OutOfMemory, printable
from sslcli.modality import Modality
from sslcli.pace import MEASURING
from sslcli.run import write_atomically
from sslcli.schema import Part

NETWORK = ("data", "tokenizer", "augment", "model", "objective", "seed", "from_", "pooling")  # of a pretraining's arguments
WARM, LEAST, MOST = 64, 256, 2048  # rows that the machine is warmed up with, and that networks are compared on
DECIDING = ("probe", "spearman", "rankme")  # the first of these that was measured chooses; of all of them more is better


@dataclass
class Pilot:
    """`looks`: after each rung, `seconds` and `steps` of training so far, and `scores`. `why`: what keeps it from being tried."""

    name: str
    folder: Path
    why: str = ""
    looks: list[dict[str, Any]] = field(default_factory=list)

    def lay(self, words: Sequence[str], whole: config.Composed, yamls: Path | None, run_id: str) -> None:
        """Its configuration, into its folder: that of `ssl pretrain objective=<name>`, with the network and the optimizer of all."""
        made = config.compose("pretrain", [*words, f"objective={self.name}"], yamls)
        other = made.tree["data"]["kind"] if made.tree["data"]["kind"] != whole.tree["data"]["kind"] else None
        if other or made.problems:
            raise BadInput(f"objective.candidates: {self.name}: " + (f"is for {other} data" if other else "; ".join(made.problems)))
        for key in ("model", "optimizer"):
            OmegaConf.update(made.config, key, whole.config[key], merge=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "environment.json", json.dumps({"run_id": run_id}))
        write_config(self.folder, made.config)

    def parts(self, plugins: Sequence[str]) -> dict[str, Any]:
        """What `pretrain` takes, checked, out of the folder."""
        return schema.check(
            pretrain, config.load(self.folder / "config.yaml") | {"plugins": list(plugins), "run": {"dir": str(self.folder)}}
        )

    def fits(self, call: Call, parts: Mapping[str, Any]) -> float:
        """Seconds that building it takes; `why` says it where network and objective do not go together."""
        start = time.monotonic()
        try:
            _, processor, backbone = network(call, **{k: parts[k] for k in NETWORK})
            parts["objective"].build(backbone, processor)
        except BadInput as error:
            self.why = str(error)
        return time.monotonic() - start

    def train(self, call: Call, parts: Mapping[str, Any], until: float, horizon: float, labelled: Modality | None, most: int) -> None:
        """On, until it has trained for so many seconds in all of the `horizon` that a long run would have; then look."""
        trainer = parts["trainer"]
        limited = Part(trainer.path, trainer.cls, {**trainer.config, "steps": None, "epochs": None, "time_limit": until})
        with world(1) as replicas, claimed(call, parts["run"].build(), True) as folder:
            source, processor, backbone = network(call, **{k: parts[k] for k in NETWORK})
            stores = folder.corpus(source, processor).stores
            goal = parts["objective"].build(backbone, processor)
            modules = Modules(backbone, objective=goal)
            folder.model(backbone, processor, parameters(modules))
            judgeable(goal, stores, call)
            engine = limited.build(replicas, folder.run, call.screen, parts["seed"], goal.batch_size)
            engine.pace = replace(engine.pace, time_limit=horizon, measuring=MEASURING * until / horizon, least=2)
            term = Term("objective", goal, engine.stream(goal, stores["train"], parts["seed"]), parts["adversarial"].build())
            facts = engine.fit(modules, [term], parts["optimizer"], None, 0, auto_steps, True)
            modules.eval()
            scores = source.compared(processor, stores, labelled, most)(backbone)
        self.looks.append({"seconds": facts["seconds"], "steps": facts["steps"], "scores": scores})

    def tried(self, *arguments: Any) -> None:
        """The same; one that fails takes no other with it."""
        try:
            self.train(*arguments)
        except (BadInput, Diverged, OutOfMemory, MemoryError) as error:
            self.why = printable(error, 300) or "out of memory"

    def pace(self) -> float:
        """Seconds of a step by now: the median of the later half, as the first ones warm the machine up."""
        log = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        seen = [(line["step"], line["seconds"]) for line in map(json.loads, log) if "seconds" in line]
        each = [(b - a) / (n - m) for (m, a), (n, b) in pairwise(seen)]
        return statistics.median(each[len(each) // 2 :]) if each else self.looks[-1]["seconds"] / self.looks[-1]["steps"]

    def score(self, key: str, rung: int) -> float:
        return float(self.looks[rung]["scores"][key])

    def peak(self, key: str) -> dict[str, Any]:
        """The best of all looks: a young network may dip before it rises again (masked_lm on trec: 0.596, 0.515, and 0.688 in the end)."""
        return max(self.looks, key=lambda look: look["scores"][key])

    def best(self, key: str) -> float:
        return float(self.peak(key)["scores"][key])


def first_look(
    call: Call, parts: Mapping[str, Any], labelled: Modality | None, affordable: Callable[[], float]
) -> tuple[dict[str, float], int, float, float]:
    """The data prepared, and an untrained network looked at: its scores, the rows of a look (as many as `affordable` seconds allow), its
    seconds, and how many times as many rows the scores at the end of a run look at."""
    source, processor, backbone = network(call, **{k: parts[k] for k in NETWORK})
    prepared = source.corpus(processor, lambda _: None)

    def look(most: int) -> tuple[dict[str, float], float]:
        start = time.monotonic()
        return source.compared(processor, prepared.stores, labelled, most)(backbone), time.monotonic() - start

    look(WARM)
    most, (scores, seconds) = LEAST, look(LEAST)
    while most < MOST and 2 * seconds < affordable():
        most *= 2
        seconds *= 2
    if most > LEAST:
        scores, seconds = look(most)
    rows = sum(facts["examples"] for facts in prepared.facts.values() if isinstance(facts, dict) and "pixels" in facts)
    return scores, most, seconds, max(1.0, rows / most)


def write_config(folder: Path, tree: Any) -> None:
    OmegaConf.update(tree, "run.dir", str(folder))
    write_atomically(folder / "config.yaml", OmegaConf.to_yaml(tree))

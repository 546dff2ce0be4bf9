"""A self-supervised loss beside a task's: its data, its batches, its weight. Without an objective there is none of that."""

from typing import Any

from sslcli.adversarial.plain import Plain
from sslcli.commands import Call
from sslcli.core import Objective, Term
from sslcli.data.text import Prepared
from sslcli.errors import BadInput
from sslcli.joint import Balance, Joint
from sslcli.modality import Modality
from sslcli.schema import Part
from sslcli.trainer import Trainer


class Beside:
    def __init__(self, call: Call, objective: Part[Objective] | None, joint: Part[Joint] | None, source: Modality):
        self.call, self.objective, self.source = call, objective, source
        self.balance = Balance(joint.build()) if objective is not None and joint is not None else None
        self.goal: Objective | None = None
        self.corpus: Any = None
        for given in call.overrides if objective is None else ():
            key = given.lstrip("+").partition("=")[0]
            if key.startswith("joint.") or key == "data.unlabelled":
                raise BadInput(f"{key}: there is no self-supervised loss beside the task; add objective=<name>, or leave {key} out")

    def read(self, prepared: Prepared, processor: Any, augment: Any) -> Prepared:
        """The examples, with the unlabelled corpus among their facts."""
        if self.objective is None:
            return prepared
        self.processor = self.source.beside(processor, self.objective.cls, augment)
        with self.call.screen.progress("preparing", None) as bar:
            found = self.source.serving(self.objective).corpus(
                self.processor, lambda done: bar.update(done, self.source.prepared(done)), only="unlabelled"
            )
        self.corpus = found.stores["unlabelled"]
        for key in ("columns", "files"):
            prepared.facts[key]["unlabelled"] = found.facts[key]["unlabelled"]
        prepared.facts["unlabelled"] = found.facts["unlabelled"]
        return Prepared(prepared.stores, prepared.facts, prepared.labels, [*prepared.bad, *found.bad])

    def modules(self, model: Any) -> dict[str, Any]:
        """What it owns, by name: built, and said."""
        if self.objective is None or self.balance is None:
            return {}
        kind, origin = self.objective.cls.starts_from(self.objective.config), "no head"
        if kind is not None:
            origin = "the head that from= brings" if model.has_head(kind) else "a new head: from= brings none"
        self.goal = self.objective.build(model, self.processor)
        name = self.objective.cls.__module__.rpartition(".")[2]
        joint = self.balance.joint
        self.call.screen.say(f"joint  {name} beside the task, weight {joint.weight} ({joint.schedule}), {origin}")
        return {"objective": self.goal, "balance": self.balance}

    def terms(self, engine: Trainer, seed: int) -> list[Term]:
        if self.goal is None or self.balance is None:
            return []
        size = self.balance.joint.batch_size or self.goal.batch_size
        return [Term("objective", self.goal, engine.stream(self.goal, self.corpus, seed, "unlabelled", size), Plain())]

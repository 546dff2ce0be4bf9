"""A self-supervised loss beside a task's: its data, its batches, its weight. Without an objective there is none of that."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from sslcli.adversarial.plain import Plain
from sslcli.commands import Call
from sslcli.commands.rounds import given, taught
from sslcli.core import Objective, Task, Term
from sslcli.data.examples import examples_of
from sslcli.data.labels import Unread
from sslcli.data.text import Prepared
from sslcli.errors import BadInput
from sslcli.evidence import features
from sslcli.joint import Balance, Joint
from sslcli.modality import Modality
from sslcli.pseudo import Pseudo
from sslcli.schema import Part
from sslcli.trainer import Trainer
from sslcli.unlabelled import OfTask


class Beside:
    def __init__(
        self,
        call: Call,
        task: Part[Task],
        objective: Part[Objective] | None,
        joint: Part[Joint] | None,
        source: Modality,
        plugins: Sequence[str],
    ):
        self.call, self.task, self.objective, self.source, self.plugins = call, task, objective, source, plugins
        self.balance = Balance(joint.build()) if objective is not None and joint is not None else None
        self.goal: Objective | None = None
        self.corpus: Any = None
        for override in call.overrides if objective is None else ():
            key = override.lstrip("+").partition("=")[0]
            if key.startswith("joint.") or key == "data.unlabelled":
                raise BadInput(f"{key}: there is no self-supervised loss beside the task; add objective=<name>, or leave {key} out")

    def read(self, prepared: Prepared, coder: Any, processor: Any, augment: Any) -> Prepared:
        """The examples, with the unlabelled corpus among their facts: as `coder` reads it, where the loss is of the task's predictions."""
        if self.objective is None:
            return prepared
        self.known = prepared.stores["train"]
        if issubclass(self.objective.cls, OfTask):
            self._refuse_unfit(self.objective.cls, prepared)
            self.processor = processor
            found = self.source.examples(Unread(coder), processor, only="unlabelled")
        else:
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

    def _refuse_unfit(self, cls: type[OfTask], prepared: Prepared) -> None:
        """Labels that cannot be learnt so, and a corpus that has nothing beyond the labelled rows."""
        name, source = cls.__module__.rpartition(".")[2], self.source
        if reason := cls.unfit(self.task, prepared.facts.get("labelling")):
            raise BadInput(f"objective: {name}: {reason}")
        if source.unlabelled == source.train and source.shots is None:
            raise BadInput(f"data.unlabelled: missing; {name} learns from rows beyond the labelled ones: name files of them")

    def modules(self, model: Any, task: Task) -> dict[str, Any]:
        """What it owns, by name: built, and said."""
        if self.objective is None or self.balance is None:
            return {}
        if issubclass(self.objective.cls, OfTask):
            self.model = model
            self.goal, self.student = self.objective.build(model, self.processor, task, self.corpus), task
            task.least_steps = max(task.least_steps, self.objective.cls.least_steps)
            self._say("the task's own head")
            return {"balance": self.balance}
        kind, origin = self.objective.cls.starts_from(self.objective.config), "no head"
        if kind is not None:
            origin = "the head that from= brings" if model.has_head(kind) else "a new head: from= brings none"
        self.goal = self.objective.build(model, self.processor)
        self._say(origin)
        return {"objective": self.goal, "balance": self.balance}

    def _say(self, origin: str) -> None:
        assert self.objective is not None and self.balance is not None
        name, joint = self.objective.cls.__module__.rpartition(".")[2], self.balance.joint
        self.call.screen.say(f"joint  {name} beside the task, weight {joint.weight} ({joint.schedule}), {origin}")

    def terms(self, engine: Trainer, seed: int) -> list[Term]:
        if self.goal is None or self.balance is None:
            return []
        if isinstance(self.goal, Pseudo):
            ask = lambda run: taught(run, self.student, self.source, engine.world, self.plugins)  # noqa: E731
            given(
                partial(self.goal.labels, partial(self._look, engine), ask),
                self.student,
                self.corpus,
                engine.world,
                engine.run,
                self.goal.learn,
            )
            if self.goal.warning:
                self.call.screen.warn(f"{self.goal.name}: {self.goal.warning}")
        size = self.balance.joint.batch_size or self.goal.batch_size
        self.stream = engine.stream(self.goal, self.corpus, seed, "unlabelled", size)
        return [Term("objective", self.goal, self.stream, Plain())]

    def _look(self, engine: Trainer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(vectors of the labelled examples [M, D], their labels [M], vectors of the unlabelled ones [N, D], NaN of a text
        that was left out), by the network as it is."""
        count = [f"{examples_of(store).count:,}" for store in (self.known, self.corpus)]
        self.call.screen.say(f"vectors of {count[0]} labelled and {count[1]} unlabelled examples are compared")
        model = self.model.to(engine.world.device).eval()
        known, bank = (features.of_examples(self.student, model, store) for store in (self.known, self.corpus))
        label = np.array([self.student.labels.index(row["gold"]) for row in features.golds(self.known)])
        model.train()
        read, there = (np.unique(store["owner"].values[:, 0]) for store in (self.known, self.corpus))  # but data.too_long=drop
        bank[np.setdiff1d(np.arange(len(bank)), there)] = np.nan
        return known[read], label[read], bank

    def receipt(self, model: Any) -> dict[str, Any]:
        """What came of it, of a finished network."""
        if not isinstance(self.goal, OfTask):
            return {}
        self.goal.conclude(model, self.stream)
        found = self.goal.receipt(self.stream)
        if warning := self.goal.doubt():
            self.call.screen.warn(warning)
        return found

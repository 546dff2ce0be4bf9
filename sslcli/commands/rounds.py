"""Self-training in rounds: the labels alone, then every student learns what the one before said of the unlabelled rows.

Every round is a run folder like any other, `rounds/<n>/`: round 0 what `objective=null` would have made, the others what
`objective.teacher=<the round before>` would have.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslcli.commands.folder import Folder
from sslcli.commands.seeds import OfMany, complete, deliver, told
from sslcli.core import Task
from sslcli.data.examples import examples_of
from sslcli.data.labels import Unread
from sslcli.data.store import Store
from sslcli.distributed import World
from sslcli.errors import BadInput, Preempted, printable
from sslcli.evaluation import answers
from sslcli.log import seconds, shown
from sslcli.modality import Modality
from sslcli.pseudo import Said
from sslcli.run import Run, storage
from sslcli.schema import Part

FILE = "pseudo_labels.jsonl"  # what a teacher said of the unlabelled rows, and which were learnt


@dataclass
class Rounds:
    """The runs of all rounds inside one run folder."""

    one: partial[dict[str, Any]]  # the verb, with all that it was given
    folder: Folder
    world: World
    task: type[Task]

    @classmethod
    def wanted(cls, one: partial[dict[str, Any]], folder: Folder, world: World, model: Any) -> "Rounds | None":
        """None where nothing is to be taught, or a teacher is at hand."""
        objective = one.keywords["objective"]
        if objective is None or "rounds" not in objective.config or objective.config["teacher"] is not None:
            return None
        model.to("meta")  # each round has its own
        return cls(one, folder, world, one.keywords["task"].cls)

    def run(self, headline: Sequence[str]) -> dict[str, Any]:
        """One after the other; a round that is complete already is not run again. The last is delivered, or the best on held-out rows."""
        call, count = self.folder.call, self.one.keywords["objective"].config["rounds"]
        if call.dry_run:
            call.screen.say("self-training: a dry run tries the first round, on the labels alone")
            return self._one(0, call.screen)
        screen, found = OfMany(call.screen), list[dict[str, Any]]()
        for number in range(count + 1):
            screen.name = f"round {number}"
            found.append(complete(self._place(number), self.world) or self._one(number, screen))
            said = "  ".join(f"{k} {shown(v)}" for k, v in _scores(found[-1], headline).items())
            call.screen.say(f"round {number}: {said}{'' if number else ' (the labels alone)'}")
        chosen, why = self._choose(found)
        if self.folder.run.writes:
            with storage(self.folder.run.dir):
                deliver(self._place(chosen), self.folder.run.dir)
        call.screen.say(f"round {chosen} is delivered: {why}")
        rounds = {"delivered": chosen, "delivered_because": why, "scores": [_scores(scores, headline) for scores in found]}
        scores = {k: v for k, v in found[chosen].items() if k != "run"}
        return self.folder.report({**scores, "rounds": rounds}, headline)

    def _choose(self, found: Sequence[Mapping[str, Any]]) -> tuple[int, str]:
        """Never by test scores; of equal ones the later."""
        held = [scores.get("valid", {}).get(self.task.metric) for scores in found]
        if None in held:
            return len(found) - 1, "the last (nothing is held out to choose by)"
        return max(range(len(found)), key=lambda n: (held[n], n)), f"best {self.task.metric} on what is held out"

    def _place(self, number: int) -> Path:
        return self.folder.run.dir / "rounds" / str(number)

    def _one(self, number: int, screen: Any) -> dict[str, Any]:
        given, place = self.one.keywords, self._place(number)
        trainer, limit = given["trainer"], seconds(given["trainer"].config["time_limit"])
        own = {"seeds": 1, "time_limit": limit and limit / (1 + given["objective"].config["rounds"])}
        changes: dict[str, Any] = {"run.dir": str(place), **{f"trainer.{k}": v for k, v in own.items()}}
        objective, call = given["objective"], self.folder.call
        if number:
            teacher = str(self._place(number - 1))
            changes["objective.teacher"] = teacher
            objective = Part(objective.path, objective.cls, {**objective.config, "teacher": teacher})
        else:  # what is for the unlabelled rows means nothing yet
            changes["objective"], objective = None, None
            call = replace(call, overrides=[o for o in call.overrides if not o.lstrip("+").startswith(("joint.", "data.unlabelled"))])
        parts = {
            "call": told(call, screen, changes),
            "run": Part("run", Run, {"dir": str(place), "keep": self.folder.run.keep}),
            "trainer": Part(trainer.path, trainer.cls, {**trainer.config, **own}),
            "objective": objective,
        }
        try:
            return self.one(**parts, resume=False if call.dry_run else "auto")
        except Preempted as error:
            raise Preempted(f"round {number}: {str(error).replace(str(place), str(self.folder.run.dir))}") from error


def given(said: Callable[[], Iterator[Said]], student: Task, store: Store, world: World, run: Run, learn: Any) -> None:
    """Let the student's objective choose among labels, and their confidence, that `said` has for each example of an unlabelled store. They
    stand in the student's run folder, from which a resumed run has them again."""
    lines = run.lines(FILE)
    if not world.gather(len(lines))[0]:
        examples = examples_of(store)
        inputs = (json.loads(examples.text(number))["input"] for number in range(examples.count))
        lines = [{"input": x, "label": y, "confidence": round(sure, 6)} for x, (y, sure) in zip(inputs, said(), strict=True)]
    lines = world.gather(lines)[0]
    label = np.array([student.labels.index(line["label"]) if line["label"] is not None else -1 for line in lines], np.int64)
    used = learn(store, label, np.array([line["confidence"] for line in lines]))
    run.write_lines(FILE, [{**line, "used": bool(u)} for line, u in zip(lines, used, strict=True)])


def taught(teacher: str, student: Task, source: Modality, world: World, plugins: Sequence[str]) -> Iterator[Said]:
    """(label, confidence) of each unlabelled example, by a finished run; of a text that was left out (None, 0)."""
    from sslcli.commands.finished import Finished  # which knows the verbs, this one among them

    finished = Finished.open(Path(teacher), plugins)
    if list(finished.labels) != list(student.labels) or not isinstance(finished.goal, Task):
        theirs = printable(", ".join(finished.labels[:5]) or "none")
        raise BadInput(
            f"objective.teacher={printable(teacher)}: has other labels ({theirs}, ...); name a run of ssl finetune with the same"
        )
    model, task = finished.model.to(world.device), finished.goal.to(world.device)
    seen = source.examples(Unread(finished.coder), finished.processor, only="unlabelled").stores["unlabelled"]
    count = examples_of(seen).count
    said = dict(answers(task, model, seen, world, count))
    for number in range(count):
        shares = torch.from_numpy(said[number]).softmax(-1) if number in said else None
        yield (None, 0.0) if shares is None else (student.labels[int(shares.argmax())], float(shares.max()))


def _scores(scores: Mapping[str, Any], headline: Sequence[str]) -> dict[str, float]:
    """The first two headline scores of each split."""
    return {
        f"{split} {k}": scores[split][k] for split in ("valid", "test") for k in [k for k in headline if k in scores.get(split, {})][:2]
    }

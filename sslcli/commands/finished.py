"""A finished run, opened again from its own folder: configuration, tokenizer, and the delivered model under the objective's face."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslcli import config, earlier, schema
from sslcli.build import Modules
from sslcli.calibration import Calibration
from sslcli.commands.finetune import finetune
from sslcli.commands.pretrain import pretrain
from sslcli.commands.tuned import reopened
from sslcli.core import Batch, Objective, Task
from sslcli.data.source import kept_input
from sslcli.errors import BadCheckpoint, BadInput, printable
from sslcli.modality import Modality
from sslcli.run import config_of
from sslcli.schema import Part


@dataclass
class Finished:
    dir: Path
    verb: str
    data: Part[Modality]
    seed: int
    batch_size: int
    processor: Any
    model: Any
    goal: Objective
    facts: dict[str, Any]
    labels: list[str]
    part: Part[Objective]
    whole: bool = True  # model/ is all of it; else there is an adapter beside

    @classmethod
    def open(cls, folder: Path, plugins: Sequence[str]) -> "Finished":
        """Everything comes from the folder; its configuration passes the same checks as a stranger's."""
        tree = config.load(config_of(folder)) | {"plugins": list(plugins)}
        if "out" in tree:
            raise BadInput(f"run={printable(folder)}: is an evaluation, which keeps no model; name the run or model that it evaluated")
        verb = "finetune" if "task" in tree else "pretrain"
        parts = schema.check(finetune if verb == "finetune" else pretrain, earlier.completed(tree, verb))
        try:
            facts = json.loads((folder / "data.json").read_text(encoding="utf-8"))
            labels = list(map(str, facts["labels_in_order"])) if verb == "finetune" else None
            seed = int(facts.get("seed", parts["seed"]))  # of several seeds, the one that was delivered
            length = int(facts["row_length"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise BadCheckpoint(f"{printable(folder / 'data.json')}: missing or damaged; finish the run with resume=auto") from error
        part = parts["task" if verb == "finetune" else "objective"]
        source = parts["data"].build(seed)
        processor, model, goal = reopened(parts.get("peft"), part, source, folder, length, parts["augment"], labels, facts)
        if isinstance(goal, Task) and goal.classifies:
            goal.calibration = Calibration.load(folder / "model", goal.labels)
        Modules(model, goal=goal).eval()
        size = parts["trainer"].config["batch_size"] or goal.batch_size
        whole = parts.get("peft") is None or parts["peft"].cls.merges
        known = facts.get("labels_in_order", [])
        return cls(folder, verb, parts["data"], seed, size, processor, model, goal, facts, known, part, whole)

    def source(self) -> Modality:
        """The data as the run was told of it; what came by standard input then is read where it was kept."""
        source: Any = self.data.build(self.seed)
        for split, files in self.facts.get("files", {}).items():
            if getattr(source, split, None) == "-" and files:
                setattr(source, split, str(kept_input(files[0]["file"])))
        return source.serving(self.part)

    @property
    def coder(self) -> Any:
        """How its task reads examples, as the data decided; None of a pretraining run."""
        settled = {**self.part.config, "labelling": self.facts.get("labelling", "auto")}
        return type(self.goal).coder(settled) if isinstance(self.goal, Task) else None

    @property
    def has_head(self) -> bool:
        """Whether the delivered model has one: a task's, or a language model's."""
        return self.verb == "finetune" or (self.goal.head_kind is not None and hasattr(self.goal, "head"))

    def logits(self, batch: Batch) -> Tensor:
        """What an export must reproduce: the head's logits, the vectors of a run that is about those, or the hidden states
        of one whose objective has no head."""
        with torch.no_grad():
            if self.goal.embeds:
                return self.model.pool(self.model.encode(batch), batch)
            if self.verb == "finetune":
                return self.goal.logits(self.model, batch)  # type: ignore[operator]
            hidden = self.model.encode(batch)
            return self.goal.head(hidden) if self.has_head else hidden  # type: ignore[operator]

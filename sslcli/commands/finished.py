"""A finished run, opened again from its own folder: configuration, tokenizer, and the delivered model under the objective's face."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslcli import config, schema
from sslcli.build import Modules
from sslcli.commands.finetune import finetune
from sslcli.commands.pretrain import pretrain
from sslcli.core import Batch, Objective, Task
from sslcli.data.text import TextData
from sslcli.data.tokenizer import Tokenizer
from sslcli.errors import BadCheckpoint, printable
from sslcli.hf.folder import model_folder
from sslcli.models.text import Text
from sslcli.run import config_of
from sslcli.schema import Part


@dataclass
class Finished:
    dir: Path
    verb: str
    data: Part[TextData]
    seed: int
    batch_size: int
    tokenizer: Tokenizer
    model: Text
    goal: Objective
    facts: dict[str, Any]
    labels: list[str]

    @classmethod
    def open(cls, folder: Path, plugins: Sequence[str]) -> "Finished":
        """Everything comes from the folder; its configuration passes the same checks as a stranger's."""
        tree = config.load(config_of(folder)) | {"plugins": list(plugins)}
        verb = "finetune" if "task" in tree else "pretrain"
        parts = schema.check(finetune if verb == "finetune" else pretrain, tree)
        try:
            facts = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadCheckpoint(f"{printable(folder / 'data.json')}: missing or damaged; finish the run with resume=auto") from error
        tokenizer = Tokenizer.load(model_folder(str(folder)))
        part = parts["task" if verb == "finetune" else "objective"]
        model = Text.load(folder / "model", part.cls.head_kind, None, native=True)
        known = (facts["labels_in_order"], facts) if verb == "finetune" else (int(facts["row_length"]),)
        goal = part.build(model, tokenizer, *known)
        Modules(model, goal=goal).eval()
        size = parts["trainer"].config["batch_size"] or goal.batch_size
        return cls(folder, verb, parts["data"], parts["seed"], size, tokenizer, model, goal, facts, facts.get("labels_in_order", []))

    @property
    def limit(self) -> int:
        return int(self.facts["row_length"])

    def logits(self, batch: Batch) -> Tensor:
        """What an export must reproduce: the head's logits, or the hidden states of a run whose objective has no head."""
        with torch.no_grad():
            if self.verb == "finetune":
                return self.goal.logits(self.model, batch)  # type: ignore[operator]
            hidden = self.model.encode(batch)
            head = getattr(self.goal, "head", None)
            return hidden if head is None else head(hidden)

    def rows(self, count: int) -> list[Any]:
        """Texts (or lists of words) that the run was scored on; of a pretraining run, texts of its own corpus."""
        path = self.dir / "predictions.jsonl"
        if path.exists():
            with path.open(encoding="utf-8") as file:
                return [json.loads(line) for _, line in zip(range(count), file, strict=False)]
        source = self.data.build(self.seed)
        columns = type(self.goal).coder({"labelling": "auto"}).columns if isinstance(self.goal, Task) else ("text",)
        reader = source.reader("train", columns)
        assert reader is not None
        return [{"input": example[columns[0]]} for _, (_, _, example) in zip(range(count), reader, strict=False)]

    def encode(self, inputs: Sequence[Any]) -> Batch:
        """As any other user of the exported tokenizer would."""
        words = bool(inputs) and isinstance(inputs[0], list)
        coded = self.tokenizer.hf(
            list(inputs), is_split_into_words=words, truncation=True, max_length=self.limit, padding=True, return_tensors="pt"
        )
        return {"ids": coded["input_ids"], "mask": coded["attention_mask"].bool()}

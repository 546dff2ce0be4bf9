"""What tasks on labels share, whatever the labels are of: how they are written, one or several an example, or ranks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from sslcli.data.reader import named
from sslcli.data.survey import Unlabelled
from sslcli.errors import BadInput

Mode = Literal["auto", "single", "multi", "ordinal"]


class LabelCoder:
    """How labelled examples are read (data.survey.Coder). `auto` is decided by the first: a list of labels, or one.

    `role`: of the column that is labelled; `unseen`: held-out examples may have labels that training has not.
    """

    optional = ("source",)

    def __init__(self, labelling: Mode, role: str, unseen: bool = False):
        self.columns: Sequence[str] = (role, "label")
        self.labelling, self.unseen = labelling, unseen
        self.facts: dict[str, Any] = {}

    def identity(self) -> Any:
        return [*self.columns, self.labelling, self.unseen]

    def tidy(self, example: dict[str, Any]) -> str | None:
        label = example["label"]
        if self.labelling == "auto":
            self.labelling = "multi" if isinstance(label, list) else "single"
        if self.labelling == "multi":
            parts = label if isinstance(label, list) else str(label).split(";")
            example["label"] = sorted({named(x) for x in parts if named(x)})
            return None
        if isinstance(label, list):
            return "holds a list of labels; task.labelling=multi reads those"
        if self.labelling == "ordinal" and isinstance(label, str) and "," in label and label.replace(",", "").strip().isdigit():
            return f"the rank {label} has a comma; write it with a point, or without"
        example["label"] = named(label)
        return None

    def labels(self, example: dict[str, Any]) -> list[str]:
        return example["label"] if self.labelling == "multi" else [example["label"]]

    def stratum(self, example: dict[str, Any]) -> str:
        return ";".join(self.labels(example))

    def inventory(self, seen: Counter[str], given: list[str] | None) -> list[str]:
        self.facts["labelling"] = self.labelling
        if given is not None:
            return list(given)
        if self.labelling == "ordinal":
            try:
                return sorted(seen, key=float)
            except ValueError as error:
                order = "give their order, as in data.labels=[low,middle,high]"
                raise BadInput(f"task.labelling=ordinal: the labels are not numbers; {order}") from error
        return sorted(seen)

    def coded(self, example: dict[str, Any], labels: Mapping[str, int]) -> Any:
        """The label's number [1] (-1: none that training knows), or [C] of 0 and 1."""
        if self.labelling != "multi":
            return [labels.get(example["label"], -1)]
        row = np.zeros(len(labels), np.int32)
        row[[labels[x] for x in example["label"] if x in labels]] = 1
        return row

    def gold(self, example: dict[str, Any]) -> Any:
        return example["label"]


class Unread(Unlabelled):
    """How rows of the same kind are read that have no labels, or whose labels nobody looks at: all are -1."""

    unseen = True

    def __init__(self, coder: LabelCoder):
        self.coder, self.columns, self.facts = coder, coder.columns[:1], dict[str, Any]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.coder, name)

    def tidy(self, example: dict[str, Any]) -> str | None:
        example["label"] = None
        return None

    def gold(self, example: dict[str, Any]) -> Any:
        return None

    def identity(self) -> Any:
        return [*self.coder.identity(), "unread"]


def indicators(values: Sequence[Sequence[str]], ids: Mapping[str, int]) -> np.ndarray:
    """Lists of labels as [N, C] of 0 and 1."""
    rows = np.zeros((len(values), len(ids)), np.int8)
    for row, labels in zip(rows, values, strict=True):
        row[[ids[label] for label in labels]] = 1
    return rows


def balanced(labels: Sequence[str], counts: Mapping[str, int]) -> list[float]:
    """Weights by which all labels count alike: the mean number of examples of a label over its own."""
    return [sum(counts.values()) / (len(labels) * max(1, counts.get(x, 0))) for x in labels]

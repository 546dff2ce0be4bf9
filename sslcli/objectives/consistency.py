"""Consistency training: what the network says of a row with confidence, it is to say of a strongly augmented view too (UDA, Xie et al.
2020; FixMatch, Sohn et al. 2020)."""

from typing import Annotated, Any

from pydantic import Field
from torch.nn import functional as F

from sslcli.augment import Augment
from sslcli.core import Backbone, Batch, Output
from sslcli.schema import Part
from sslcli.unlabelled import OfTask

ONE_SIDED = 3.0  # times an even share: a label that draws so many rows may have swallowed others


class Consistency(OfTask):
    """The loss is the mean over all unlabelled rows, of which those below `threshold` count nothing.

    `temperature`: what the weak view's distribution is sharpened by before the strong view must meet it (UDA); null: its most likely label
    alone is the target (FixMatch).
    """

    batch_size = 64

    def __init__(
        self,
        model: Any,
        processor: Any,
        task: Any,
        store: Any,
        *,
        strong: Part[Augment],
        threshold: Annotated[float, Field(ge=0, lt=1)],
        temperature: Annotated[float, Field(gt=0, le=1)] | None,
    ):
        super().__init__(model, processor, task, store, strong)
        self.threshold, self.temperature = threshold, temperature
        self.found: dict[str, Any] = {}

    def forward(self, model: Backbone, batch: Batch) -> Output:
        said, found = self.weak(model, batch), self.strong(model, batch)
        confidence, label = said.softmax(-1).max(-1)
        sure = (confidence >= self.threshold).float()
        target = label if self.temperature is None else (said / self.temperature).softmax(-1)
        losses = F.cross_entropy(found, target, reduction="none")
        logs = {"confident": sure.mean(), "agreement": (found.detach().argmax(-1) == label).float().mean()}
        return Output((losses * sure).mean(), logs)

    def conclude(self, model: Backbone, stream: Any) -> None:
        _, weak, strong = self.looked(model, stream)
        confidence, label = weak.max(-1)
        sure, same = confidence >= self.threshold, (strong.argmax(-1) == label).float()
        self.found = {"rows": len(weak), "confident": round(float(sure.float().mean()), 4), "agreement": round(float(same.mean()), 4)}
        self.found["pseudo_labels"] = self.shares(label[sure])

    def doubt(self) -> str | None:
        if self.found["confident"]:
            name, share = max(self.found["pseudo_labels"].items(), key=lambda item: item[1])
            one_sided = share > max(0.5, ONE_SIDED / len(self.task.labels))
            what = f"{share:.0%} of the unlabelled rows above objective.threshold were taken for {name}"
            return f"{what}; if that is not so, try joint.schedule=rampup, a higher threshold or another strong view" if one_sided else None
        return f"no unlabelled row reached objective.threshold={self.threshold:g}: none taught anything at the end; lower it"

    def receipt(self, stream: Any) -> dict[str, Any]:
        """Of the finished network: the share of rows above the threshold, that of strong views which agree, the labels of the former."""
        return {"consistency": {"threshold": self.threshold, **self.found}}

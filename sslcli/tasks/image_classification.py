"""Image classification: one label or several; a linear probe, neighbours, or the network tuned whole or in part."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslcli import metrics
from sslcli.calibration import last_linear
from sslcli.core import Backbone, Batch, Output, Places, Prediction, Task
from sslcli.data.labels import LabelCoder, balanced, indicators
from sslcli.data.pixels import Pixels
from sslcli.data.store import Store
from sslcli.frozen import labelled, linear, only_last, rounding

PROBED, BANK = 10_000, 50_000  # rows that the starting head is solved on, and that neighbours are looked for among


class ImageClassification(Task):
    """A linear layer (or a vote of neighbours) on the pooled vector of a picture.

    `tune`: full; the last so many blocks (0: the layer alone, by steps and with views); probe: the layer solved on the frozen network,
    and no steps; knn: the k nearest training pictures vote (Wu et al. 2018), and no steps.
    """

    metric = "macro_f1"
    batch_size = 64
    head_kind = "image_classification"

    def __init__(
        self,
        model: Any,
        processor: Pixels,
        labels: Sequence[str],
        facts: Mapping[str, Any],
        *,
        labelling: Literal["auto", "single", "multi"],
        tune: Literal["full", "probe", "knn"] | Annotated[int, Field(ge=0)],
        start: Literal["probe", "random"],
        neighbours: Annotated[int, Field(ge=1)],
        temperature: Annotated[float, Field(gt=0)],
        class_weights: Literal["none", "balanced"],
        label_smoothing: Annotated[float, Field(ge=0, lt=1)],
        dropout: Annotated[float, Field(ge=0, lt=1)],
        risk: Annotated[float, Field(ge=0.001, lt=1)] | None,
    ):
        super().__init__()
        self.class_weights: Tensor | None
        self.multi, counts = facts["labelling"] == "multi", facts["train"]["per_label"]
        if self.multi and class_weights == "balanced":
            raise ValueError("class_weights=balanced and several labels a picture do not go together; use class_weights=none")
        if self.multi and label_smoothing:
            raise ValueError("label_smoothing and several labels a picture do not go together; use label_smoothing=0")
        if self.multi and risk is not None:
            raise ValueError("risk and several labels a picture do not go together: each is given or not; use risk=null")
        if tune == "knn" and risk is not None:
            raise ValueError("risk and tune=knn do not go together: votes are not calibrated; use tune=probe")
        self.risk = risk
        self.labels, self.processor, self.tune, self.start, self.smoothing = list(labels), processor, tune, start, label_smoothing
        self.dropout = 0.0 if tune == "probe" else dropout
        self.head: nn.Module = _layer(model, len(labels))
        if tune == "knn":
            self.head = _Neighbours(model.dim, len(labels), neighbours, temperature, self.multi)
        self._still = only_last(model, tune if isinstance(tune, int) else 0) if tune != "full" else []
        weights = torch.tensor(balanced(labels, counts)) if class_weights == "balanced" else None
        self.register_buffer("class_weights", weights, persistent=False)

    @staticmethod
    def coder(config: Mapping[str, Any]) -> LabelCoder:
        return LabelCoder(config["labelling"], "image")

    def rows(self, store: Store) -> Places:
        return Places(store.count, None, self.processor.width)

    def read(self, store: Store, rows: np.ndarray, keys: np.ndarray) -> Batch:
        label = torch.from_numpy(np.array(store["label"].values[rows], np.int64))  # [B, 1], or [B, C] of 0 and 1
        return {**self.processor.read(store, rows, keys), "label": label if self.multi else label[:, 0]}

    def logits(self, model: Backbone, batch: Batch) -> Tensor:
        """Of normalised pixels: [B, labels]."""
        vector = F.dropout(model.pool(model.encode(batch), batch), self.dropout, self.training)
        return self.head(vector).float()

    def forward(self, model: Backbone, batch: Batch) -> Output:
        target = self._target(batch["label"])
        if self.training:
            for module in self._still:
                module.eval()  # statistics and dropout of blocks that do not learn are as in use
            pixels, augment = self.processor.views(batch)[0], self.processor.augment
            if augment is not None:
                pixels, target = augment.mix(pixels, target, batch["draws"])
        else:
            pixels = self.processor.plain(batch["pixels"])
        logits = self.logits(model, {"pixels": pixels})
        compared = torch.stack([logits, torch.zeros_like(logits)], -1) if self.multi else logits  # yes or no, label by label
        return Output(self._losses(logits, target).mean(), self._logs(logits, target), compared)

    def _target(self, label: Tensor) -> Tensor:
        """[B, C] of shares"""
        return label.float() if self.multi else F.one_hot(label, len(self.labels)).float()

    def _losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """[B]"""
        if self.multi:
            return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(-1)
        if self.class_weights is None:
            return F.cross_entropy(logits, target, label_smoothing=self.smoothing, reduction="none")
        # mean weight 1 over the training set: batches keep their weight
        logs, weights = logits.log_softmax(-1), target * self.class_weights.to(target.device)
        return -(1 - self.smoothing) * (weights * logs).sum(-1) - self.smoothing * weights.sum(-1) * logs.mean(-1)

    def _logs(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Of a picture that is mixed of two, the share of the one it was taken for."""
        return {} if self.multi else {"accuracy": target.gather(1, logits.detach().argmax(-1, keepdim=True)).mean()}

    def begin(self, model: Backbone, stream: Any) -> None:
        """Solve the head on the frozen network: tuning begins at the linear probe's score (Kumar et al. 2022), or that was all."""
        if self.start == "random" and self.tune not in ("probe", "knn"):
            return
        known, label = labelled(model, self.processor, stream, BANK if self.tune == "knn" else PROBED)
        target = self._target(label)
        if isinstance(self.head, _Neighbours):
            self.head.remember(known, target)
            return
        noise = None if self.tune == "probe" else rounding(model, self.processor, stream)
        weight, bias = linear(known, target, lambda logits, target: self._losses(logits, target).mean(), noise)
        with torch.no_grad():
            self.head.weight.copy_(weight)  # type: ignore[operator]
            self.head.bias.copy_(bias)  # type: ignore[operator]
        self.head.requires_grad_(self.tune != "probe")

    def last_layer(self) -> nn.Linear | None:
        return last_linear(self.head, len(self.labels))

    @torch.no_grad()
    def predict(self, model: Backbone, batch: Batch) -> list[Prediction]:
        return [{"logits": row} for row in self.logits(model, {"pixels": self.processor.plain(batch["pixels"])}).cpu().tolist()]

    def merge(self, parts: Sequence[Prediction], example: Any) -> Prediction:
        """`rank` is how many classes come before the one it is: those held for likelier, and the earlier ones held for as likely."""
        logits, rank = np.array(parts[0]["logits"]), {}
        if not self.multi and example in self.labels:
            own = self.labels.index(example)
            rank = {"rank": int((logits > logits[own]).sum() + (logits[:own] == logits[own]).sum())}
        return self.calibration.verdict(logits, self.labels, example, self.multi) | rank

    def kept(self, prediction: Prediction) -> Any:
        """What `score` needs of a prediction: of one label also its rank."""
        kept = self.calibration.kept(prediction, self.multi)
        return kept if self.multi else (*kept, prediction["rank"])

    def score(self, predictions: Sequence[Any], gold: Sequence[Any]) -> dict[str, Any]:
        """Of what `kept` gave; of bare labels, scores that need no more."""
        ids = {label: i for i, label in enumerate(self.labels)}
        more = [p[1:] for p in predictions if isinstance(p, tuple)]
        said = [p[0] for p in predictions] if more else predictions
        if self.multi:
            true = indicators(gold, ids)
            scores = metrics.multi_label(true, indicators(said, ids), self.labels)
            known = np.stack([p for (p,) in more]) if more else None
            return scores if known is None else scores | {"map": metrics.label_map(true, known)} | self.calibration.scores(true, more)
        true, guess = (np.array([ids[x] for x in values], np.int32) for values in (gold, said))
        scores = metrics.classification(true, guess, self.labels)
        scores |= {"top1": scores["accuracy"], "top1_interval": scores["accuracy_interval"]}
        if not more:
            return scores
        top5 = metrics.within([p[-1] for p in more], (5,), "top") if len(self.labels) > 5 else {}
        return {**scores, **top5, **self.calibration.scores(true == guess, [p[:-1] for p in more])}


class _Neighbours(nn.Module):
    """The votes of the k nearest by cosine, each with exp(similarity / temperature), as logits: [B, D] -> [B, labels]."""

    def __init__(self, dim: int, labels: int, k: int, temperature: float, multi: bool):
        super().__init__()
        self.k, self.temperature, self.multi = k, temperature, multi
        self.register_buffer("bank", torch.zeros(0, dim))  # [N, D], of unit length
        self.register_buffer("target", torch.zeros(0, labels))  # [N, C], what each votes for
        self.bank: Tensor
        self.target: Tensor

    def remember(self, vectors: Tensor, target: Tensor) -> None:
        self.bank, self.target = F.normalize(vectors.float(), dim=-1), target.float()

    def forward(self, vector: Tensor) -> Tensor:
        similarity, rows = (F.normalize(vector.float(), dim=-1) @ self.bank.t()).topk(min(self.k, len(self.bank)))
        votes = ((similarity / self.temperature).softmax(-1)[:, None] @ self.target[rows])[:, 0]
        return votes.logit(1e-6) if self.multi else votes.clamp(min=1e-6).log()

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        for name in ("bank", "target"):
            if f"{prefix}{name}" in state:  # as many as were remembered
                setattr(self, name, torch.empty_like(state[f"{prefix}{name}"], device=getattr(self, name).device))
        super()._load_from_state_dict(state, prefix, *rest)


def _layer(model: Backbone, labels: int) -> nn.Linear:
    layer = nn.Linear(model.dim, labels)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer

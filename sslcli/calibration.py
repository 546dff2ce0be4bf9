"""Probabilities that mean what they say: temperature, thresholds and abstention, fitted on held-out examples, never on test.

The temperature is divided into the last layer, so that whatever computes the logits (this tool, plain transformers, an ONNX file)
gives calibrated probabilities; `calibration.json` beside the weights says so, and holds what logits cannot.
"""

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcli import metrics
from sslcli.errors import BadCheckpoint, BadInput, at
from sslcli.losses import settle

FILE = "calibration.json"
SPREAD = 0.5  # of log(temperature) before anything is seen: few examples that are all right would otherwise ask for certainty
OFTEN = 5  # held-out examples that have a label, below which its threshold stays at a half
CONFIDENCE = 0.95  # with which the error of what is answered is under the wanted one


@dataclass(frozen=True)
class Calibration:
    """How a classifier's logits are read."""

    temperature: float | None = None  # what the last layer was divided by; None: not calibrated
    thresholds: Sequence[float] | None = None  # of several labels: the probability beyond which each is given; None: a half
    confident: float | None = None  # a prediction that is less likely than this is abstained from; None: all are answered
    facts: Mapping[str, Any] = field(default_factory=dict)  # what it was fitted on, and what that changed there

    def verdict(self, logits: np.ndarray, labels: Sequence[str], gold: Any, multi: bool) -> dict[str, Any]:
        """Of logits [C]. `loss` is that of the gold label, so that sorting by it finds what is hard, or labelled wrongly."""
        if multi:
            probabilities = 1 / (1 + np.exp(-logits))
            over = probabilities > (0.5 if self.thresholds is None else np.array(self.thresholds))
            return {
                "prediction": [x for x, given in zip(labels, over, strict=True) if given],
                "probabilities": named(labels, probabilities),
            }
        logs = logits - logits.max()
        logs = logs - np.log(np.exp(logs).sum())
        best = int(logs.argmax())
        found: dict[str, Any] = {"prediction": labels[best]}
        if self.confident is not None:
            found["abstained"] = bool(np.exp(logs[best]) < self.confident)
        if gold in labels:
            found["loss"] = round(float(-logs[labels.index(gold)]), 6)
        return {**found, "probabilities": named(labels, np.exp(logs))}

    def kept(self, prediction: Mapping[str, Any], multi: bool) -> tuple[Any, ...]:
        """What `scores` needs: (prediction, probabilities [C]) of several labels; of one (prediction, confidence now, confidence before
        the temperature, loss, Brier score, whether it is abstained from)."""
        p = np.array(list(prediction["probabilities"].values()))
        if multi:
            return prediction["prediction"], p.astype(np.float32)
        before = p ** (self.temperature or 1.0)
        gold = math.exp(-prediction["loss"])
        brier = float(p @ p) - 2 * gold + 1
        sure, sure_before = float(p.max()), float(before.max() / before.sum())
        return prediction["prediction"], sure, sure_before, prediction["loss"], brier, prediction.get("abstained", False)

    def scores(self, right: np.ndarray, kept: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """right [N] (of several labels [N, C]: which are gold), and what `kept` gave besides the prediction."""
        if right.ndim == 2:
            return _binary(right, np.stack([row[0] for row in kept]).astype(float), self.temperature)
        sure, before, loss, brier, abstained = np.array(kept, float).T
        found = {
            "ece": metrics.calibration_error(sure, right),
            **({} if self.temperature is None else {"ece_before": metrics.calibration_error(before, right)}),
            "ece_adaptive": metrics.adaptive_calibration_error(sure, right),
            "brier": float(brier.mean()),
            "nll": float(loss.mean()),
        }
        return found | ({} if self.confident is None else _answered(right[abstained == 0], len(right)))

    def said(self, labels: Sequence[str]) -> str:
        """For the screen."""
        if self.temperature is None:
            return f"not calibrated: {self.facts.get('why', 'nothing was fitted')}"
        f = self.facts
        gain = f"temperature {self.temperature:.3f}, ECE {f['ece_before']:.3f} -> {f['ece']:.3f} there"
        text = f"calibrated on {f['rows']:,} held-out examples: {gain}"
        if self.thresholds is not None:
            moved = sum(t != 0.5 for t in self.thresholds)
            text += (
                f"; thresholds of {moved} of {len(labels)} labels moved, macro-F1 {f['macro_f1_before']:.3f} -> {f['macro_f1']:.3f} there"
            )
        if self.confident is not None and math.isinf(self.confident):
            text += f"; no confidence keeps the error under {f['risk']:g}: all is abstained from"
        elif self.confident is not None:
            text += f"; below a confidence of {self.confident:.3f} it abstains ({f['abstained']:.1%} there)"
        return text

    def save(self, folder: Path, labels: Sequence[str]) -> None:
        thresholds = None if self.thresholds is None else dict(zip(labels, self.thresholds, strict=True))
        confident = "none is enough" if self.confident is not None and math.isinf(self.confident) else self.confident
        values = {"temperature": self.temperature, "folded": True, "thresholds": thresholds, "abstain_below": confident, **self.facts}
        (folder / FILE).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, labels: Sequence[str]) -> "Calibration":
        """Of a delivered model; one without the file is not calibrated."""
        path = folder / FILE
        if not path.is_file():
            return cls()
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            thresholds, confident = found.pop("thresholds"), found.pop("abstain_below")
            found.pop("folded")
            thresholds = thresholds and [float(thresholds[x]) for x in labels]
            confident = math.inf if isinstance(confident, str) else confident
            heat, confident = (None if x is None else float(x) for x in (found.pop("temperature"), confident))
            if heat is not None and not 0 < heat < math.inf:
                raise ValueError(f"a temperature of {heat}")
            return cls(heat, thresholds, confident, found)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadCheckpoint(f"{at(path)}: damaged ({type(error).__name__}: {error}); finish the run with resume=auto") from error


def named(labels: Sequence[str], probabilities: np.ndarray) -> dict[str, float]:
    return {x: round(float(p), 6) for x, p in zip(labels, probabilities, strict=True)}


def fit(logits: np.ndarray, target: np.ndarray, labels: Sequence[str], risk: float | None) -> Calibration:
    """From logits [N, C] of examples that nothing was trained on, and what they are: [N], or [N, C] of 0 and 1."""
    heat = temperature(logits, target)
    multi = target.ndim == 2
    facts: dict[str, Any] = {"rows": len(logits)}
    measured = [_measured(torch.from_numpy(logits) / t, target) for t in (1.0, heat)]
    facts |= {f"{k}_before": v for k, v in measured[0].items()} | measured[1]
    if facts["nll"] > facts["nll_before"] + 1e-6:
        raise AssertionError(f"a temperature of {heat:.3f} raised the loss that it was to lower: {facts['nll_before']} -> {facts['nll']}")
    if multi:
        probabilities = 1 / (1 + np.exp(-logits / heat))
        cuts = [threshold(p, y) for p, y in zip(probabilities.T, target.T, strict=True)]
        for name, at_ in (("macro_f1_before", np.full(len(cuts), 0.5)), ("macro_f1", np.array(cuts))):
            facts[name] = float(metrics.multi_label(target, (probabilities > at_).astype(target.dtype), labels)["macro_f1"])
        return Calibration(heat, cuts, None, facts)
    if risk is None:
        return Calibration(heat, None, None, facts)
    sure = torch.from_numpy(logits / heat).softmax(-1).amax(-1).numpy()
    confident = abstention(sure, logits.argmax(-1) == target, risk)
    confident = math.floor(confident * 1e6) / 1e6 if math.isfinite(confident) else confident  # the digits that are written down
    return Calibration(heat, None, confident, {**facts, "risk": risk, "abstained": float((sure < confident).mean())})


def temperature(logits: np.ndarray, target: np.ndarray) -> float:
    """That of the least loss (Guo et al. 2017), its logarithm drawn towards 0 by a normal prior that counts as one example would."""
    z, y = torch.from_numpy(np.asarray(logits, float)), torch.from_numpy(np.asarray(target))
    log = torch.zeros((), dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        settle([log], lambda: _nll(z * (-log).exp(), y) + log.square() / (2 * SPREAD**2 * len(z)), 0.0)
    return float(log.detach().exp())


def _nll(logits: Tensor, target: Tensor) -> Tensor:
    return (
        F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype)) if target.ndim == 2 else F.cross_entropy(logits, target.long())
    )


def _measured(logits: Tensor, target: np.ndarray) -> dict[str, float]:
    nll = float(_nll(logits.double(), torch.from_numpy(np.asarray(target))))
    if target.ndim == 2:
        return {"ece": metrics.calibration_error(logits.sigmoid().numpy().ravel(), target.ravel()), "nll": nll}
    sure, best = logits.softmax(-1).max(-1)
    return {"ece": metrics.calibration_error(sure.numpy(), best.numpy() == target), "nll": nll}


def _binary(gold: np.ndarray, p: np.ndarray, heat: float | None) -> dict[str, float]:
    """Every label of every example is a forecast of its own."""
    inside, flat = p.clip(1e-7, 1 - 1e-7), gold.ravel().astype(float)
    odds = (inside / (1 - inside)) ** (heat or 1.0)
    return {
        "ece": metrics.calibration_error(p.ravel(), flat),
        **({} if heat is None else {"ece_before": metrics.calibration_error((odds / (1 + odds)).ravel(), flat)}),
        "ece_adaptive": metrics.adaptive_calibration_error(p.ravel(), flat),
        "brier": float(((p - gold) ** 2).mean()),
        "nll": float(-np.where(gold > 0, np.log(inside), np.log(1 - inside)).mean()),
    }


def _answered(right: np.ndarray, of: int) -> dict[str, Any]:
    found: dict[str, Any] = {"abstained": 1 - len(right) / of}
    if len(right):
        wrong = (~right).astype(np.int64)
        found["error_on_answered"] = float(wrong.mean())
        found["error_on_answered_interval"] = metrics.interval(wrong[:, None], lambda s: s[:, 0] / len(wrong))
    return found


def threshold(probabilities: np.ndarray, gold: np.ndarray) -> float:
    """Of one label [N]: the cut of the highest F1 on these examples (Lipton et al. 2014), in the middle of the gap where it may lie."""
    if gold.sum() < OFTEN:
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    p, hits = probabilities[order], np.cumsum(gold[order])
    given = np.arange(1, len(p) + 1)
    f1 = 2 * hits / (given + hits[-1])
    f1[:-1][p[:-1] == p[1:]] = -1  # no cut lies between equals
    best = int(f1.argmax())
    below = p[best + 1] if best + 1 < len(p) else 0.0
    return float((p[best] + below) / 2)


def abstention(sure: np.ndarray, right: np.ndarray, risk: float) -> float:
    """The confidence from which answers are wrong less often than `risk`, with CONFIDENCE; infinite where none is known to be enough.

    Selection with guaranteed risk (Geifman and El-Yaniv 2017, algorithm 1): a binary search over the confidences that occur, each step
    judged by the exact upper bound of a binomial share (Clopper and Pearson 1934), the doubt shared among the steps.
    """
    order = np.argsort(-sure, kind="stable")
    p, wrong = sure[order], np.cumsum(~right[order])
    doubt = (1 - CONFIDENCE) / _steps(len(p))
    found, low, high = math.inf, 0, len(p) - 1
    for _ in range(_steps(len(p))):
        if low > high:
            break
        middle = (low + high) // 2
        last = int(np.searchsorted(-p, -p[middle], side="right")) - 1  # all that are as sure are answered
        if metrics.binomial_upper(int(wrong[last]), last + 1, doubt) <= risk:
            found, low = float(p[middle]), last + 1
        else:
            high = middle - 1
    return found


def _steps(rows: int) -> int:
    return max(1, math.ceil(math.log2(rows + 1)))


def refuse_too_few(rows: int | None, risk: float | None) -> None:
    """Before training: whether so many held-out examples, all answered rightly, could promise an error under `risk`."""
    if risk is None:
        return
    if rows is None:
        raise BadInput(
            f"task.risk={risk:g}: needs held-out examples, and there are none; name some with data.valid, or leave task.risk out"
        )
    if _best(rows) > risk:
        least = next(n for n in itertools.count(rows) if _best(n) <= risk)
        raise BadInput(
            f"task.risk={risk:g}: {rows:,} held-out examples cannot promise that; at least {least:,} in data.valid, or a larger task.risk"
        )


def _best(rows: int) -> float:
    """The least error that so many examples can promise."""
    return metrics.binomial_upper(0, rows, (1 - CONFIDENCE) / _steps(rows))


def last_linear(head: nn.Module, labels: int) -> nn.Linear | None:
    """The layer whose outputs are the logits, where there is one."""
    layers: Iterable[nn.Module] = head.modules()
    return next((m for m in reversed([*layers]) if isinstance(m, nn.Linear) and m.out_features == labels), None)


@torch.no_grad()
def fold(layer: nn.Linear, heat: float) -> None:
    """Divide what a layer says by a temperature."""
    layer.weight.div_(heat)
    if layer.bias is not None:
        layer.bias.div_(heat)

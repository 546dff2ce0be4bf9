"""A pretrained model says of a text which label's description fits, without an example (Yin et al. 2019): by nearness of vectors, by
filling a gap, or by entailment. What it would say of no text at all is taken out (contextual calibration, Zhao et al. 2021), or, where
that is asked, what it says of all texts together (batch calibration, Zhou et al. 2024)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslcli.classifiers.classifier import Classifier, Every, Read, Setting
from sslcli.classifiers.entailment import Entailment, entailed
from sslcli.classifiers.prompt import Prompt
from sslcli.classifiers.similarity import Similarity
from sslcli.core import Backbone, Batch

WAYS: dict[str, type[Classifier]] = {c.kind if c is not Prompt else "cloze": c for c in (Similarity, Prompt, Entailment)}
LANGUAGE_MODELS = ("ForMaskedLM", "ForCausalLM", "LMHeadModel", "ForPreTraining")  # what such an architecture's name ends with
NOTHING = "N/A"  # a text without content; besides it the empty one, and the mask


class ZeroShot(Classifier):
    kind = "zero_shot"

    def __init__(self, model: Any, tokenizer: Any, setting: Setting):
        super().__init__(model, tokenizer, setting)
        self.only("single")
        if setting.counts:
            raise ValueError("head=zero_shot: learns nothing from labels; it is for ssl evaluate with from= and task=")
        options = setting.options
        self.by = options["by"]
        if self.by == "cloze" and options["descriptions"]:
            raise ValueError("by=cloze: reads words, not data.descriptions; give task.words, or use by=embedding")
        if self.by != "cloze" and options["words"]:
            raise ValueError(f"words: by={self.by} reads none; they are for by=cloze; describe labels with data.descriptions")
        self.asked = WAYS[self.by](model, tokenizer, setting)
        self.head, self.head_kind = self.asked.head, self.asked.head_kind  # type: ignore[misc]
        self.empty = [NOTHING, *([""] if tokenizer.prefix or tokenizer.suffix or self.by != "embedding" else [])]
        self.empty += [tokenizer.hf.mask_token] if tokenizer.mask is not None else []
        self.correction = options["prior"] if options["prior"] != "auto" else "none" if self.by == "embedding" else "contextual"
        self.prior: Tensor | None = None  # log of the probabilities that are taken out [C]
        self.least: float | None = None  # a text that is less certain is for a human

    def logits(self, model: Backbone, batch: Batch) -> Tensor:
        logs = self.asked.logits(model, batch).log_softmax(-1)
        return logs if self.prior is None else logs - self.prior.to(logs.device)

    @torch.no_grad()
    def look(self, model: Backbone, read: Read, every: Every) -> None:
        """Before texts are predicted: vectors of the labels, the prior, and the certainty that leaves out the share that was asked."""
        share, self.prior, self.least = self.setting.options["abstain"], None, None
        self.asked.look(model, read, every)
        if self.correction == "contextual":
            self.prior = self.logits(model, read(self.empty)).exp().mean(0).log()
        elif self.correction == "batch":
            sums = [(self.logits(model, batch).exp().sum(0), len(owners)) for owners, batch in every()]
            self.prior = (torch.stack([s for s, _ in sums]).sum(0) / sum(n for _, n in sums)).log()
        if share is not None:
            self.least = cut(self._certainties(model, every), share)

    def _certainties(self, model: Backbone, every: Every) -> np.ndarray:
        """The highest probability of each example; windows of one are averaged, as where it is predicted."""
        found = [(owners, self.logits(model, batch).double().cpu().numpy()) for owners, batch in every()]
        owners, logits = (np.concatenate(parts) for parts in zip(*found, strict=True))
        examples, place = np.unique(owners, return_inverse=True)
        sums = np.zeros((len(examples), logits.shape[1]))
        np.add.at(sums, place, logits)
        means = sums / np.bincount(place)[:, None]
        odds = np.exp(means - means.max(1, keepdims=True))
        return 1 / odds.sum(1)

    def receipt(self) -> dict[str, Any]:
        """How labels were asked for, and what the model made of no text."""
        words = getattr(self.asked, "statements", None) or getattr(self.asked, "words", [])
        prior = None if self.prior is None else self.prior.exp().tolist()
        return {
            "by": self.by,
            "read": dict(zip(self.setting.labels, words, strict=True)),
            "correction": self.correction,
            "prior": None if prior is None else {x: round(p, 6) for x, p in zip(self.setting.labels, prior, strict=True)},
            "abstain_below": self.least,
        }


def cut(certainty: np.ndarray, share: float) -> float:
    """The certainty below which this share of examples lies, rounded down; in the middle of a gap, so that rounding moves nobody over."""
    order, under = np.sort(certainty), int(share * len(certainty) + 1e-9)
    return float((order[under - 1] + order[under]) / 2) if under else 0.0


def way(by: str, model: Any) -> str:
    """What `auto` means for a model, as its config.json describes it; ValueError where the model has not what is asked."""
    fills = any(str(name).endswith(LANGUAGE_MODELS) for name in model.architectures or ())
    entails = entailed(model) is not None
    if by == "nli" and not entails:
        raise ValueError("by=nli: this model does not say entailment or contradiction; name an NLI model with from=, or use by=embedding")
    if by == "cloze" and not fills:
        raise ValueError("by=cloze: this model has no language model's head; name a masked or causal language model, or use by=embedding")
    return by if by != "auto" else "nli" if entails else "cloze" if fills else "embedding"

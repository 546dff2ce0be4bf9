"""A language model fills the gap of a sentence about the text, and each label has a word (PET, Schick and Schuetze 2021)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sslcli.classifiers.classifier import Classifier, Setting
from sslcli.core import Backbone, Batch
from sslcli.data.cloze import Cloze
from sslcli.data.labels import named
from sslcli.errors import printable


class Prompt(Classifier):
    """The pretrained head itself is tuned: nothing begins untrained. A word of several tokens has the mean of their logits."""

    kind, head_kind, mixable = "prompt", "language_model", False

    def __init__(self, model: Any, tokenizer: Any, setting: Setting):
        super().__init__(model, tokenizer, setting)
        self.only("single", "ordinal")
        if model.loaded["from"] is None:
            raise ValueError(f"head={self.kind}: asks a pretrained language model; name one with from=")
        cloze = Cloze(setting.options["template"], tokenizer)
        if cloze.fixed >= tokenizer.length:
            raise ValueError(f"template: its {cloze.fixed} tokens leave no room for a text in {tokenizer.length}; raise data.max_length")
        self.words = spoken(setting.labels, setting.options["words"])
        coded = cloze.words(self.words, tokenizer)
        for i, ids in enumerate(coded):
            if (same := coded.index(ids)) < i:
                words = f"{printable(self.words[same])} and {printable(self.words[i])}"
                raise ValueError(f"words: {words} are the same tokens to this model; give other words with task.words")
        self.tokens = torch.tensor([t for ids in coded for t in ids])  # [n]
        self.share = torch.block_diag(*(torch.full((1, len(ids)), 1 / len(ids)) for ids in coded))  # [C, n]
        self.head_kind = "causal_lm" if model.decoder else "masked_lm"  # type: ignore[misc]
        self.head = model.head(self.head_kind)

    def logits(self, model: Backbone, batch: Batch) -> Tensor:
        """[B, labels]; of texts without a template what the language model says of each place, [B, T, V], which an export repeats."""
        head: Any = self.head
        hidden = model.encode(batch)
        if "where" not in batch:
            return head(hidden)
        at, tokens = hidden[torch.arange(len(hidden), device=hidden.device), batch["where"]], self.tokens.to(hidden.device)
        if head.splits:
            bias = None if head.bias is None else head.bias[tokens]
            logits = F.linear(head.features(at), head.weight[tokens], bias)
        else:
            logits = head(at[None])[0][:, tokens]
        return logits.float() @ self.share.t().to(hidden.device)


def spoken(labels: Sequence[str], words: Mapping[Any, str] | None) -> list[str]:
    """A word for every label: the one that it was given, or its own name."""
    given = {named(label): word for label, word in (words or {}).items()}
    if strange := next((x for x in given if x not in labels), None):
        raise ValueError(f"words.{printable(strange)}: no such label; the labels are {printable(', '.join(labels), 200)}")
    if words and (missing := next((x for x in labels if x not in given), None)):
        raise ValueError(f"words: none for label {printable(missing)}; give one, or none at all to use the labels' names")
    return [given.get(x, x.replace("_", " ").strip()) for x in labels]

"""What is said of a label, and a statement set behind a text as models of two texts (entailment) read them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from sslcli.data.labels import named
from sslcli.errors import printable

LABEL = "{label}"
ABOUT, ABOUT_ZH = "This text is about {label}.", "这段文字的内容是{label}。"
Descriptions: TypeAlias = Mapping[Any, str] | Sequence[str] | None
HAN = re.compile("[\u4e00-\u9fff]")


def wrong(template: str | None) -> str | None:
    """A sentence about a template that cannot be used."""
    if template is None or template.count(LABEL) == 1:
        return None
    return f"hypothesis={printable(template)}: holds {LABEL} {template.count(LABEL)} times; write it once"


def described(labels: Sequence[str], descriptions: Descriptions) -> dict[str, str]:
    """Label -> description, of those that have one. A list has one for each, in their order."""
    if isinstance(descriptions, Mapping):
        return {named(label): text.strip() for label, text in descriptions.items()}
    if descriptions and len(descriptions) != len(labels):
        raise ValueError(
            f"data.descriptions: {len(descriptions)} of them for {len(labels)} labels; give one for each, or label: description"
        )
    return dict(zip(labels, descriptions or (), strict=False))


def phrases(labels: Sequence[str], descriptions: Descriptions) -> list[str]:
    """Of each label its description, or else its name."""
    given = described(labels, descriptions)
    if strange := next((x for x in given if x not in labels), None):
        raise ValueError(f"data.descriptions.{printable(strange)}: no such label; data.labels are {printable(', '.join(labels), 200)}")
    found = [given.get(x) or x.replace("_", " ").strip() for x in labels]
    for i, text in enumerate(found):
        if (same := found.index(text)) < i:
            both = f"labels {printable(labels[same])} and {printable(labels[i])}"
            raise ValueError(f"{both}: both read {printable(text, 80)}; tell them apart with data.descriptions")
    return found


def stated(phrases: Sequence[str], template: str | None) -> list[str]:
    """Each phrase in a sentence: that of the template, or one in the phrases' language."""
    template = template or (ABOUT_ZH if any(map(HAN.search, phrases)) else ABOUT)
    return [template.replace(LABEL, phrase) for phrase in phrases]


class Pair:
    """How a tokenizer sets two texts: before them, between them, behind them, and which tokens count as the second's."""

    def __init__(self, tokenizer: Any):
        coded = tokenizer.hf("a", "a", return_special_tokens_mask=True)
        inner = np.flatnonzero(np.array(coded["special_tokens_mask"]) == 0)
        ids, gap = coded["input_ids"], int(np.diff(inner).argmax())
        if len(inner) < 2 or inner[gap + 1] == inner[gap] + 1:
            raise ValueError("by=nli: this tokenizer puts nothing between two texts; use by=embedding or by=cloze")
        self.before = np.array(ids[: inner[0]], np.int64)
        self.between = np.array(ids[inner[gap] + 1 : inner[gap + 1]], np.int64)
        self.after = np.array(ids[inner[-1] + 1 :], np.int64)
        types = coded.get("token_type_ids")
        self.types = None if types is None else (types[0], types[inner[gap] + 1 : inner[gap + 1]], types[inner[-1]], types[inner[-1] + 1 :])

    def room(self, tokenizer: Any, statements: Sequence[str]) -> int:
        """Tokens of a row that are not the text's."""
        longest = int(tokenizer.encoder.encode(statements)[1].max())
        return len(self.before) + len(self.between) + longest + len(self.after)

    def row(self, text: np.ndarray, statement: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """(tokens, token types or None) of a text and a statement, both without ends."""
        ids = np.concatenate([self.before, text, self.between, statement, self.after])
        if self.types is None:
            return ids, None
        first, between, second, after = self.types
        return ids, np.array([*[first] * (len(self.before) + len(text)), *between, *[second] * len(statement), *after], np.int64)

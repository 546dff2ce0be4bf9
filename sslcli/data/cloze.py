"""A text inside a sentence with a gap, as in `{text} It was [MASK].`, and the words that may fill it (PET, Schick and Schuetze 2021)."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from sslcli.errors import printable

TEXT, GAP = "{text}", "[MASK]"


def wrong(template: str) -> str | None:
    """A sentence about a template that cannot be used."""
    missing = next((part for part in (TEXT, GAP) if template.count(part) != 1), None)
    return None if missing is None else f"template={printable(template)}: holds {missing} {template.count(missing)} times; write it once"


class Cloze:
    """A template in a tokenizer's tokens. A decoder fills what comes next: for it the template ends at the gap."""

    def __init__(self, template: str, tokenizer: Any):
        if reason := wrong(template):
            raise ValueError(reason)
        self.decoder = tokenizer.mask is None
        if self.decoder and template.index(GAP) < template.index(TEXT):
            raise ValueError(f"template={printable(template)}: this model reads left to right; put {GAP} after {TEXT}")
        parts = re.split(rf"({re.escape(TEXT)}|{re.escape(GAP)})", template)
        if self.decoder:
            parts = parts[: parts.index(GAP) + 1]
        self.spaced = parts[parts.index(GAP) - 1].endswith(" ")  # then the word brings its space: tokens of many vocabularies do
        parts[parts.index(GAP) - 1] = parts[parts.index(GAP) - 1].rstrip(" ")
        gap = [] if self.decoder else [tokenizer.mask]
        coded = [None if p == TEXT else gap if p == GAP else _ids(tokenizer, p) for p in parts]
        at = coded.index(None)
        before, after = ([i for ids in side for i in ids or []] for side in (coded[:at], coded[at + 1 :]))
        self.before = np.array([*tokenizer.prefix, *before], np.uint32)
        self.after = np.array([*after, *([] if self.decoder else tokenizer.suffix)], np.uint32)
        self.mask = tokenizer.mask
        self.fixed = len(self.before) + len(self.after)  # tokens beside the text's

    def row(self, ids: np.ndarray) -> tuple[np.ndarray, int]:
        """(tokens of the sentence with this text in it, place whose state fills the gap)."""
        whole = np.concatenate([self.before, ids, self.after])
        if self.decoder:
            return whole, len(whole) - 1
        first = np.flatnonzero(self.before == self.mask)
        return whole, int(first[0]) if len(first) else len(self.before) + len(ids) + int(np.flatnonzero(self.after == self.mask)[0])

    def words(self, words: Sequence[str], tokenizer: Any) -> list[list[int]]:
        """Tokens of each word as it would stand in the gap."""
        found = [_ids(tokenizer, f" {word}" if self.spaced else word) for word in words]
        for word, ids in zip(words, found, strict=True):
            if not ids or (tokenizer.unknown is not None and tokenizer.unknown in ids):
                raise ValueError(f"words: {printable(word)} is not in this model's vocabulary; give another word with task.words")
        return found


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encoder.encode([text])[0].tolist() if text else []

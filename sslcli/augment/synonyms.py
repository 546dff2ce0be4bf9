"""Words that may stand for another: out of a file, or the nearest neighbours in a network's own table of input embeddings."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from sslcli.errors import BadInput, printable

NEAR, LEAST = 5, 0.35  # neighbours of a word, and the cosine under which a word is none (of centred embeddings)
LETTERS = re.compile(r"[^\W\d_]{2,}|[\u4e00-\u9fff]")


class File:
    """`word<TAB>synonym synonym ...` a line. `key`: of the configuration, that named the file."""

    def __init__(self, path: Path, key: str = "synonyms"):
        self.said = f"{key} from a file"
        self.table: dict[str, list[str]] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"augment.{key}={printable(path)}: cannot be read: {printable(error, 120)}") from error
        for number, line in enumerate(lines, 1):
            word, tab, rest = line.partition("\t")
            if line.strip() and not (tab and rest.split()):
                raise BadInput(f"{printable(path)}:{number}: expected a word, a tab, and its {key}")
            if tab:
                self.table.setdefault(word.strip().lower(), []).extend(rest.split())

    def __call__(self, word: str) -> Sequence[str]:
        return self.table.get(word.lower(), ())


class Neighbours:
    """Whole words of the vocabulary whose embeddings point the same way as this one's did when the run began. They stand in like places;
    opposites do too, so they are weaker than a thesaurus."""

    said = "synonyms are the nearest words in the model's own input embeddings (no thesaurus: opposites can be among them)"

    def __init__(self, model: Any, tokenizer: Any):
        names = tokenizer.hf.convert_ids_to_tokens(list(range(tokenizer.size)))
        marks = next((m for m in ("Ġ", "▁") if sum(str(n).startswith(m) for n in names) > 100), None)
        places: dict[str, int] = {}
        for i, name in enumerate(map(str, names)):
            word = name if marks is None else name[1:] if name.startswith(marks) else ""
            if not tokenizer.special[i] and LETTERS.fullmatch(word):
                places[word] = i
        self.words, ids = list(places), list(places.values())
        self.ids = {word: i for i, word in enumerate(self.words)}
        table = model.embedding.weight.detach()[ids].float().cpu()
        self.table = F.normalize(table - table.mean(0), dim=-1) if ids else table
        self.found: dict[str, Sequence[str]] = {}

    def __call__(self, word: str) -> Sequence[str]:
        if word not in self.found:
            known = self.ids.get(word, self.ids.get(word.lower()))
            self.found[word] = () if known is None else self._near(known)
        return self.found[word]

    @torch.no_grad()
    def _near(self, known: int) -> Sequence[str]:
        cosine, order = (self.table @ self.table[known]).topk(min(3 * NEAR, len(self.table)))
        own = self.words[known].lower()
        near = [self.words[i] for c, i in zip(cosine.tolist(), order.tolist(), strict=True) if c >= LEAST]
        return [w for w in near if not _same(w.lower(), own)][:NEAR]


def _same(one: str, other: str) -> bool:
    """Another form of a word (plural, capital) is no synonym."""
    return one == other or (min(len(one), len(other)) > 3 and (one.startswith(other) or other.startswith(one)))

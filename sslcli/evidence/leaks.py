"""Leak radar: rows of one part of the data that stand in another as well: word for word, nearly so, or in long pieces.

A score on test rows that were trained on says nothing. Texts are compared as hashes of their words, so that line breaks, case and
punctuation hide nothing; memory is some 400 bytes a short text.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import Any

import numpy as np

from sslcli.evidence import minhash
from sslcli.evidence.shingles import distinct, mixed, polynomial, within, words

ORDER = ("unlabelled", "train", "valid", "test")
ALIKE = 0.6  # Jaccard similarity of words and pairs of words: one word in ten changed leaves 0.7
SHORT = 4  # words; a shorter text is a leak only if it is the same word for word
GRAM, SHARE = 13, 0.5  # words in a row (Brown et al. 2020), and the share of a text's that makes it a leak
CHUNK = 20_000  # texts that are hashed together
KINDS = ("exact", "near", "piece")


@dataclass(frozen=True)
class Pair:
    kind: str
    first: int  # row of the part that was learnt from
    second: int  # row of the part that is scored
    similarity: float


@dataclass
class Sketch:
    """What is compared of the texts of a part."""

    exact: np.ndarray  # [N] uint64, of all words in order; 0: there are none
    lengths: np.ndarray  # [N], in words
    features: np.ndarray  # uint32, the words and pairs of words of each text, one text after the other
    counts: np.ndarray  # [N], of features
    bands: np.ndarray  # [N, BANDS]
    grams: np.ndarray  # uint64, of GRAM words in a row
    owners: np.ndarray  # of grams

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Sketch":
        waiting = iter(texts)
        parts: list[tuple[np.ndarray, ...]] = []
        first = 0
        while chunk := list(islice(waiting, CHUNK)):
            parts.append(_sketched(chunk, first))
            first += len(chunk)
        parts = parts or [_sketched([""], 0)]
        columns = list(zip(*parts, strict=True))
        del parts
        return cls(*(np.concatenate(columns.pop(0)) for _ in range(7)))

    def __len__(self) -> int:
        return len(self.exact)


def _sketched(texts: Sequence[str], first: int) -> tuple[np.ndarray, ...]:
    hashes, counts = words(texts)
    ends = np.cumsum(counts)
    exact = mixed(polynomial(hashes, ends - counts, ends)) * (counts > 0)
    owners = np.repeat(np.arange(len(texts), dtype=np.uint64), counts)
    two = within(counts, 2)
    pairs = mixed(hashes[two] * np.uint64(3) + hashes[two + 1]) if len(two) else hashes[:0]
    keys = np.concatenate([owners << np.uint64(32) | hashes >> np.uint64(32), owners[two] << np.uint64(32) | pairs >> np.uint64(32)])
    keys = distinct(keys)
    features = (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    sizes = np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=len(texts))
    many = within(counts, GRAM)
    grams = mixed(polynomial(hashes, many, many + GRAM))
    return exact, counts, features, sizes, minhash.signatures(features, sizes), grams, owners[many].astype(np.int64) + first


def between(first: Sketch, second: Sketch) -> list[Pair]:
    """For each row of the second part the row of the first that it is most like, if it is like one."""
    order = np.argsort(first.exact, kind="stable")
    place = np.minimum(np.searchsorted(first.exact[order], second.exact), len(order) - 1)
    same = (first.exact[order][place] == second.exact) & (second.exact != 0)
    found = {int(row): Pair("exact", int(order[place[row]]), int(row), 1.0) for row in np.flatnonzero(same)}
    for pair in (*_near(first, second, ~same), *_pieces(first, second)):
        found.setdefault(pair.second, pair)
    return [found[row] for row in sorted(found)]


def _near(first: Sketch, second: Sketch, wanted: np.ndarray) -> Iterator[Pair]:
    # of texts that are there many times, one stands for all
    ours = np.sort(np.unique(first.exact, return_index=True)[1])
    ours = ours[first.lengths[ours] >= SHORT]
    theirs = np.flatnonzero(wanted & (second.lengths >= SHORT))
    if not len(ours) or not len(theirs):
        return
    pairs = minhash.candidates(first.bands[ours], second.bands[theirs])
    pairs = np.stack([ours[pairs[:, 0]], theirs[pairs[:, 1]]], 1)
    likeness = minhash.jaccard((first.features, first.counts), (second.features, second.counts), pairs)
    best = np.lexsort((-likeness, pairs[:, 1]))
    best = best[likeness[best] >= ALIKE]
    best = best[np.unique(pairs[best, 1], return_index=True)[1]]
    for i in best:
        yield Pair("near", int(pairs[i, 0]), int(pairs[i, 1]), round(float(likeness[i]), 4))


def _pieces(first: Sketch, second: Sketch) -> Iterator[Pair]:
    """Texts of which long pieces stand in one of the other part, such as a document that quotes them."""
    if not len(first.grams) or not len(second.grams):
        return
    order = np.argsort(first.grams, kind="stable")
    place = np.minimum(np.searchsorted(first.grams[order], second.grams), len(order) - 1)
    hit = first.grams[order[place]] == second.grams
    shares = np.bincount(second.owners, hit, len(second)) / np.maximum(np.bincount(second.owners, minlength=len(second)), 1)
    rows, at = np.unique(second.owners[hit], return_index=True)
    origin = first.owners[order[place[hit]][at]] if len(rows) else rows
    for row, source in zip(rows.tolist(), origin.tolist(), strict=True):
        if shares[row] >= SHARE:
            yield Pair("piece", source, row, round(float(shares[row]), 4))


@dataclass
class Leaks:
    rows: dict[str, int]  # by part
    pairs: dict[tuple[str, str], list[Pair]] = field(default_factory=dict)

    def leaked(self, part: str, others: Sequence[str] = ("train",)) -> list[int]:
        """Rows of a part that stand in one of the others."""
        return sorted({p.second for (one, two), found in self.pairs.items() if two == part and one in others for p in found})

    def summary(self) -> list[dict[str, Any]]:
        found = []
        for (one, two), pairs in self.pairs.items():
            by_kind = {kind: sum(p.kind == kind for p in pairs) for kind in KINDS}
            found.append({"part": two, "in": one, **by_kind, "rows": len(pairs), "share": round(len(pairs) / max(self.rows[two], 1), 6)})
        return found


def radar(parts: Mapping[str, Any], compare: Any = between) -> Leaks:
    """Every part against those before it. `parts`: sketches by name."""
    named = [name for name in ORDER if name in parts]
    found = Leaks({name: len(parts[name]) for name in named})
    for one, two in combinations(named, 2):
        found.pairs[one, two] = compare(parts[one], parts[two])
    return found

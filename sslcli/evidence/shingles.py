"""Texts as hashes of their words, whatever the case, the punctuation and the line breaks; a Chinese character is a word of its own."""

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np

APART, LETTER, ALONE, GONE = range(4)  # between words; of a word; a word by itself; as if it were not there
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
APOSTROPHES = "'’ʼ`´"
CJK = ((0x2E80, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


def words(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of all words, one text after the other [W] uint64; how many each text has [N])."""
    joined = "\0".join(t.replace("\0", " ") for t in texts)
    plain = unicodedata.normalize("NFKC", joined).casefold()
    codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _kinds()[codes]
    codes, kinds = codes[kinds != GONE], kinds[kinds != GONE]
    padded = np.concatenate([[APART], kinds, [APART]])
    letter, alone = kinds == LETTER, kinds == ALONE
    starts = np.flatnonzero(alone | (letter & (padded[:-2] != LETTER)))
    ends = np.flatnonzero(alone | (letter & (padded[2:] != LETTER))) + 1
    hashes = mixed(polynomial(mixed(codes.astype(np.uint64)), starts, ends))
    owners = np.cumsum(codes == 0)[starts] if len(starts) else starts
    return hashes, np.bincount(owners, minlength=len(texts))


def polynomial(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """A hash of each run values[start:end] that does not depend on where it stands: differences of one prefix sum."""
    powers, inverses = _powers(1 << max(10, len(values).bit_length()))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values * powers[: len(values)], dtype=np.uint64)])
    return (sums[ends] - sums[starts]) * inverses[starts]


def mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer: neighbouring numbers become unlike ones."""
    x = values + BASE
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def within(counts: np.ndarray, length: int) -> np.ndarray:
    """Where runs of so many words begin that lie inside one text."""
    ends = np.repeat(np.cumsum(counts), counts)
    places = np.arange(len(ends))
    return places[places + length <= ends]


@cache
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(over="ignore"):
        powers = [np.cumprod(np.full(count, b, np.uint64), dtype=np.uint64) for b in (BASE, INVERSE)]
    one = np.ones(1, np.uint64)
    return tuple(np.concatenate([one, p[:-1]]) for p in powers)  # type: ignore[return-value]


@cache
def _kinds() -> np.ndarray:
    """What every character is."""
    table = np.full(0x110000, APART, np.uint8)
    for code in range(1, 0x32000):
        category = unicodedata.category(chr(code))
        table[code] = LETTER if category[0] in "LNM" else ALONE if category in ("So", "Sm", "Sc") else APART
    for low, high in CJK:
        part = table[low : high + 1]
        part[part == LETTER] = ALONE
    table[[ord(c) for c in APOSTROPHES]] = GONE
    return table


def distinct(values: np.ndarray) -> np.ndarray:
    """In order, each once. Sorted: np.unique of integers goes by a hash table, which takes 35 times as long on millions (numpy 2.4)."""
    ordered = np.sort(values)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)]]

"""Characters that are taken for another: by their looks, or by their sound. Derived from what Python itself knows, or out of a file.

Latin: digits and letters of much the same shape, and letters with a mark. Chinese: GB 2312 lists its 3,755 commonest characters by their
sound (pinyin), so that neighbours there are mostly homophones (of those at most two places apart 85 %, by the readings of pypinyin);
Unicode lists characters by radical and strokes, so that neighbours, rare ones left out, mostly share the radical. Characters that
GB 2312 lacks, traditional ones among them, have none.
"""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Literal

Confusions = Callable[[str], Sequence[str]]
By = Literal["look", "sound"]
NEAR = 2  # places in those lists
SHAPES = ("0oOQ", "1lIi|", "2zZ", "5sS", "8B", "6b", "9gq", "uv", "cC", "nh", "ceo", "UV", "EF", "PR", "MN")
TWO = {"m": ["rn", "nn"], "w": ["vv"], "d": ["cl"]}  # letters that look like two
COMMON, ALL = (0xB0, 0xD8), (0xB0, 0xF8)  # rows of GB 2312: its first level, and both


class Lookalikes:
    """Of a character, by its looks, its sound, or both."""

    def __init__(self, by: Iterable[By]):
        self.by = tuple(by)

    def __call__(self, character: str) -> Sequence[str]:
        found: list[str] = []
        for by in self.by:
            found += [c for c in (looks(character) if by == "look" else sounds(character)) if c not in found]
        return found


@cache
def looks(character: str) -> Sequence[str]:
    alike = [c for shape in SHAPES if character in shape for c in shape if c != character]
    return [*dict.fromkeys([*alike, *TWO.get(character, []), *_marked().get(character, []), *_beside(character, _by_shape())])]


@cache
def sounds(character: str) -> Sequence[str]:
    return _beside(character, _by_sound())


def _beside(character: str, order: tuple[str, dict[str, int]]) -> list[str]:
    characters, places = order
    at = places.get(character)
    return [] if at is None else [c for c in characters[max(0, at - NEAR) : at + NEAR + 1] if c != character]


@cache
def _marked() -> dict[str, list[str]]:
    """Letters of Latin-1 and Latin Extended-A that are a plain one with a mark, by their Unicode names."""
    found: dict[str, list[str]] = {}
    for character in map(chr, range(0xC0, 0x180)):
        plain, has, _ = unicodedata.name(character, "").partition(" WITH ")
        kind, _, letter = plain.rpartition(" ")
        if has and len(letter) == 1 and kind in ("LATIN SMALL LETTER", "LATIN CAPITAL LETTER"):
            found.setdefault(letter if "CAPITAL" in kind else letter.lower(), []).append(character)
    return found


def _listed(rows: tuple[int, int]) -> list[str]:
    """Chinese characters of GB 2312, in its order."""
    coded = (bytes([row, cell]).decode("gb2312", "ignore") for row in range(*rows) for cell in range(0xA1, 0xFF))
    return [c for c in coded if c]


@cache
def _by_sound() -> tuple[str, dict[str, int]]:
    return _placed(_listed(COMMON))


@cache
def _by_shape() -> tuple[str, dict[str, int]]:
    return _placed(sorted(_listed(ALL)))


def _placed(characters: list[str]) -> tuple[str, dict[str, int]]:
    return "".join(characters), {c: i for i, c in enumerate(characters)}

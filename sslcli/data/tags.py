"""Tag schemes of entities: whatever scheme the data is in becomes BIO, and broken sequences are mended by one rule, counted.

The rule is conlleval's: an entity begins at B, at an I that follows no I or B of its own type, at S (single) and at U (unit).
"""

from collections.abc import Sequence

SCHEMES = {"B": "B", "I": "I", "E": "I", "L": "I", "S": "B", "U": "B", "M": "I", "W": "B"}
BARE, UNNAMED = ("B", "I", "E", "S", "L", "U"), "entity"  # marks that stand alone where all entities are of one kind


def to_bio(tags: Sequence[str]) -> tuple[list[str], int]:
    """(BIO tags, how many of the I tags began an entity that no B had begun)."""
    made: list[str] = []
    mended, inside = 0, ""
    ended = False  # the last tag was E, L, S or U: what follows is another entity
    for tag in tags:
        mark, kind = split(tag)
        if not mark:
            made.append("O")
            inside, ended = "", False
            continue
        begins = SCHEMES[mark] == "B" or inside != kind or ended
        mended += begins and SCHEMES[mark] == "I"
        made.append(("B-" if begins else "I-") + kind)
        inside, ended = kind, mark in "ELSUW"
    return made, mended


def split(tag: str) -> tuple[str, str]:
    """("B", "PER") of "B-PER"; ("I", "PER") of a bare "PER" (IO without marks); ("B", "entity") of a bare "B"; ("", "") of O."""
    if tag in ("O", "o", ""):
        return "", ""
    if len(tag) > 2 and tag[1] in "-_" and tag[0] in SCHEMES:
        return tag[0], tag[2:]
    if tag in BARE:
        return tag, UNNAMED
    return "I", tag


def scheme(marks: set[str]) -> str:
    """The name of the scheme that uses these marks."""
    if marks & {"E", "S"} or marks & {"L", "U"}:
        return "BIOES" if marks & {"E", "S"} else "BILOU"
    return "BIO" if "B" in marks else "IO"

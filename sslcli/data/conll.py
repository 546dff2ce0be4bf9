"""CoNLL columns: a word and its tag a line (first and last column), a blank line between sentences."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sslcli.data.lines import Bad, lines


def records(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]] | Bad]:
    """Sentences as {"tokens": [...], "tags": [...]}, numbered by their first line."""
    tokens: list[str] = []
    tags: list[str] = []
    begins, width, spoilt = 0, 0, False
    for line in lines(path, encoding):
        if isinstance(line, Bad):
            yield line
            if line.fatal:
                return
            spoilt = True
            continue
        number, offset, text = line
        text = text.strip()
        if not text or text.startswith("-DOCSTART-"):
            if tokens and not spoilt:
                yield begins, {"tokens": tokens, "tags": tags}
            tokens, tags, spoilt = [], [], False
            continue
        columns = text.split("\t") if "\t" in text else text.split()
        if text.startswith("# ") and (len(columns) != width if tokens else not (len(columns) == 2 and _is_tag(columns[1]))):
            continue  # a comment of CoNLL-U and its relatives
        width = width or len(columns)
        if len(columns) != width or len(columns) < 2:
            expected = f"{width} columns as before" if width >= 2 else "a word and a tag"
            yield Bad(number, f"{len(columns)} column{'s' * (len(columns) != 1)}; expected {expected}", offset)
            spoilt, width = True, width if width >= 2 else 0
            continue
        if not tokens:
            begins = number
        tokens.append(columns[0])
        tags.append(columns[-1])
    if tokens and not spoilt:
        yield begins, {"tokens": tokens, "tags": tags}


def looks_like(sample: list[str]) -> bool:
    """Whether these lines are words with tags: the same two or more columns, tags like O, B-PER, I-PER, S-X, E-X."""
    rows = [
        line.split("\t") if "\t" in line else line.split() for line in sample if line.strip() and not line.startswith(("#", "-DOCSTART-"))
    ]
    if not rows or any(len(r) < 2 for r in rows) or len({len(r) for r in rows}) > 1:
        return False
    return sum(_is_tag(r[-1]) for r in rows) >= 0.9 * len(rows)


def _is_tag(text: str) -> bool:
    return text == "O" or (len(text) > 2 and text[0] in "BIESLU" and text[1] in "-_")

"""Texts side by side: pairs with a score, and how every text of them is laid down."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sslcli.data.examples import Rows
from sslcli.data.reader import number
from sslcli.data.survey import Unlabelled
from sslcli.data.tokenizer import Tokenizer
from sslcli.errors import BadInput


class PairCoder(Unlabelled):
    """How pairs of texts are read (data.survey.Coder): a row is a pair, `ids` of the one text and `ids_b` of the other."""

    columns: Sequence[str] = ("text_a", "text_b", "score")
    unseen = True
    too_long = "truncate"
    along: Mapping[str, Any] = {"ids_b": np.uint32}
    beside: Mapping[str, Any] = {"score": np.float32}

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}

    def identity(self) -> Any:
        return list(self.columns)

    def tidy(self, example: dict[str, Any]) -> str | None:
        example["score"] = number(example["score"])
        return None

    def gold(self, example: dict[str, Any]) -> Any:
        return example["score"]

    def rows(self, examples: Sequence[dict[str, Any]], labels: Mapping[str, int], tokenizer: Tokenizer, limit: int, too_long: str) -> Rows:
        made = Rows(along={"ids_b": []}, beside={"score": []})
        sides = [laid(tokenizer, [e[role] for e in examples], limit, too_long) for role in ("text_a", "text_b")]
        for i, (a, b) in enumerate(zip(*sides, strict=True)):
            if kept(made, (a, b), too_long):
                made.ids.append(a[0])
                made.along["ids_b"].append(b[0])
                made.beside["score"].append(examples[i]["score"])
                made.owner.append(i)
        return made


Laid = tuple[np.ndarray, int]  # ids between the tokenizer's ends, and how many of the text did not fit


def laid(tokenizer: Tokenizer, texts: Sequence[str], limit: int, too_long: str = "truncate") -> list[Laid]:
    if too_long == "window":
        raise BadInput("data.too_long=window: texts that are compared are read whole; use truncate, drop or error")
    flat, lengths = tokenizer.encoder.encode(texts)
    limit -= len(tokenizer.prefix) + len(tokenizer.suffix)
    prefix, suffix = np.array(tokenizer.prefix, np.uint32), np.array(tokenizer.suffix, np.uint32)
    pieces = np.split(flat, np.cumsum(lengths)[:-1])
    return [(np.concatenate([prefix, ids[:limit], suffix]).astype(np.uint32), max(0, len(ids) - limit)) for ids in pieces]


def kept(made: Rows, sides: Sequence[Laid], too_long: str) -> bool:
    """Whether an example of these texts is a row; what is cut of it is counted."""
    over = sum(cut for _, cut in sides)
    if not over:
        return True
    dropped = too_long == "drop"
    made.cut_rows += 1
    made.cut_tokens += sum(len(ids) + cut for ids, cut in sides) if dropped else over
    made.dropped += dropped
    return not dropped

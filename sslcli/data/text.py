"""The `data` node of text runs: what the user said about the data, and the sources it names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from sslcli.data.reader import Reader, named
from sslcli.data.source import Source, embedded, open_source
from sslcli.data.store import Store
from sslcli.errors import BadInput, printable

Where = str | list[str] | None
# numbers are labels too; true and false may be a misread yes and no (YAML's Norway), and are refused
Label = Annotated[
    str, BeforeValidator(lambda given: given if isinstance(given, bool) or not isinstance(given, (int, float)) else named(given))
]
Role = Literal["text", "label", "tokens", "tags", "text_a", "text_b", "score", "positives", "negative", "id", "passage", "source"]


class TextData:
    corpus_roles: Sequence[str] = ("text",)  # what is read of a corpus
    verbatim = False  # whether its text is kept beside its tokens

    def __init__(
        self,
        seed: int,
        *,
        train: Where,
        valid: Where,
        test: Where,
        columns: dict[Role, str | None],
        encoding: str,
        delimiter: Literal["tab"] | Annotated[str, Field(min_length=1, max_length=1)] | None,
        labels: list[Label] | None,
        max_length: Annotated[int, Field(ge=8)] | None,
        too_long: Literal["truncate", "window", "drop", "error"] | None,
        shots: Annotated[int, Field(ge=1)] | None,
        valid_fraction: Annotated[float, Field(gt=0, lt=1)],
        on_bad_record: Literal["fail", "skip"],
        allow_empty: bool,
        allow_changed: bool,
        gallery: Where = None,
        pairs: Where = None,
        unlabelled: Where = None,
        descriptions: dict[Any, str] | list[str] | None = None,
    ):
        self.seed, self.train, self.valid, self.test, self.gallery, self.pairs = seed, train, valid, test, gallery, pairs
        self.unlabelled = train if unlabelled is None else unlabelled
        self.columns, self.encoding, self.delimiter, self.labels = columns, encoding, delimiter, labels
        self.max_length, self.too_long, self.shots, self.valid_fraction = max_length, too_long, shots, valid_fraction
        self.descriptions = descriptions  # of labels, for a model that was trained on none
        self.on_bad_record, self.allow_empty, self.allow_changed = on_bad_record, allow_empty, allow_changed

    @staticmethod
    def contradiction(keys: Mapping[str, Any]) -> str | None:
        try:
            "".encode(keys["encoding"])
        except LookupError:
            return f"encoding={printable(keys['encoding'])}: no such encoding; utf-8, gb18030, latin-1, ... are known"
        return None

    def source(self, split: str, tagged: bool) -> Source | None:
        spec = getattr(self, split)
        if spec is None and split == "test" and embedded(self.train) and self.train != "docstrings":
            spec = "docstrings:test"  # the embedded labelled set brings its own test
        if spec is None:
            return None
        return open_source(f"data.{split}", spec, encoding=self.encoding, delimiter=self.delimiter, tagged=tagged, seed=self.seed)

    @property
    def has_test(self) -> bool:
        return self.source("test", False) is not None

    @staticmethod
    def prepared(done: int) -> str:
        return f"{done / 1e6:,.1f} MB of text"

    def reader(self, split: str, roles: Sequence[str], optional: Sequence[str] = ()) -> Reader | None:
        """`optional`: roles that are read where a column plays them."""
        source = self.source(split, "tags" in roles)
        if source is None:
            if split == "train":
                raise BadInput("data.train: missing; name a file, a glob, a folder, hf:<name>, or - for standard input")
            return None
        named = {str(k): v for k, v in self.columns.items()}
        return Reader(f"data.{split}", source, (*roles, *optional), named, self.on_bad_record, self.allow_empty, optional)


def texts(example: Mapping[str, Any]) -> list[str]:
    """All that is text in an example: its words as one, its sides one by one."""
    if "tokens" in example:
        return [" ".join(example["tokens"])]
    found = [v for role in ("text", "text_a", "text_b", "positives", "negative") for v in listed(example.get(role))]
    return [v for v in found if isinstance(v, str)]


def listed(value: Any) -> list[Any]:
    """One, several or none, as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


@dataclass
class Prepared:
    """What preparing the data gave: stores by split, and the facts for data.json and the screen."""

    stores: dict[str, Store]
    facts: dict[str, Any]
    labels: list[str]
    bad: list[dict[str, Any]]


def held_out(seed: int, strata: Sequence[int], fraction: float, pooled: bool = False) -> np.ndarray:
    """Indices of a stratified held-out part: `fraction` of every stratum, at least one row of those with two or more. `pooled`: strata
    too small to give a row are drawn from together (lists of labels, of which most stand there once or twice)."""
    groups: dict[int, list[int]] = {}
    for i, stratum in enumerate(strata):
        groups.setdefault(stratum, []).append(i)
    if pooled:
        small = [stratum for stratum, members in groups.items() if len(members) * fraction < 1]
        groups |= {-1: sorted(i for stratum in small for i in groups.pop(stratum))} if small else {}
    random = np.random.Generator(np.random.Philox(key=[seed, 0x5EED]))
    chosen: list[int] = []
    for stratum in sorted(groups):
        members = random.permutation(groups[stratum])
        take = max(round(len(members) * fraction), 1) if len(members) > 1 else 0
        chosen += members[:take].tolist()
    return np.array(sorted(chosen), np.int64)


def few(seed: int, strata: Sequence[int], shots: int) -> np.ndarray:
    """Indices of `shots` rows of every stratum. Nested: the rows of 8 shots are among those of 16, for one seed."""
    random = np.random.Generator(np.random.Philox(key=[seed, 0xF3]))
    order = random.permutation(len(strata))
    taken: dict[int, int] = {}
    chosen = []
    for i in order.tolist():
        stratum = strata[i]
        if taken.get(stratum, 0) < shots:
            taken[stratum] = taken.get(stratum, 0) + 1
            chosen.append(i)
    return np.array(sorted(chosen), np.int64)

"""One pass over labelled examples before anything is written: label set inferred or checked, held-out and few-label subsets drawn."""

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sslcli.data.reader import Reader
from sslcli.data.store import Writer
from sslcli.data.text import few, held_out
from sslcli.errors import printable

PLAIN = re.compile(r"(?!(null|true|false|nan|inf)$)[A-Za-z_][\w-]*", re.ASCII | re.IGNORECASE)  # is text in an override, without quotes
MOST_NAMED = 40  # labels that an error lists
ENOUGH_TO_HOLD_OUT = 20  # examples a class: with fewer, every label is worth more in training than in choosing a checkpoint


class Coder(Protocol):
    """How a task reads its examples: a class that knows no model."""

    columns: Sequence[str]
    unseen: bool  # held-out examples may have labels that training has not
    facts: dict[str, Any]

    def tidy(self, example: dict[str, Any]) -> str | None:
        """Bring an example into its canonical form in place (repairs are counted); a reason if it cannot be used."""

    def labels(self, example: dict[str, Any]) -> list[str]: ...
    def stratum(self, example: dict[str, Any]) -> str: ...
    def inventory(self, seen: Counter[str], given: list[str] | None) -> list[str]: ...
    def gold(self, example: dict[str, Any]) -> Any:
        """What predictions are scored against: plain values."""

    def identity(self) -> Any: ...


class Unlabelled:
    """The part of a coder whose examples have no labels."""

    def labels(self, example: dict[str, Any]) -> list[str]:
        return []

    def stratum(self, example: dict[str, Any]) -> str:
        return ""

    def inventory(self, seen: Counter[str], given: list[str] | None) -> list[str]:
        return []


class Labelled(Protocol):
    """What the user said of labelled data."""

    seed: int
    valid: Any
    labels: list[str] | None
    shots: int | None
    valid_fraction: float


Plans = dict[str, tuple[Reader, Any]]  # split -> its reader, and which of its good examples (None: all)


def wanted(data: Labelled, only: str | None) -> tuple[str, ...]:
    """The splits to read for `only` one: a held-out part needs the training data."""
    if only is None:
        return ("train", "valid", "test")
    return (only,) if only != "valid" or data.valid is not None else ("train",)


def survey(
    data: Labelled, coder: Coder, readers: Mapping[str, Reader], given: list[str] | None
) -> tuple[list[str], Plans, list[dict[str, Any]]]:
    """Labels, which examples go where, and the bad records of every split, before anything is written."""
    seen: Counter[str] = Counter()
    strata: dict[str, list[str]] = {}
    bad: list[dict[str, Any]] = []
    for split, reader in readers.items():
        known = set(coder.inventory(seen, given)) if given is not None or seen else None
        strata[split] = []
        for file, number, example in reader:
            reason = coder.tidy(example) or (None if coder.unseen else _unknown(coder.labels(example), known, given, data.labels))
            if reason:
                reader.reject(file, number, reason)
                continue
            strata[split].append(coder.stratum(example))
            if split == "train" or "train" not in readers:
                seen.update(coder.labels(example))
        bad += reader.finish()
    inventory = coder.inventory(seen, given)
    plans: Plans = {split: (reader, None) for split, reader in readers.items()}
    if "train" in readers:
        plans |= _subsets(data, readers, strata, len(inventory), coder.facts.get("labelling") == "multi")
        coder.facts |= _fewer(data.shots, strata["train"], inventory)
    return inventory, plans, bad


def _fewer(shots: int | None, strata: Sequence[str], inventory: Sequence[str]) -> dict[str, Any]:
    """Strata (labels, but for tags and lists of labels) of which there are fewer rows than were asked, with how many."""
    found = Counter(strata)
    named = inventory if found.keys() <= set(inventory) else found
    short = {name: found[name] for name in named if shots is not None and found[name] < shots}
    return {"fewer_shots": {"asked": shots, "found": short}} if short else {}


def valid_is(data: Labelled, readers: Mapping[str, Reader], plans: Plans) -> dict[str, str]:
    if "valid" not in readers and "valid" in plans:
        rest, held = plans["train"][1], plans["valid"][1]
        share = len(held) / (len(rest) + len(held))  # of small labels at least one is held out
        return {"valid_is": f"{share:.0%} of data.train, stratified, drawn with seed {data.seed}"}
    if "train" in plans and "valid" not in plans:
        return {"valid_is": "none: too few labels to hold some out (all are trained on, the last weights are kept)"}
    return {}


def kept(reader: Reader, coder: Coder, inventory: Sequence[str], chosen: np.ndarray | None, size: int) -> Iterator[list[dict[str, Any]]]:
    """The good (and chosen) examples again, `size` at a time, each with the `file` and `record` that it is."""
    known, numbers = set(inventory), None if chosen is None else set(chosen.tolist())
    held: list[dict[str, Any]] = []
    good = -1
    for file, record, example in reader:
        if coder.tidy(example) or not (coder.unseen or known.issuperset(coder.labels(example))):
            continue  # counted by the survey
        good += 1
        if numbers is None or good in numbers:
            held.append({**example, "file": Path(file).name, "record": record})
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


def append_lines(writer: Writer, lines: Sequence[Any], **beside: Any) -> None:
    """JSON to the field `text` of a store (of an example, what predictions.jsonl will say besides the prediction), and what it has more."""
    coded = [json.dumps(line, ensure_ascii=False, default=str).encode() for line in lines]
    text = np.frombuffer(b"".join(coded), np.uint8)
    writer.append(len(coded), {"text": np.array([len(line) for line in coded])}, text=text, **beside)


def _subsets(data: Labelled, readers: Mapping[str, Reader], strata: Mapping[str, Sequence[str]], labels: int, several: bool) -> Plans:
    ids = {name: i for i, name in enumerate(sorted(set(strata["train"])))}
    train = np.arange(len(strata["train"]))
    kinds = [ids[s] for s in strata["train"]]
    found: Plans = {}
    if data.shots is not None:
        train = few(data.seed, kinds, data.shots)
    if "valid" not in readers and len(train) >= ENOUGH_TO_HOLD_OUT * max(1, min(labels, len(ids))):
        valid = train[held_out(data.seed, [kinds[i] for i in train], data.valid_fraction, pooled=several)]
        if len(valid):
            found["valid"] = (readers["train"], valid)
            train = np.setdiff1d(train, valid)
    found["train"] = (readers["train"], None if len(train) == len(kinds) else train)
    return found


def _unknown(labels: Sequence[str], known: set[str] | None, given: list[str] | None, listed: list[str] | None) -> str | None:
    """`given`: those that count, if somebody said them: a user, who `listed` them, or a run that learnt no others."""
    if known is None:
        return None
    strange = next((x for x in labels if x not in known), None)
    if strange is None:
        return None
    if given is not None and given != listed:
        return f"the label {printable(strange)} is none of the {len(given)} that the run has learnt; mend it or leave the row out"
    every = _typed([*sorted(known), strange]) if len(known) < MOST_NAMED else "data.labels=[<every label>]"
    where = "data.labels" if listed else "the training data"
    return f"the label {printable(strange)} is not in {where}; mend it, or name all labels: {every}"


def _typed(labels: Sequence[str]) -> str:
    """`data.labels=` as a shell and Hydra read it."""
    plain = [x if PLAIN.fullmatch(x) else '"' + x.replace('"', '\\"') + '"' for x in labels]
    said = f"data.labels=[{','.join(plain)}]"
    return printable(said if plain == list(labels) else shlex.quote(said), 300)

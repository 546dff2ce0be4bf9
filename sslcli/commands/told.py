"""What is told of the data that a run reads."""

from collections.abc import Mapping, Sequence
from typing import Any

from sslcli.errors import printable
from sslcli.log import counted

FEW = 5  # labels that are named


def counts(facts: Mapping[str, Any]) -> str:
    """A split in a line."""
    if "documents" in facts:
        unknown = f", {facts['unknown'] / max(1, facts['tokens']):.2%} unknown" if facts["unknown"] else ""
        return f"{counted(facts['documents'], 'document')}, {facts['bytes'] / 1e6:,.1f} MB, {facts['tokens']:,} tokens{unknown}"
    labels = f", {counted(len(facts['per_label']), 'label')}" if facts.get("per_label") else ""
    if "pixels" in facts:
        return f"{counted(facts['examples'], 'picture')}{labels}"
    return f"{counted(facts['examples'], 'example')}{labels}, {facts['tokens']:,} tokens"


def fewer(shots: Mapping[str, Any]) -> str:
    """Labels that data.shots asked more rows of than there are."""
    found = sorted(shots["found"].items(), key=lambda item: item[1])
    named = ", ".join(f"{printable(name) or 'all'} ({count})" for name, count in found[:FEW])
    more = f" and {len(found) - FEW:,} more" if len(found) > FEW else ""
    return f"train: data.shots={shots['asked']}, but there are fewer rows of {named}{more}: all of these are used, and labels are uneven"


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the files of two data.json."""
    found = []
    for split in ("train", "valid", "test", "gallery", "pairs", "unlabelled"):
        was, is_ = _by_name(before.get(split, [])), _by_name(now.get(split, []))
        found += [f"{printable(n)} has changed" for n in was if n in is_ and was[n] != is_[n]]
        found += [f"{printable(n)} is gone" for n in was if n not in is_]
        found += [f"{printable(n)} is new" for n in is_ if n not in was]
    return found


def _by_name(files: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Files of one name may lie in several folders: their hashes, in order."""
    found: dict[str, list[str]] = {}
    for file in files:
        found.setdefault(file["file"], []).append(file["sha256"])
    return found

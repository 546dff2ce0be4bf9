"""A comparison: one key of a run, and the values that are tried of it. The first is the plain one, which the others are held against."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslcli import config
from sslcli.errors import BadInput, printable
from sslcli.guard import guard_folder
from sslcli.help import home
from sslcli.schema import suggest

KEY, KEYS, SEEDS = "compare", {"axis", "values"}, ("0", "1", "2")


@dataclass(frozen=True)
class Comparison:
    name: str
    axis: str  # a key or a group: `task.head`, `peft`
    values: Sequence[str]  # as they are written on a command line
    named: bool = False  # by the user, not by the file

    @classmethod
    def open(cls, name: str, folder: Path | None) -> "Comparison":
        """`+compare=<name>`, of the product or of the user's own YAML."""
        if folder:
            guard_folder(folder)
        files = {path.stem: path for root in (home(), folder) if root for path in sorted((root / KEY).glob("*.yaml"))}
        if name not in files:
            raise BadInput(f"{KEY}={printable(name)}: no such comparison{suggest(name, files)} (one of {', '.join(sorted(files))})")
        node = config.load(files[name])
        axis, values = node.get("axis"), node.get("values")
        if set(node) != KEYS or not isinstance(axis, str) or not isinstance(values, list) or len(values) < 2:
            raise BadInput(f"{printable(files[name])}: expected axis: <a key> and values: [<the plain one>, <another>, ...], nothing else")
        return cls(name, axis, [_written(value) for value in values])


def _written(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

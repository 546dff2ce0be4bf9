"""The verbs, one file each: the story of a run from top to bottom."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sslcli.errors import BadInput
from sslcli.log import Screen
from sslcli.modality import Modality
from sslcli.schema import Part

T = TypeVar("T")


@dataclass
class Call:
    """How a verb was called, besides its configuration."""

    config_yaml: str  # unresolved, for the run folder
    overrides: Sequence[str] = ()
    screen: Screen = field(default_factory=Screen)
    dry_run: bool = False
    preview: str | None = None  # a file to draw to, instead of training

    def trainer(self, part: Part[T]) -> Part[T]:
        """The trainer as configured; for a dry run, one that takes two steps."""
        if not self.dry_run:
            return part
        two = {"steps": 2, "epochs": None, "time_limit": None, "eval_every": 2, "save_every": 2, "log_every": 1}
        return Part(part.path, part.cls, {**part.config, **two})

    def drawn(self, source: Modality, processor: Any, store: Any) -> dict[str, Any]:
        """What `--preview` asked for."""
        path = Path(str(self.preview))
        words = source.preview(path, processor, store)
        self.screen.say(words or f"views of the first epoch: {path}")
        return {"preview": str(path)}

    def given(self, *keys: str) -> list[str]:
        """Of the overrides, those of these keys or below them."""
        names = {o: o.lstrip("+~").partition("=")[0] for o in self.overrides}
        return [o for o, name in names.items() if any(name == k or name.startswith(f"{k}.") for k in keys)]

    def refuse_both(self, one: str, other: str, why: str) -> None:
        """Two keys that contradict each other, both given on the command line."""
        given = {o.lstrip("+").split("=")[0] for o in self.overrides}
        if one in given and other in given:
            raise BadInput(f"{one} and {other} are both given: {why}")

    def refuse_beside_from(self, remedy: str = "") -> None:
        """What a pretrained model brings with it."""
        self.refuse_both("from", "model", f"from= brings its own model{remedy}")
        self.refuse_both("from", "tokenizer", "from= brings its own tokenizer")

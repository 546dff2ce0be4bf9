"""What the leak radar reads: the rows of each part, and where each of them stands, through the same readers as a run's."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from sslcli.data.image import ImageData
from sslcli.data.text import TextData, Where
from sslcli.errors import printable

PARTS = ("unlabelled", "train", "valid", "test")
EXCERPT = 200  # characters


class Rows:
    """The `data` node of `ssl leaks`."""

    def __init__(
        self,
        *,
        kind: Literal["text", "image"],
        unlabelled: Where,
        train: Where,
        valid: Where,
        test: Where,
        columns: dict[Literal["text", "image"], str | None],
        encoding: str,
        delimiter: str | None,
        on_bad_record: Literal["fail", "skip"],
    ):
        self.kind, self.where = kind, {"unlabelled": unlabelled, "train": train, "valid": valid, "test": test}
        reading: dict[str, Any] = {"encoding": encoding, "delimiter": delimiter, "on_bad_record": on_bad_record, "columns": {**columns}}
        none: dict[str, Any] = dict.fromkeys(("train", "valid", "test", "labels", "shots"))
        usual: dict[str, Any] = {"valid_fraction": 0.05, "allow_changed": False}
        self.data: Any
        if kind == "text":
            self.data = TextData(0, **reading, **none, **usual, max_length=None, too_long=None, allow_empty=True)
        else:
            small: dict[str, Any] = {"max_pixels": 50_000_000, "min_side": 1, "frames": "first", "mirror": False}
            self.data = ImageData(0, **reading, **none, **usual, **small, gallery=None, size=None, channels=1, fit="stretch")
        for part, spec in self.where.items():
            setattr(self.data, part, spec)

    @property
    def parts(self) -> list[str]:
        return [part for part in PARTS if self.where[part] is not None]

    def texts(self, part: str) -> Iterator[tuple[str, str]]:
        """(place, text) of every row."""
        reader = self.data.reader(part, ("text",))
        assert reader is not None
        for file, record, example in reader:
            yield f"{file}:{record}", example["text"]
        reader.finish()

    def pictures(self, part: str, side: int) -> Any:
        """A store of grey pictures, side x side (data.decoded)."""
        from sslcli.data.decoded import decoded
        from sslcli.data.pixels import Pixels

        kept = decoded(self.data, part, Pixels(side, 1, [0.5], [0.5], False, fit="stretch"))
        assert kept is not None
        return kept.store

    def shown(self, part: str, rows: np.ndarray, store: Any = None) -> dict[int, tuple[str, str]]:
        """Row -> (where it stands, how it begins) of some rows."""
        if store is not None:
            import json

            lines = {int(i): json.loads(store.text(int(i))) for i in rows}
            return {i: (line["input"], "") for i, line in lines.items()}
        wanted = set(rows.tolist())
        found = ((i, row) for i, row in enumerate(self.texts(part)) if i in wanted)
        return {i: (place, printable(text, EXCERPT)) for i, (place, text) in found}

"""The `data` node of runs on pictures: what the user said about the data, and the pictures it names."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from sslcli.data.image_source import Pictures, embedded, open_pictures
from sslcli.data.picture import Form, MaxPixels
from sslcli.data.pixels import Fit
from sslcli.data.text import Label, TextData, Where
from sslcli.errors import BadInput

SAID = {
    "wrong_suffix": "not what the name says; read as what it is",
    "unlisted": "beside the list, which does not name it; left out",
    "upscaled": "smaller than the working size; enlarged (data.size)",
    "16_bit": "of 16 bits a channel; the upper 8 are kept",
    "cmyk": "in CMYK; made RGB",
    "rotated": "turned as their EXIF says",
    "palette": "with a palette; made RGB",
    "transparent": "transparent in places; laid on white",
    "colour_to_grey": "in colour; made grey (data.channels)",
    "first_frame": "of several frames; the first is taken (data.frames)",
}


class ImageData:
    corpus_roles: Sequence[str] = ("image",)  # what is read of a corpus

    def __init__(
        self,
        seed: int,
        *,
        train: Where,
        valid: Where,
        test: Where,
        gallery: Where,
        columns: dict[Literal["image", "label"], str | list[str] | None],
        labels: list[Label] | None,
        size: Annotated[int, Field(ge=8, le=2048)] | None,
        channels: Literal["auto", 1, 3],
        fit: Fit,
        max_pixels: MaxPixels,
        min_side: Annotated[int, Field(ge=1)],
        frames: Literal["one", "first"],
        mirror: bool,
        shots: Annotated[int, Field(ge=1)] | None,
        valid_fraction: Annotated[float, Field(gt=0, lt=1)],
        on_bad_record: Literal["fail", "skip"],
        allow_changed: bool,
        delimiter: Literal["tab"] | Annotated[str, Field(min_length=1, max_length=1)] | None,
        encoding: str,
        unlabelled: Where = None,
    ):
        self.unlabelled = train if unlabelled is None else unlabelled
        self.seed, self.train, self.valid, self.test, self.gallery = seed, train, valid, test, gallery
        self.columns, self.labels, self.size, self.channels, self.fit = columns, labels, size, channels, fit
        self.max_pixels, self.min_side, self.frames, self.mirror = max_pixels, min_side, frames, mirror
        self.shots, self.valid_fraction, self.on_bad_record, self.allow_changed = shots, valid_fraction, on_bad_record, allow_changed
        self.delimiter, self.encoding = delimiter, encoding
        self._opened: dict[str, Pictures] = {}

    @staticmethod
    def contradiction(keys: Mapping[str, Any]) -> str | None:
        if isinstance(keys["columns"].get("image"), list):
            return "columns.image names several columns; name the one that holds the pictures"
        return TextData.contradiction(keys)

    def pictures(self, split: str) -> Pictures | None:
        spec = getattr(self, split)
        if spec is None and split == "test" and embedded(self.train) and self.train != "digits:test":
            spec = "digits:test"  # the embedded set brings its own test
        if spec is None:
            if split == "train":
                raise BadInput("data.train: missing; name a folder, a glob, a list (CSV, JSON lines), parquet, IDX, hf:<name> or digits")
            return None
        columns = {str(k): v for k, v in self.columns.items()}
        reading: dict[str, Any] = {"columns": columns, "encoding": self.encoding, "delimiter": self.delimiter, "policy": self.on_bad_record}
        asked = repr((split, spec, reading))  # a folder of a million pictures is walked through once
        if asked not in self._opened:
            self._opened[asked] = open_pictures(f"data.{split}", spec, **reading)
        return self._opened[asked]

    def form(self, size: int, channels: int, fit: Fit) -> Form:
        return Form(size, channels, fit, self.max_pixels, self.min_side, self.frames)

    @property
    def has_test(self) -> bool:
        return self.pictures("test") is not None

    @staticmethod
    def prepared(done: int) -> str:
        return f"{done:,} pictures"

    @staticmethod
    def remarks(counted: Mapping[str, int]) -> Iterator[str]:
        """What was found of the pictures of a split (its facts' `counted`) that a user should know."""
        for kind, count in counted.items():
            if kind in SAID:
                yield f"{count:,} picture{'s' if count > 1 else ''} {SAID[kind]}"

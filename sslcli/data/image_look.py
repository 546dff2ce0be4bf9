"""A first look at pictures, to settle what the user left open: the working size, grey or colour, and the scale of their values.

Up to SAMPLE pictures are looked at, evenly spread over the data; what was found is kept, so that a second run need not look again.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from sslcli.data.decoded import decode_one, in_order
from sslcli.data.header import Refused
from sslcli.data.image import ImageData
from sslcli.data.image_source import Picture, Pictures
from sslcli.data.picture import Form, size_of
from sslcli.data.store import built

SAMPLE = 1000
NATIVE = 64  # pictures that are all of one size up to this are taken as they are
SIDES = (32, 64, 96, 128)  # else: the largest of these that is not above the median; a user asks for more where details matter
BLOCK = 16


@dataclass
class Look:
    size: int
    channels: int
    mean: list[float]  # of the values between 0 and 1, channel by channel
    std: list[float]


def look(data: ImageData) -> Look:
    """At the training pictures."""
    pictures = data.pictures("train")
    assert pictures is not None
    key = {
        "kind": "look",
        "files": pictures.fingerprint(),
        "columns": pictures.columns,
        "asked": [data.size, data.channels, data.encoding, data.delimiter, SAMPLE, NATIVE, SIDES],
        "form": asdict(data.form(0, 0, data.fit)),
    }

    def make(making: Path) -> None:
        (making / "look.json").write_text(json.dumps(asdict(_look(data, pictures))), encoding="utf-8")

    return Look(**json.loads((built(key, make) / "look.json").read_text(encoding="utf-8")))


def _look(data: ImageData, pictures: Pictures) -> Look:
    count = sum(isinstance(p, Picture) for p in pictures)
    step = max(1, -(-count // SAMPLE))
    sample = partial(_every, pictures, step)
    side = max if data.fit == "pad" else min
    sides = [side(s) for block in in_order(sample(), partial(_sizes, max_pixels=data.max_pixels), BLOCK) for s in block]
    size = data.size or settled(sides)
    blocks = in_order(sample(), partial(_values, form=data.form(size, 3 if data.channels == "auto" else data.channels, data.fit)), BLOCK)
    moments = np.concatenate([np.zeros((0, 7)), *blocks])
    if not len(moments):  # nothing can be read: decoding will say why
        return Look(size, 3, [0.5] * 3, [0.5] * 3)
    grey = data.channels == 1 or (data.channels == "auto" and not moments[:, 6].any())
    mean = moments[:, :3].mean(0)
    std = np.sqrt(np.maximum(moments[:, 3:6].mean(0) - mean**2, 1e-4))
    channels = 1 if grey else 3
    return Look(size, channels, mean[:channels].round(6).tolist(), std[:channels].round(6).tolist())


def settled(sides: list[int]) -> int:
    """The working size where the user names none, from the shorter sides (with data.fit=pad, the longer)."""
    if sides and len(set(sides)) == 1 and sides[0] <= NATIVE:
        return sides[0]
    median = sorted(sides)[len(sides) // 2] if sides else SIDES[0]
    return max((s for s in SIDES if s <= median), default=SIDES[0])


def _every(pictures: Pictures, step: int) -> Iterator[Picture]:
    return islice((p for p in pictures if isinstance(p, Picture)), 0, None, step)


def _sizes(block: list[Picture], max_pixels: int) -> list[tuple[int, int]]:
    found = []
    for picture in block:
        try:
            found.append(size_of(picture.image, picture.root, picture.name, max_pixels))
        except Refused:
            continue  # as below: whoever decodes will say so
    return found


def _values(block: list[Picture], form: Form) -> np.ndarray:
    """[K, 7]: mean and mean square of three channels, and whether there is colour."""
    found = []
    for picture in block:
        try:
            pixels = decode_one(picture, form).pixels.reshape(form.channels, -1)
        except Refused:
            continue
        values: Any = np.broadcast_to(pixels, (3, pixels.shape[1])).astype(np.float64) / 255
        colour = float((pixels[0] != pixels[-1]).any() or (pixels[0] != pixels[len(pixels) // 2]).any())
        found.append([*values.mean(1), *(values**2).mean(1), colour])
    return np.array(found).reshape(-1, 7)

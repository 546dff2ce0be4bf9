"""`digits`: 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn (Alpaydin and Kaynak, 1998), as train and test."""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from sslcli.data.image_source import Picture
from sslcli.data.lines import Bad
from sslcli.data.text import held_out
from sslcli.errors import BadInput, printable

TEST_SHARE, SEED = 0.2, 8  # of every digit; the same split whatever the seed of a run
MOST = 16  # the largest value of a pixel there


class Digits:
    """`digits` and `digits:train` are the four fifths that are trained on, `digits:test` is the rest."""

    def __init__(self, key: str, spec: str):
        self.columns: dict[str, Any] = {"image": "image", "label": "digit"}
        self.part = spec.partition(":")[2] or "train"
        if self.part not in ("train", "test"):
            raise BadInput(f"{key}={printable(spec)}: no such part; digits:train and digits:test are there")

    @cached_property
    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Pictures uint8 [N, 8, 8] and digits [N]."""
        from sklearn.datasets import load_digits

        found = load_digits()
        test = held_out(SEED, found.target.tolist(), TEST_SHARE)
        rows = test if self.part == "test" else np.setdiff1d(np.arange(len(found.target)), test)
        return np.round(found.images[rows] * (255 / MOST)).astype(np.uint8), found.target[rows]

    def __iter__(self) -> Iterator[Picture | tuple[str, Bad]]:
        for i, (pixels, digit) in enumerate(zip(*self._rows, strict=True), 1):
            yield Picture(f"digits:{self.part}", i, pixels, int(digit))

    def fingerprint(self) -> list[dict[str, Any]]:
        pixels, digits = self._rows
        digest = hashlib.sha256(pixels.tobytes() + digits.tobytes()).hexdigest()
        return [{"file": f"digits:{self.part}", "pictures": len(digits), "sha256": digest}]

    def unlabelled(self) -> str:
        return ""

    def counted(self) -> dict[str, int]:
        return {}

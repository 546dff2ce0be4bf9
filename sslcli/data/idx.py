"""IDX, the format of MNIST: all pictures in one file, their labels in another beside it (LeCun and Cortes, 1998). Also as .gz."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sslcli.data.image_source import Picture
from sslcli.data.lines import Bad, Unreadable, chunks
from sslcli.data.store import content_hash
from sslcli.errors import BadInput, at, printable

BYTES = 0x08  # the type of values that is read
LARGEST = 1 << 28  # values of one picture


class Idx:
    def __init__(self, key: str, paths: Sequence[Path]):
        self.paths = [(path, _labels_beside(path)) for path in paths]
        self.columns: dict[str, Any] = {"image": "IDX"}
        for path, _ in self.paths:
            if "labels" in path.name or "idx1" in path.name:
                raise BadInput(f"{key}={printable(path)}: holds labels; name the file of the pictures, labels beside it are found")
        if all(labels is not None for _, labels in self.paths):
            self.columns["label"] = self.paths[0][1].name  # type: ignore[union-attr]

    def __iter__(self) -> Iterator[Picture | tuple[str, Bad]]:
        for path, beside in self.paths:
            try:
                count, pictures = _values(path)
                labels = None
                if beside is not None and "label" in self.columns:
                    labels = _labels(beside)
                    if len(labels) != count:
                        reason = f"holds {len(labels):,} labels, but {at(path.name)} {count:,} pictures; they do not belong together"
                        yield str(beside), Bad(None, reason, fatal=True)
                        return
                for i, values in enumerate(pictures):
                    yield Picture(str(path), i + 1, values, None if labels is None else int(labels[i]))
            except Unreadable as error:
                yield str(path), error.bad
            except OSError as error:
                yield str(path), Bad(None, f"cannot be read: {error.strerror or error}", fatal=True)

    def fingerprint(self) -> list[dict[str, Any]]:
        files = [f for pair in self.paths for f in pair if f is not None]
        return [{"file": f.name, "bytes": f.stat().st_size, "sha256": content_hash(f)} for f in files]

    def unlabelled(self) -> str:
        name = self.paths[0][0].name.replace("images", "labels").replace("idx3", "idx1")
        return f"put the labels beside the pictures, as {printable(name)}"

    def counted(self) -> dict[str, int]:
        return {}


def is_idx(path: Path) -> bool:
    try:
        start = next(iter(chunks(path)), b"")[:4]
    except (Unreadable, OSError):
        return False
    return len(start) == 4 and start[:2] == b"\0\0" and start[2] in (8, 9, 11, 12, 13, 14) and 1 <= start[3] <= 4


def _labels_beside(path: Path) -> Path | None:
    if "images" not in path.name:
        return None
    name = path.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    stem = name.removesuffix(".gz")
    return next((p for n in (name, stem, f"{stem}.gz") if (p := path.with_name(n)).is_file()), None)


def _labels(path: Path) -> np.ndarray:
    _, values = _values(path)
    try:
        return np.array([int(v) for v in values])
    except (TypeError, ValueError) as error:
        raise Unreadable(Bad(None, f"{at(path.name)} holds no labels: its values are not single numbers", fatal=True)) from error


def _values(path: Path) -> tuple[int, Iterator[np.ndarray]]:
    """How many items the file says it holds, and these one by one, in the memory of one chunk."""
    source = iter(chunks(path))
    held = next(source, b"")
    if len(held) < 4 or held[:2] != b"\0\0":
        raise Unreadable(Bad(None, "is not an IDX file: it does not begin with two zero bytes; fetch it again", fatal=True))
    if held[2] != BYTES:
        raise Unreadable(Bad(None, f"holds values of type 0x{held[2]:02x}; only bytes (0x08) are read: convert it", fatal=True))
    dims = held[3]
    while len(held) < 4 + 4 * dims and (more := next(source, b"")):
        held += more
    shape = np.frombuffer(held[4 : 4 + 4 * dims], ">u4").astype(int).tolist() if len(held) >= 4 + 4 * dims else []
    if len(shape) not in (1, 3, 4) or (dims == 4 and shape[3] not in (1, 3)) or not 0 < math.prod(shape[1:]) <= LARGEST:
        raise Unreadable(Bad(None, f"holds values of shape {shape}; expected N x height x width", fatal=True))
    inner = shape[1:3] if dims == 4 and shape[3] == 1 else shape[1:]
    return shape[0], _items(source, held[4 + 4 * dims :], shape[0], inner)


def _items(source: Iterator[bytes], held: bytes, count: int, shape: Sequence[int]) -> Iterator[np.ndarray]:
    size, done = math.prod(shape), 0
    while done < count:
        while len(held) < size and (more := next(source, b"")):
            held += more
        whole = min(len(held) // size, count - done)
        if not whole:
            break
        yield from np.frombuffer(held[: whole * size], np.uint8).reshape(whole, *shape)
        held, done = held[whole * size :], done + whole
    if done < count or held or next(source, b""):
        what = "more" if done == count else f"{done:,}"
        raise Unreadable(Bad(None, f"its header says {count:,} items, it holds {what} (cut off?); fetch it again", fatal=True))

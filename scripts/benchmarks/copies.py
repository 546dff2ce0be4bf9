"""The leak radar on pictures: what it finds, by the command line, of copies that were planted, and what it lists besides."""

import csv
import gzip
import io
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts.benchmarks.rows import Bench

PLANTED, OTHERS = 500, 2000  # of each kind, and pictures of the test part as they are
KEPT = 0.95  # of a side, by a crop


def rows(bench: Bench) -> None:
    _measured(bench, "digits", *_digits())
    for name, read in (("fashion-mnist", _idx), ("cifar10-part", _parquet)):
        folder = bench.labelled(name)
        if folder is None:
            bench.row(f"copies of pictures: not measured, the data set {name} is not on this machine", 0.0)
            continue
        _measured(bench, name, read(folder, "train"), read(folder, "test"))


def _measured(bench: Bench, name: str, train: list[np.ndarray], others: list[np.ndarray]) -> None:
    chance, count = random.Random(0), min(50 if bench.quick else PLANTED, len(train))
    known, asked = bench.fresh("known"), bench.fresh("asked")
    for folder in (known, asked):
        folder.mkdir()
    for i, pixels in enumerate(train):
        Image.fromarray(pixels).save(known / f"{i:06}.png")
    kinds: dict[str, Callable[[Image.Image, random.Random], Image.Image]] = {
        "as they are": lambda picture, _: picture,
        "re-encoded": _reencoded,
        "resized": _resized,
        "cropped by 5 %": _cropped,
    }
    origin = {}
    for kind, change in kinds.items():
        for i in chance.sample(range(len(train)), count):
            origin[path := f"{len(origin):06}.png"] = (kind, f"{i:06}.png")
            change(Image.fromarray(train[i]), chance).save(asked / path)
    for i, pixels in enumerate(others[:OTHERS]):
        Image.fromarray(pixels).save(asked / f"x{i:06}.png")
    out = bench.fresh("leaks")
    done = bench.ssl("leaks", "data.kind=image", f"data.train={known}", f"data.test={asked}", f"out={out}")
    with (out / "pairs.csv").open(newline="", encoding="utf-8") as file:
        found = {Path(row["place"]).name: Path(row["in_place"]).name for row in csv.DictReader(file)}
    right = Counter(kind for path, (kind, source) in origin.items() if found.get(path) == source)
    for kind in kinds:
        bench.row(f"copies of pictures, {name}, found: {kind}", right[kind] / count, unit="share", planted=count)
    listed = [path for path in found if path not in origin]
    what = f"copies of pictures, {name}, listed besides (look at them: some are the same again)"
    bench.row(
        what, len(listed), unit=f"of {len(others[:OTHERS]):,}", better="lower", seconds=done.seconds, peak_memory_mb=done.peak_bytes / 1e6
    )


def _reencoded(picture: Image.Image, chance: random.Random) -> Image.Image:
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=chance.randint(40, 80))
    return Image.open(held)


def _resized(picture: Image.Image, chance: random.Random) -> Image.Image:
    side = max(4, round(chance.choice((0.5, 0.75, 1.5, 2.0)) * picture.width))
    how = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
    return picture.resize((side, side), chance.choice(how))


def _cropped(picture: Image.Image, chance: random.Random) -> Image.Image:
    side = picture.width
    x, y = (chance.uniform(0, side * (1 - KEPT)) for _ in range(2))
    return picture.resize((side, side), Image.Resampling.BICUBIC, box=(x, y, x + KEPT * side, y + KEPT * side))


def _digits() -> tuple[list[np.ndarray], list[np.ndarray]]:
    from sklearn.datasets import load_digits

    pictures = list((load_digits().images / 16 * 255).round().astype(np.uint8))
    return pictures[:1200], pictures[1200:]


def _idx(folder: Path, split: str) -> list[np.ndarray]:
    name = {"train": "train", "test": "t10k"}[split]
    values = gzip.decompress((folder / f"{name}-images-idx3-ubyte.gz").read_bytes())
    count, height, width = np.frombuffer(values, ">u4", 3, 4)
    return list(np.frombuffer(values, np.uint8, offset=16).reshape(count, height, width))


def _parquet(folder: Path, split: str) -> list[np.ndarray]:
    import pyarrow.parquet as pq

    column: list[Any] = pq.read_table(folder / f"{split}.parquet")["image"].to_pylist()
    return [np.array(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")) for cell in column]

"""Pictures decoded once, in parallel and in bounded memory, into a store of bytes."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sslcli.data.header import Refused
from sslcli.data.image import ImageData
from sslcli.data.image_source import Picture, Pictures
from sslcli.data.lines import Bad
from sslcli.data.picture import Decoded, Form, decode, from_array, read_file
from sslcli.data.pixels import Pixels
from sslcli.data.reader import verdict
from sslcli.data.store import MOST_READERS, Store, Writer, built
from sslcli.data.survey import append_lines
from sslcli.errors import BadInput, printable
from sslcli.run import cores

BLOCK, BYTES = 256, 4 << 20  # pictures that a thread decodes before it gives them back, and about the bytes of these

Progress = Callable[[int], None]


@dataclass
class _Block:
    pixels: np.ndarray  # [K, C * S * S]
    lines: list[dict[str, Any]] = field(default_factory=list)
    bad: list[tuple[str, Bad]] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)


@dataclass
class Kept:
    """A split as it was decoded."""

    store: Store
    columns: dict[str, Any]
    files: list[dict[str, Any]]
    bad: list[dict[str, Any]]


def decoded(data: ImageData, split: str, processor: Pixels, progress: Progress = lambda _: None, labelled: bool = False) -> Kept | None:
    """The good pictures of a split in a store: `pixels`, and in `text` what each is and its label as it was written."""
    pictures = data.pictures(split)
    if pictures is None:
        return None
    if labelled and "label" not in pictures.columns:
        raise BadInput(f"data.{split}={printable(getattr(data, split))}: no labels; {pictures.unlabelled()}")
    form, spec = data.form(processor.size, processor.channels, processor.fit), getattr(data, split)
    key: dict[str, Any] = {
        "kind": "pixels",
        "named": [os.path.normpath(s) for s in ([spec] if isinstance(spec, str) else spec or [])],  # the store names files so
        "files": pictures.fingerprint(),
        "columns": pictures.columns,
        "reading": [data.encoding, data.delimiter],
        "form": asdict(form),
    }
    store = Store(built(key, partial(_build, key=f"data.{split}", pictures=pictures, form=form, data=data, progress=progress)))
    bad = verdict(f"data.{split}", data.on_bad_record, store.meta["read"], refused(store))
    return Kept(store, dict(pictures.columns), key["files"], bad)


def _build(making: Path, key: str, pictures: Pictures, form: Form, data: ImageData, progress: Progress) -> None:
    writer = Writer(making, {"pixels": np.uint8, "text": np.uint8}, {"text"})
    bad: list[tuple[str, Bad]] = []
    counted: Counter[str] = Counter()
    read = 0
    try:
        for block in in_order(pictures, partial(_decode, form=form), BYTES // (form.channels * form.size**2)):
            bad += block.bad
            counted += block.counted
            read += len(block.lines) + sum(not b.fatal for _, b in block.bad)
            progress(read)
            if block.lines and not (bad and data.on_bad_record == "fail"):  # else nothing will be kept: only look for further bad records
                append_lines(writer, block.lines, pixels=block.pixels)
        verdict(key, data.on_bad_record, read, bad)
        counted.update(pictures.counted())
        writer.meta = {"read": read, "bad": [(file, asdict(b)) for file, b in bad], "counted": {k: n for k, n in counted.items() if n}}
        writer.finish()
    finally:
        writer.close()


def in_order(pictures: Iterable[Any], work: Callable[[list[Any]], Any], most: int) -> Iterator[Any]:
    """`work` of one block of pictures after the other, several at a time; memory is that of the blocks under way."""
    threads = min(cores(), MOST_READERS)
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for block in _blocks(pictures, max(1, min(most, BLOCK))):
            waiting.append(pool.submit(work, block))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _blocks(pictures: Iterable[Any], most: int) -> Iterator[list[Any]]:
    held: list[Any] = []
    size = 0
    for item in pictures:
        held.append(item)
        size += len(item.image) if isinstance(item, Picture) and isinstance(item.image, bytes) else 0
        if len(held) == most or size >= BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


def _decode(block: list[Any], form: Form) -> _Block:
    made = _Block(np.empty((len(block), form.channels * form.size**2), np.uint8))
    for item in block:
        if not isinstance(item, Picture):
            made.bad.append(item)
            continue
        try:
            found = decode_one(item, form)
        except Refused as error:
            listed = item.record is not None and isinstance(item.image, str)
            reason = f"{printable(item.image)} {error.reason}" if listed else error.reason
            made.bad.append((item.file, Bad(item.record, reason, unsafe=error.unsafe)))
            made.counted["missing"] += error.missing
            continue
        made.pixels[len(made.lines)] = found.pixels.reshape(-1)
        made.lines.append({"input": item.input, "file": item.file, "record": item.record, "label": item.label})
        made.counted.update(found.counted)
    made.pixels = made.pixels[: len(made.lines)]
    return made


def decode_one(picture: Picture, form: Form) -> Decoded:
    if isinstance(picture.image, np.ndarray):
        return from_array(picture.image, form)
    if isinstance(picture.image, bytes):
        return decode(picture.image, form, picture.name)
    return decode(read_file(picture.image, picture.root, form.max_pixels), form, picture.image)


def refused(store: Store) -> list[tuple[str, Bad]]:
    """The records that are not in a decoded store, with where they stand."""
    return [(file, Bad(**bad)) for file, bad in store.meta["bad"]]

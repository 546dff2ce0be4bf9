"""Pictures made for tests, whole and broken, and data nodes over them."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from sslcli.data import image_store
from sslcli.data.image import ImageData
from sslcli.data.pixels import Pixels
from sslcli.data.text import Prepared

KEYS: dict[str, Any] = {
    "valid": None, "test": None, "gallery": None, "columns": {"image": None, "label": None},
    "labels": None, "size": None, "channels": "auto", "fit": "crop",
    "max_pixels": 50_000_000, "min_side": 8, "frames": "one", "mirror": True, "shots": None, "valid_fraction": 0.1, "on_bad_record": "fail",
    "allow_changed": False, "delimiter": None, "encoding": "utf-8",
}  # fmt: skip


def node(train: Any, seed: int = 0, **keys: Any) -> ImageData:
    return ImageData(seed, train=str(train) if isinstance(train, Path) else train, **{**KEYS, **keys})


def corpus(train: Any, size: int = 16, channels: int = 3, **keys: Any) -> Prepared:
    return image_store.corpus(node(train, **keys), processor(size, channels, keys.get("fit", "crop")))


def processor(size: int = 16, channels: int = 3, fit: Any = "crop") -> Pixels:
    return Pixels(size, channels, [0.5] * channels, [0.25] * channels, True, None, fit)


def scene(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """Smooth colours, no symmetry."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(image: Image.Image, kind: str, orientation: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif, **options)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(kind: bytes, content: bytes) -> bytes:
    """A good PNG with one more chunk after its header."""
    whole = encoded(scene(), "PNG")
    return whole[:33] + chunk(kind, content) + whole[33:]


def flipped_png() -> bytes:
    whole = bytearray(encoded(scene(), "PNG"))
    whole[whole.index(b"IDAT") + 20] ^= 1
    return bytes(whole)


def bomb() -> bytes:
    """14,000 x 14,000 in 25 kB."""
    header = struct.pack(">IIBBBBB", 14_000, 14_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(14_000 * 1751), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def several(kind: str) -> bytes:
    return encoded(scene(), kind, save_all=True, append_images=[scene(seed=1), scene(seed=2)])


def with_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 5_000_000, zip=True)
    return encoded(scene(), "PNG", pnginfo=info)


def folder_of_classes(root: Path, each: int = 12, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            scene(seed=number * 1000 + i).save(root / name / f"{i:03d}.png")
    return root

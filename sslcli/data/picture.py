"""One picture, brought into the form that the store keeps: bytes [C, S, S].

The rule: rotation by EXIF is applied; transparency is laid on white; palettes, CMYK, 1 bit and other colour spaces become RGB; of 16 bits
the upper 8 are kept; grey becomes three equal channels where three are asked, colour its luma (ITU-R 601) where one is. Resizing is
bilinear with antialiasing, by torch, which is four times as fast as Pillow; a large JPEG is scaled down in decoding already, to no less
than twice the size asked.
"""

import io
import os
import stat
import threading
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin  # noqa: F401  (named here, else Pillow would import all its formats to find them)
from pydantic import Field
from torch.nn import functional as F

from sslcli.data.header import SUFFIXES, Header, Refused, cut_off, header, large_chunk
from sslcli.data.pixels import Fit

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

warnings.filterwarnings("ignore", module=r"PIL\.")  # what is wrong with a picture is counted or refused below

MaxPixels = Annotated[int, Field(ge=1, le=178_956_970)]  # beyond it Pillow refuses, whatever is asked
LARGE = 16_000_000  # pixels; of pictures that are larger once decoded, one is decoded at a time
WHITE, ORIENTATION = 255, 0x0112
_one_large = threading.Lock()


@dataclass(frozen=True)
class Form:
    """What pictures are brought into, and which are refused."""

    size: int
    channels: int
    fit: Fit
    max_pixels: int
    min_side: int
    frames: Literal["one", "first"]


@dataclass
class Decoded:
    pixels: np.ndarray  # uint8 [C, S, S]
    counted: list[str] = field(default_factory=list)  # what was done to it beyond resizing


def read_file(path: str, root: str | None, max_pixels: int) -> bytes:
    """The bytes of a regular file; never waits for a pipe, never follows a link out of `root`."""
    if root is not None and os.path.islink(path):
        target = os.path.realpath(path)
        if not os.path.exists(target):
            raise Refused("is a link to nothing; remove it or mend it")
        if os.path.commonpath((target, os.path.realpath(root))) != os.path.realpath(root):
            raise Refused("is a link that leads out of the folder and is not followed; put the file itself there")
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise Refused("is not there; mend the path or remove the record", missing=True) from error
    except (OSError, ValueError) as error:  # a path may hold a zero byte
        raise Refused(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise Refused("is a folder, not a picture" if stat.S_ISDIR(status.st_mode) else "is not a regular file; remove it")
        if status.st_size > 8 * max_pixels + (1 << 24):
            raise Refused(f"{status.st_size:,} bytes are more than a picture of data.max_pixels={max_pixels:,} needs; remove it")
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}") from error
    finally:
        os.close(handle)


def decode(data: bytes, form: Form, name: str = "") -> Decoded:
    """The picture in a file's bytes. `name`: what the file is called, if it is called anything."""
    suffix = os.path.splitext(name)[1].lower()
    head = header(data, suffix)
    kind = head.kind
    if kind != "TIFF":
        check_size(head.width, head.height, form)
    counted = ["wrong_suffix"] if SUFFIXES.get(suffix, kind) != kind else []
    try:
        made = _fast_jpeg(data, head, form) if kind == "JPEG" and simplejpeg is not None else None
        pixels, seen = made or _open(data, kind, form)
    except Refused:
        raise
    except Exception as error:  # decoders of untrusted bytes raise whatever they like
        raise _refusal(error) from error
    return Decoded(pixels, counted + seen)


def size_of(image: str | bytes | np.ndarray, root: str | None, name: str, max_pixels: int) -> tuple[int, int]:
    """Width and height, of the header alone."""
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[0]
    data = image if isinstance(image, bytes) else read_file(image, root, max_pixels)
    head = header(data, os.path.splitext(image if isinstance(image, str) else name)[1].lower())
    if head.width:
        return head.width, head.height
    try:
        return Image.open(io.BytesIO(data), formats=[head.kind]).size
    except Exception as error:  # as in decode
        raise _refusal(error) from error


def from_array(values: np.ndarray, form: Form) -> Decoded:
    """A picture that came as values: uint8 [H, W] or [H, W, 3]."""
    check_size(values.shape[1], values.shape[0], form)
    seen = _upscaled(values.shape[1], values.shape[0], form)
    return Decoded(_laid(_in_colours(values, form, seen), form), seen)


def check_size(width: int, height: int, form: Form) -> None:
    if width * height > form.max_pixels:
        size = f"{width} x {height} pixels are more than data.max_pixels={form.max_pixels:,}"
        raise Refused(f"{size} (a decompression bomb?); remove it, or raise the limit if you trust it")
    if min(width, height) < form.min_side:
        raise Refused(f"{width} x {height} pixels: a side is under data.min_side={form.min_side}; remove it or lower the limit")


def _open(data: bytes, kind: str, form: Form) -> tuple[np.ndarray, list[str]]:
    with Image.open(io.BytesIO(data), formats=[kind]) as image:
        width, height = image.size
        check_size(width, height, form)
        seen = _upscaled(width, height, form)
        if kind == "JPEG":
            scale = _scale(width, height, form)
            if form.channels == 1 and image.mode == "RGB":
                seen.append("colour_to_grey")
            image.draft("L" if form.channels == 1 else None, (width // scale, height // scale))
        elif getattr(image, "is_animated", False):
            if form.frames == "one":
                raise Refused("holds several frames or pages; data.frames=first takes the first of each file")
            seen.append("first_frame")
        with _one_large if image.width * image.height > LARGE else nullcontext():
            image.load()
            turn = image.getexif().get(ORIENTATION, 1)  # Pillow has turned a TIFF already, and says so here
            return _laid(_turned(np.asarray(_recoloured(image, form, seen)), turn, seen), form), seen


def _fast_jpeg(data: bytes, head: Header, form: Form) -> tuple[np.ndarray, list[str]] | None:
    """By simplejpeg, which calls the same library as Pillow and gives the same bytes; None where Pillow is to look at it."""
    width, height, scale = head.width, head.height, _scale(head.width, head.height, form)
    if width * height > LARGE * scale * scale or head.exif is None or head.parts not in (1, 3):
        return None
    grey = form.channels == 1 or head.parts == 1
    try:
        values = simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGB", min_height=-(-height // scale), min_width=-(-width // scale))
    except ValueError:
        return None  # damaged: Pillow decides whether it can be borne
    values = values[..., 0] if grey else values
    seen = _upscaled(width, height, form) + ["colour_to_grey"] * (form.channels == 1 and head.parts == 3)
    return _laid(_turned(values, _exif_turn(head.exif) if head.exif else 1, seen), form), seen


def _exif_turn(exif: bytes) -> Any:
    found = Image.Exif()
    try:
        found.load(exif)
        return found.get(ORIENTATION, 1)
    except Exception:  # as in decode
        return 1


def _scale(width: int, height: int, form: Form) -> int:
    side = max(width, height) if form.fit == "pad" else min(width, height)
    return next(s for s in (8, 4, 2, 1) if s == 1 or side // s >= 2 * form.size)


def _upscaled(width: int, height: int, form: Form) -> list[str]:
    side = max(width, height) if form.fit == "pad" else min(width, height)
    return ["upscaled"] if side < form.size else []


def _laid(values: np.ndarray, form: Form) -> np.ndarray:
    """[H, W] or [H, W, 3] -> [C, S, S]: resized, then cut or padded to a square around the middle."""
    (height, width), size = values.shape[:2], form.size
    if height == width == size:
        return np.broadcast_to(values if values.ndim == 2 else values.transpose(2, 0, 1), (form.channels, size, size))
    inner = (size, size)
    if form.fit != "stretch":
        side = max(height, width) if form.fit == "pad" else min(height, width)
        inner = max(1, size * height // side), max(1, size * width // side)
    picture = torch.from_numpy(np.require(values, requirements=["C", "W"])).view(height, width, -1).permute(2, 0, 1)[None]
    if (height, width) != inner:
        picture = F.interpolate(picture, inner, mode="bilinear", antialias=True)
    top, left = (inner[0] - size) // 2, (inner[1] - size) // 2  # below 0: that much is padded
    if form.fit == "pad":
        picture = F.pad(picture, (-left, size - inner[1] + left, -top, size - inner[0] + top))
    elif form.fit == "crop":
        picture = picture[..., top : top + size, left : left + size]
    return picture[0].expand(form.channels, -1, -1).numpy()


def _in_colours(values: np.ndarray, form: Form, seen: list[str]) -> np.ndarray:
    return values if form.channels == 3 or values.ndim == 2 else np.asarray(_recoloured(Image.fromarray(values), form, seen))


def _recoloured(image: Image.Image, form: Form, seen: list[str]) -> Image.Image:
    mode = image.mode
    if mode in ("I", "F"):
        raise Refused("holds 32 bits a pixel, of a scale that no rule can know; convert it to 8 or 16 bits")
    if mode.startswith("I;16"):
        seen.append("16_bit")
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif mode != "1" and image.has_transparency_data:
        clear, image = image.convert("RGBA"), Image.new("RGB", image.size, (WHITE, WHITE, WHITE))
        opaque = clear.getchannel("A")
        if np.asarray(opaque).min() < 255:  # many a picture has the channel and is opaque all over
            seen.append("transparent")
        image.paste(clear, mask=opaque)
    elif mode == "P":
        seen.append("palette")
        image = image.convert("RGB")
    elif mode not in ("L", "RGB", "1"):
        seen.append(mode.lower())
        image = image.convert("RGB")
    if form.channels == 1 and image.mode == "RGB":
        seen.append("colour_to_grey")
        return image.convert("L")
    return image.convert("L") if image.mode == "1" else image  # grey becomes three channels last


def _turned(values: np.ndarray, turn: Any, seen: list[str]) -> np.ndarray:
    """[H, W] or [H, W, 3], turned as EXIF says."""
    if turn in range(2, 9):
        seen.append("rotated")
        values = values.swapaxes(0, 1) if turn in (5, 6, 7, 8) else values
        values = values[:, ::-1] if turn in (2, 3, 6, 7) else values
        values = values[::-1] if turn in (3, 4, 7, 8) else values
    return values


def _refusal(error: Exception) -> Refused:
    said = str(error)
    if "trunc" in said.lower() or isinstance(error, EOFError):
        return cut_off()
    if "too large" in said and "PngImagePlugin" in said:
        return large_chunk()
    if isinstance(error, UnidentifiedImageError):
        return Refused("its header is damaged; fetch the picture again or remove it")
    if isinstance(error, Image.DecompressionBombError):
        return Refused("more pixels than are ever decoded (a decompression bomb?); remove it")
    return Refused(f"cannot be decoded ({(said.splitlines() or [type(error).__name__])[0][:80]}); fetch the picture again or remove it")

"""What the first bytes of a picture say, before anything is decoded: its kind, its size, and whether it is whole.

Six kinds are opened. Everything else is refused, known picture formats with the words for it: their decoders are not to be trusted.
"""

import zlib
from typing import NamedTuple

MAX_CHUNK = 1 << 20  # bytes of a text or colour profile inside a PNG

SUFFIXES = {s: kind for kind, suffixes in {
    "JPEG": ".jpg .jpeg .jpe .jfif", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp .dib", "TIFF": ".tif .tiff", "GIF": ".gif"
}.items() for s in suffixes.split()}  # fmt: skip
MAGIC = (
    ("JPEG", b"\xff\xd8\xff"), ("PNG", b"\x89PNG\r\n\x1a\n"), ("GIF", b"GIF87a"), ("GIF", b"GIF89a"), ("BMP", b"BM"),
    ("TIFF", b"II*\0"), ("TIFF", b"MM\0*"), ("TIFF", b"II+\0"), ("TIFF", b"MM\0+"),
)  # fmt: skip
# name, suffixes, how such files begin
OTHERS: tuple[tuple[str, str, tuple[bytes, ...]], ...] = (
    ("an SVG drawing", ".svg", (b"<svg",)),
    ("a Photoshop file", ".psd", (b"8BPS",)),
    ("PostScript", ".eps", (b"%!PS", b"\xc5\xd0\xd3\xc6")),
    ("PDF", "", (b"%PDF",)),
    ("a GD picture", ".gd .gd2", (b"gd2\0",)),
    ("FITS", ".fits .fit", (b"SIMPLE  =",)),
    ("HEIC", ".heic .heif", ()),
    ("AVIF", ".avif", ()),
    ("JPEG 2000", ".jp2 .j2k", (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")),
    ("JPEG XL", ".jxl", (b"\0\0\0\x0cJXL ", b"\xff\x0a")),
    ("an icon", ".ico .icns", (b"\0\0\x01\0", b"icns")),
    ("OpenEXR", ".exr", (b"v/1\x01",)),
    ("Radiance HDR", ".hdr", (b"#?RADIANCE",)),
    ("PNM", ".pbm .pgm .ppm .pnm", tuple(b"P%d\n" % i for i in range(1, 8))),
    ("DDS", ".dds", (b"DDS ",)),
    ("a GIMP file", ".xcf", (b"gimp xcf",)),
    ("TGA", ".tga", ()),
    ("PCX", ".pcx", ()),
    ("DICOM", ".dcm", ()),
)
OTHER_SUFFIXES = {suffix: name for name, suffixes, _ in OTHERS for suffix in suffixes.split()}


class Refused(Exception):
    """A picture that cannot be used: what is wrong and what to do. `unsafe`: a kind that is never opened."""

    def __init__(self, reason: str, unsafe: bool = False, missing: bool = False):
        super().__init__(reason)
        self.reason, self.unsafe, self.missing = reason, unsafe, missing


class Header(NamedTuple):
    kind: str
    width: int  # 0: only the decoder's own look at the header knows (TIFF)
    height: int
    parts: int = 0  # of a JPEG: 1 grey, 3 colours, 4 CMYK
    exif: bytes | None = b""  # of a JPEG; None: how it is turned is said elsewhere


def kind_of(data: bytes) -> str | None:
    """By content, whatever the name says."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((kind for kind, magic in MAGIC if data.startswith(magic)), None)


def header(data: bytes, suffix: str) -> Header:
    """Of the bytes of a whole file. The size is only read, nothing is unpacked."""
    kind = kind_of(data)
    if kind is None:
        raise _no_picture(data, suffix)
    try:
        if kind == "JPEG":
            return Header(kind, *_jpeg(data))
        if kind == "PNG":
            _check_png(data)
            return Header(kind, _big(data, 16, 4), _big(data, 20, 4))
        if kind == "GIF":
            return Header(kind, _little(data, 6, 2), _little(data, 8, 2))
        if kind == "BMP":
            return Header(kind, *_bmp(data))
        if kind == "WEBP":
            return Header(kind, *_webp(data))
        return Header(kind, 0, 0)
    except IndexError as error:
        raise cut_off() from error


def cut_off() -> Refused:
    return Refused("the picture is cut off; fetch it again or remove it")


def _big(data: bytes, at: int, size: int) -> int:
    if at + size > len(data):
        raise IndexError
    return int.from_bytes(data[at : at + size], "big")


def _little(data: bytes, at: int, size: int) -> int:
    if at + size > len(data):
        raise IndexError
    return int.from_bytes(data[at : at + size], "little")


def _jpeg(data: bytes) -> tuple[int, int, int, bytes | None]:
    """Width, height, parts and EXIF, from the segments before the first scan."""
    at, width, height, parts = 2, 0, 0, 0
    exif: bytes | None = b""
    while True:
        at = data.find(b"\xff", at)
        if at < 0:
            raise IndexError
        marker = data[at + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # these stand alone
            at += 1 + (marker != 0xFF)
            continue
        if marker == 0xDA and width:
            return width, height, parts, exif
        length = data[at + 2] << 8 | data[at + 3]
        if marker == 0xE1:
            segment = data[at + 4 : at + 2 + length]
            exif = None if exif is None or b"tiff:Orientation" in segment else exif + segment if segment[:6] == b"Exif\0\0" else exif
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, parts = _big(data, at + 5, 2), _big(data, at + 7, 2), data[at + 9]
        at += 2 + length


def _check_png(data: bytes) -> None:
    """Chunk by chunk: checksums, sizes, an end."""
    at = 8
    while True:
        length, kind = _big(data, at, 4), data[at + 4 : at + 8]
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP") and length > MAX_CHUNK:
            raise large_chunk()
        if _big(data, at + 8 + length, 4) != zlib.crc32(memoryview(data)[at + 4 : at + 8 + length]):
            name = kind.decode("latin-1") if kind.isalpha() else "next"
            raise Refused(f"the checksum of its {name} chunk at byte {at} is wrong; fetch the picture again or remove it")
        if kind == b"IEND":
            return
        at += 12 + length


def large_chunk() -> Refused:
    return Refused(f"a text or colour profile of more than {MAX_CHUNK >> 20} MB; save the picture again without it")


def _bmp(data: bytes) -> tuple[int, int]:
    if _little(data, 14, 4) == 12:
        return _little(data, 18, 2), _little(data, 20, 2)
    height = _little(data, 22, 4)
    return _little(data, 18, 4), min(height, (1 << 32) - height)  # negative: from the top down


def _webp(data: bytes) -> tuple[int, int]:
    if _little(data, 4, 4) + 8 > len(data):
        raise IndexError
    kind = data[12:16]
    if kind == b"VP8X":
        return _little(data, 24, 3) + 1, _little(data, 27, 3) + 1
    if kind == b"VP8L":
        bits = _little(data, 21, 4)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return _little(data, 26, 2) & 0x3FFF, _little(data, 28, 2) & 0x3FFF


def _no_picture(data: bytes, suffix: str) -> Refused:
    if not data:
        return Refused("0 bytes; fetch the picture again or remove it")
    head = data[:1024]
    lower = head.lstrip().lower()
    if b"<html" in lower or lower.startswith(b"<!doctype html"):
        return Refused("is HTML (the error page of a download?), not a picture; fetch it again or remove it")
    other = next((name for name, _, begins in OTHERS if data.startswith(begins)), OTHER_SUFFIXES.get(suffix))
    other = "an SVG drawing" if b"<svg" in lower else "DICOM" if data[128:132] == b"DICM" else other
    if data[4:8] == b"ftyp":
        other = "AVIF" if data[8:11] == b"avi" else "HEIC" if data[8:10] in (b"he", b"mi", b"ms") else "a film"
    if other:
        return Refused(f"is {other}; only JPEG, PNG, WebP, BMP, TIFF and GIF are opened: convert it to one of them", unsafe=True)
    if data.startswith((b"PK\x03\x04", b"\x1f\x8b")) or data[257:262] == b"ustar":
        return Refused("is an archive, which is never unpacked here; unpack it and name the folder")
    if head.startswith(b"version https://git-lfs"):
        return Refused("is a pointer of Git LFS, not the picture; run git lfs pull")
    if not any(head):
        return Refused("holds zero bytes only (cut by a crash?); fetch the picture again or remove it")
    printing = sum(32 <= b < 127 or b in b"\t\r\n" for b in head)
    what = "is text, not a picture" if printing == len(head) else "is not a picture of a known kind"
    return Refused(f"{what}; remove it from the data")

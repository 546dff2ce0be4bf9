"""Bytes to checked lines of text, in bounded memory: compression, encoding, zero bytes, endless lines and bombs end here."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow

MAX_RECORD = 16_000_000  # bytes of one record
MAX_RATIO = 200  # bytes out of one compressed byte
CHUNK = 1 << 20
CUT = "the last line is incomplete (the program that wrote it was cut off?); remove it or write it again"
INSIDE = ("unexpected end of data", "incomplete multibyte sequence")  # of a character, as decoders of UTF-8 and of GB18030 say it

BOMS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


@dataclass(frozen=True)
class Bad:
    """A record (or the rest of a file, when `fatal`) that cannot be read: what is wrong and what to do. `unsafe`: it must not be."""

    record: int | None
    reason: str
    byte: int | None = None
    fatal: bool = False
    unsafe: bool = False


class Unreadable(Exception):
    def __init__(self, bad: Bad):
        super().__init__(bad.reason)
        self.bad = bad


def magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def compression(path: Path) -> str | None:
    """By content, not by name; a name that lies is an error."""
    start = magic(path)
    kind = "gz" if start[:2] == b"\x1f\x8b" else "zst" if start[:4] == b"\x28\xb5\x2f\xfd" else None
    suffix = path.suffix.lower()
    if suffix in (".gz", ".zst") and kind is None and start:
        raise Unreadable(Bad(None, f"named {suffix} but not compressed; rename it to {path.stem}", fatal=True))
    return kind


def chunks(path: Path) -> Iterator[bytes]:
    """The decompressed bytes of a file, a megabyte at a time."""
    kind = compression(path)
    if kind is None:
        with path.open("rb") as file:
            yield from iter(lambda: file.read(CHUNK), b"")
        return
    total = 0
    with pyarrow.OSFile(str(path)) as source:
        stream = pyarrow.CompressedInputStream(source, {"gz": "gzip", "zst": "zstd"}[kind])
        while True:
            try:
                chunk = stream.read(CHUNK)
            except OSError as error:
                reason = f"the {kind} data is cut off or broken after {source.tell()} compressed bytes; fetch or compress the file again"
                raise Unreadable(Bad(None, reason, source.tell(), fatal=True)) from error
            if not chunk:
                return
            total += len(chunk)
            if total > MAX_RECORD and total > MAX_RATIO * max(source.tell(), 1):
                reason = f"unpacks to more than {MAX_RATIO} times its size (a decompression bomb?); unpack it yourself if you trust it"
                raise Unreadable(Bad(None, reason, source.tell(), fatal=True))
            yield chunk


def lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, int, str] | Bad]:
    """(line number from 1, byte offset, text without its end). A bad line is yielded as Bad and reading goes on, unless it is fatal."""
    try:
        yield from _lines(path, encoding)
    except Unreadable as error:
        yield error.bad


def _lines(path: Path, encoding: str) -> Iterator[tuple[int, int, str] | Bad]:
    number, offset, carry, first = 0, 0, b"", True
    for chunk in chunks(path):
        if first:
            chunk, offset = _strip_bom(chunk, encoding)
            first = False
        pieces = (carry + chunk).split(b"\n") if carry else chunk.split(b"\n")
        carry = pieces.pop()
        for piece in pieces:
            number += 1
            yield _decode(piece, number, offset, encoding)
            offset += len(piece) + 1
        if len(carry) > MAX_RECORD:
            if carry.count(b"\r") > 10:
                raise Unreadable(Bad(number + 1, "lines end in CR alone (old Mac); convert them to LF", offset, fatal=True))
            raise Unreadable(Bad(number + 1, f"one line of more than {MAX_RECORD} bytes; split it into records", offset, fatal=True))
    if carry:
        number += 1
        if carry.count(b"\r") > 1 and b"\r\n" not in carry and number == 1:
            raise Unreadable(Bad(1, "lines end in CR alone (old Mac); convert them to LF", offset, fatal=True))
        yield _decode(carry, number, offset, encoding, last=True)


def _strip_bom(chunk: bytes, encoding: str) -> tuple[bytes, int]:
    if chunk.startswith(b"\xef\xbb\xbf"):
        return chunk[3:], 3
    if chunk[257:262] == b"ustar":
        raise Unreadable(Bad(None, "this is a tar archive, which is never unpacked here; unpack it and name the folder", fatal=True))
    for bom, name in BOMS.items():
        if chunk.startswith(bom):
            raise Unreadable(
                Bad(None, f"this is {name}, which no data.encoding reads; convert it to UTF-8 (iconv -f {name} -t UTF-8)", 0, fatal=True)
            )
    head = chunk[:4096]
    if encoding == "utf-8" and len(head) > 8 and head.count(0) > len(head) // 4:
        more, less = sorted((head[::2].count(0), head[1::2].count(0)), reverse=True)
        if more > len(head) // 3 and less < len(head) // 8:  # every other byte: not a tail of zeros
            raise Unreadable(Bad(None, "looks like UTF-16 without a mark; convert it to UTF-8 (iconv -f UTF-16LE -t UTF-8)", 0, fatal=True))
    return chunk, 0


def _decode(piece: bytes, number: int, offset: int, encoding: str, last: bool = False) -> tuple[int, int, str] | Bad:
    if piece.endswith(b"\r"):
        piece = piece[:-1]
    if len(piece) > MAX_RECORD:
        return Bad(number, f"one line of more than {MAX_RECORD} bytes; split it into records", offset)
    zero = piece.find(b"\0")
    if zero >= 0:
        return Bad(number, f"zero bytes from byte {offset + zero} on; the file was cut by a crash or is not text", offset + zero)
    try:
        return number, offset, piece.decode(encoding)
    except UnicodeDecodeError as error:
        if last and error.end == len(piece) and error.reason in INSIDE:
            return Bad(number, f"the file ends inside a character: {CUT}", offset + error.start)
        return Bad(number, f"not valid {encoding}{_guess(piece, encoding)}", offset + error.start)


def _guess(piece: bytes, encoding: str) -> str:
    if encoding != "utf-8":
        return "; set data.encoding to what the file was written in"
    try:
        text = piece.decode("gb18030")
        if sum("\u4e00" <= c <= "\u9fff" for c in text) > len(text) / 4:
            return "; it reads as Chinese in GB18030: use data.encoding=gb18030"
    except UnicodeDecodeError:
        pass
    return "; if it is old Western text, use data.encoding=latin-1"

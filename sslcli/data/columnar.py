"""Parquet: read row group by row group, with page checksums, refusing what unpacks to far more than it is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sslcli.data.lines import Bad
from sslcli.errors import Unsafe, printable

MAX_RATIO, SMALL = 200, 64_000_000
ROWS, PORTION = 1024, 32_000_000  # rows and bytes, about, that are unpacked together


def records(path: Path, columns: list[str] | None) -> Iterator[tuple[int, dict[str, Any]] | Bad]:
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        yield Bad(None, _reason(path, error), fatal=True)
        return
    with file:
        refuse_extensions(path, file.schema_arrow)
        meta = file.metadata
        unpacked = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        if unpacked > SMALL and unpacked > MAX_RATIO * path.stat().st_size:
            size = f"{path.stat().st_size} bytes would unpack to {unpacked}"
            yield Bad(None, f"{size}, more than {MAX_RATIO} times (a decompression bomb?); rewrite the file if you trust it", fatal=True)
            return
        wanted = [c for c in columns if c in file.schema_arrow.names] if columns else None
        yield from _rows(file, wanted)


def _rows(file: Any, columns: list[str] | None) -> Iterator[tuple[int, dict[str, Any]] | Bad]:
    number = 0
    for group in range(file.metadata.num_row_groups):
        first, meta = number, file.metadata.row_group(group)
        rows = max(1, min(ROWS, PORTION * meta.num_rows // max(1, meta.total_byte_size)))
        try:
            for batch in file.iter_batches(rows, row_groups=[group], columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (pa.ArrowInvalid, OSError) as error:
            number = first + meta.num_rows
            column = _broken_column(file, group, columns)
            yield Bad(
                first + 1,
                f"row group {group + 1}, column {printable(column)} is damaged ({printable(error, 80)}); fetch the file again",
                fatal=True,
            )
            return


def _broken_column(file: Any, group: int, columns: list[str] | None) -> str:
    for name in columns or file.schema_arrow.names:
        try:
            file.read_row_group(group, columns=[name])
        except (pa.ArrowInvalid, OSError):
            return name
    return "?"


def schema(path: Path) -> dict[str, str] | None:
    """Column -> type, to compare shards; None where the file cannot be opened (reading it will say why)."""
    try:
        found = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError):
        return None
    return {name: str(kind) for name, kind in zip(found.names, found.types, strict=True)}


def refuse_extensions(path: Path, schema: pa.Schema) -> None:
    for field in schema:
        extension = (field.metadata or {}).get(b"ARROW:extension:name", b"").decode("utf-8", "replace")
        if extension or isinstance(field.type, pa.BaseExtensionType):
            name = extension or str(field.type)
            raise Unsafe(f"{path}: column {printable(field.name)} has the extension type {printable(name)}; only plain types are read")


def _reason(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(max(0, path.stat().st_size - 4))
        end = file.read(4)
    if start != b"PAR1":
        return f"named .parquet but begins with {printable(start)}; it is another kind of file"
    if end != b"PAR1":
        return "the end of the parquet file is missing (cut off while it was written?); fetch it again"
    return f"not readable parquet: {printable(error, 120)}"

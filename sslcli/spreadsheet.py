"""Tables for people, as CSV: what a spreadsheet would work out instead of showing it is shown."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how cells begin that are worked out


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([f"'{v}" if isinstance(v, str) and v.startswith(FORMULA) else v for v in row] for row in rows)

"""CSV and TSV: every row has the header's fields, an open quote is named where it opens, nothing is swallowed."""

import csv
from collections.abc import Iterator
from pathlib import Path

from sslcli.data.lines import Bad, Unreadable, lines
from sslcli.errors import printable

MAX_FIELD = 131_072
SPREADSHEET_ERRORS = {"#REF!", "#N/A", "#VALUE!", "#NAME?", "#DIV/0!", "#NUM!", "#NULL!"}


class _Feed:
    """Gives the csv module its lines and remembers where it is; a line that cannot be read stops the row, not the file."""

    def __init__(self, path: Path, encoding: str):
        self.source, self.number, self.offset, self.bad = lines(path, encoding), 0, 0, []  # type: ignore[var-annotated]

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        for line in self.source:
            if not isinstance(line, Bad):
                self.number, self.offset, text = line
                return text + "\n"
            if line.fatal:
                raise Unreadable(line)
            self.bad.append(line)
        raise StopIteration


def records(path: Path, encoding: str, delimiter: str | None) -> Iterator[tuple[int, dict[str, str]] | Bad]:
    suffixes = [s.lower() for s in path.suffixes]
    delimiter = "\t" if delimiter == "tab" else delimiter or ("\t" if ".tsv" in suffixes else ",")
    try:
        yield from _records(path, encoding, delimiter)
    except Unreadable as error:
        yield error.bad


def _records(path: Path, encoding: str, delimiter: str) -> Iterator[tuple[int, dict[str, str]] | Bad]:
    csv.field_size_limit(MAX_FIELD)
    feed = _Feed(path, encoding)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    header = _header(reader, feed, delimiter)
    if header is None:
        return
    while True:
        begins = feed.number + 1
        try:
            row = next(reader)
        except StopIteration:
            yield from feed.bad
            return
        except csv.Error as error:
            yield from _drain(feed)
            bad = _csv_error(str(error), begins, feed.number, feed.offset)
            yield bad
            if bad.fatal:
                return
            continue
        yield from _drain(feed)
        if not row:
            continue
        if len(row) != len(header):
            what = "more" if len(row) > len(header) else "fewer"
            advice = "quote fields that hold the delimiter" if len(row) > len(header) else "add the missing ones"
            yield Bad(begins, f"{len(row)} fields, {what} than the header's {len(header)}; {advice}", feed.offset)
            continue
        broken = next((v for v in row if v.strip() in SPREADSHEET_ERRORS), None)
        if broken is not None:
            yield Bad(begins, f"the cell {printable(broken)} is a spreadsheet error; mend the sheet and export it again", feed.offset)
            continue
        yield begins, dict(zip(header, row, strict=True))


def _header(reader: Iterator[list[str]], feed: _Feed, delimiter: str) -> list[str] | None:
    try:
        header = [name.strip() for name in next(reader)]
    except StopIteration:
        if feed.bad:
            raise Unreadable(feed.bad[0]) from None
        return None
    except csv.Error as error:
        raise Unreadable(_csv_error(str(error), 1, 1, 0)) from error
    if "" in header:
        places = ", ".join(str(i) for i, name in enumerate(header, 1) if not name)
        raise Unreadable(Bad(1, f"the header has no name for column {places}; name what is needed and remove the rest", fatal=True))
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise Unreadable(Bad(1, f"the header names {printable(', '.join(twice))} twice; rename one", fatal=True))
    if len(header) == 1:
        other = next((d for d in (";", "\t", ",", "|") if d != delimiter and d in header[0]), None)
        if other:
            shown = {"\t": "tab"}.get(other, other)
            value = shown if other == "\t" else f'"{shown}"'
            reason = f"1 column found; the delimiter looks like {shown!r}: use data.delimiter={value}"
            raise Unreadable(Bad(1, reason, fatal=True))
    return header


def _drain(feed: _Feed) -> Iterator[Bad]:
    yield from feed.bad
    feed.bad.clear()


def _csv_error(message: str, line: int, last: int, offset: int) -> Bad:
    """`last`: the line that was read last. Where a quote has run over several, they hold records that are in order: no one bad record."""
    if "field larger" in message:
        return Bad(
            line,
            f"a field of more than {MAX_FIELD} characters, or a quote opened here and never closed; use JSON lines for long texts",
            offset,
            fatal=True,
        )
    if "unexpected end" in message:
        return Bad(line, "a quote opens in this record and is never closed; close or double it", offset, fatal=True)
    if "after" in message:
        where = f" (in line {last}, of a quote that this record opens)" if last > line else ""
        return Bad(line, f"text follows a closing quote{where}; double the quotes inside a quoted field", offset, fatal=last > line)
    return Bad(line, f"not CSV: {message}", offset)

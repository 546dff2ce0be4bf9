"""The section of a report on what a run gets wrong, from its errors.json."""

from typing import Any

from sslcli.report.figures import Figures
from sslcli.report.markup import Html, joined, table, tag, text
from sslcli.report.record import number
from sslcli.report.sections import section

PAIRS, WORST, SLICES, DOUBTS = 12, 12, 20, 20  # rows of the tables; all are in the run folder


def errors(figures: Figures) -> Html | None:
    """None where the run made no error analysis."""
    found, words = figures.record.errors, figures.words
    if number(found.get("rows")) is None or number(found.get("wrong")) is None:
        return None
    count = tag("p", words("errors", wrong=f"{found['wrong']:,}", rows=f"{found['rows']:,}"))
    return section(words("h_errors"), count, *_confusions(figures), *_worst(figures), *_slices(figures), *_doubts(figures))


def _confusions(figures: Figures) -> list[Html]:
    words = figures.words
    rows = [
        [
            row.get("gold"),
            row.get("prediction"),
            _number(figures, row, "count"),
            _share(figures, row, "share_of_errors"),
            _share(figures, row, "share_of_label"),
        ]
        for row in _rows(figures.record.errors.get("confusions"))[:PAIRS]
    ]
    head = [words(k) for k in ("is", "taken_for", "times", "of_errors", "of_label")]
    return [tag("h4", words("h_pairs")), table(head, rows, 2)] if rows else []


def _worst(figures: Figures) -> list[Html]:
    words = figures.words
    rows = [
        [text(row.get("input"), 220), row.get("gold"), row.get("prediction"), _number(figures, row, "loss"), _place(row)]
        for row in _rows(figures.record.errors.get("worst"))[:WORST]
    ]
    head = [words(k) for k in ("input", "is", "taken_for", "row_loss", "place")]
    return [tag("h4", words("h_loss")), table(head, rows, 3, "texts")] if rows else []


def _slices(figures: Figures) -> list[Html]:
    found, words = _rows(figures.record.errors.get("slices")), figures.words
    if not found:
        return []
    rows = []
    for row in found[:SLICES]:
        low_high = row.get("interval")
        ends = [number(x) for x in low_high] if isinstance(low_high, list) and len(low_high) == 2 else []
        span = tag("small", words("to", low=_shown(figures, ends[0]), high=_shown(figures, ends[1]))) if None not in ends and ends else None
        name = joined([words.name(row.get("by")), " ", str(row.get("slice"))])
        mark = tag("b", words("weak")) if row.get("weak") is True else ""
        rows.append(
            [name, _number(figures, row, "rows"), joined([_share(figures, row, "score"), span]), _share(figures, row, "rest"), mark]
        )
    head = [words(k) for k in ("slice", "rows", "score", "elsewhere", "verdict")]
    note = tag("p", words("n_slices", count=f"{len(found):,}"), class_="note")
    return [tag("h4", words("h_slices")), table(head, rows), note]


def _doubts(figures: Figures) -> list[Html]:
    found, words = figures.record.errors.get("suspicious"), figures.words
    if not isinstance(found, dict) or number(found.get("checked")) is None:
        return []
    values = {
        "count": _number(figures, found, "count"),
        "checked": _number(figures, found, "checked"),
        "agrees": _share(figures, found, "agrees"),
    }
    if found.get("judged") is False:
        return [tag("h4", words("h_doubts")), tag("p", words("no_judge", **values), class_="note")]
    rows = [
        [text(row.get("text"), 220), row.get("label"), row.get("suggested"), _share(figures, row, "confidence"), _place(row)]
        for row in _rows(found.get("first"))[:DOUBTS]
    ]
    listed = [table([words(k) for k in ("input", "labelled", "suggested", "sure", "place")], rows, 3, "texts")] if rows else []
    return [tag("h4", words("h_doubts")), tag("p", words("doubts", **values), class_="note"), *listed]


def _rows(value: Any) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _place(row: dict[str, Any]) -> str:
    """File and record, where they are known; else which example of its part."""
    if row.get("file") is not None:
        return f"{row['file']}:{row.get('record')}"
    return str(row.get("part") or (row["id"] + 1 if isinstance(row.get("id"), int) else ""))


def _number(figures: Figures, row: dict[str, Any], key: str) -> str:
    return figures.shown(key, number(row.get(key)))


def _share(figures: Figures, row: dict[str, Any], key: str) -> str:
    return _shown(figures, number(row.get(key)))


def _shown(figures: Figures, value: float | None) -> str:
    return figures.shown("accuracy", value)

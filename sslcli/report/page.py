"""`report.html`: what a run came to, in one file that loads nothing and runs nothing. Its first screen is the answer."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sslcli.errors import BadInput, printable
from sslcli.report import card, lead, mistakes, sections
from sslcli.report.compare import between
from sslcli.report.figures import Figures
from sslcli.report.markup import Html, joined, tag
from sslcli.report.record import SOON, Record
from sslcli.report.scouted import scouted
from sslcli.report.words import Words
from sslcli.run import write_atomically

STYLE = Path(__file__).with_name("page.css")
MADE_BY = '<meta name="generator" content="ssl">'  # a file that has it may be written over
PICTURES = 2_600_000  # bytes of pictures in a page; base64 makes a third more of them


class Page:
    def __init__(self, *, language: Literal["en", "zh"]):
        self.words = Words(language)

    def html(self, records: Sequence[Record], most: int | None = None) -> str:
        """The whole file. `most`: predictions that are read of a run."""
        words, (first, *others) = self.words, records
        differences = [between(first, other, most) for other in others]
        if others:
            title = words("compare_title", count=len(records))
            top = [lead.best(words, records, most), lead.side_by_side(words, records, differences)]
        else:
            title, top = Html(""), []
        parts = [tag("header", tag("h1", title), *top, class_="first")] if others else []
        for record in records:
            parts.append(self._run(record, most, PICTURES // len(records), "h2" if others else "h1"))
        body = tag("main", *parts, tag("footer", words("foot")))
        name = joined([title if others else first.name, " · ", words("title")])
        return f"<!doctype html>\n{tag('html', self._head(name), tag('body', body), lang=words.words['lang'])}\n"

    def _run(self, record: Record, most: int | None, pictures: int, level: str) -> Html:
        figures = Figures(self.words, record)
        said = record.predictions(most)
        found = [
            scouted(figures),
            sections.curves(figures),
            sections.classes(figures),
            mistakes.errors(figures) or sections.errors(figures, said),
            sections.pictures(figures, pictures),
            sections.data(figures),
            sections.leaks(figures),
            sections.again(figures),
            sections.receipts(figures),
            sections.numbers(figures),
            sections.settings(figures),
        ]
        return tag("article", lead.answer(figures, level, said), *found)

    def _head(self, title: Html) -> Html:
        """No script may run and nothing may be fetched, whatever stands in the page; its own style is known by its hash."""
        style = STYLE.read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
        return tag(
            "head",
            tag("meta", charset="utf-8"),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
            Html(MADE_BY),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("title", title),
            Html(f"<style>{style}</style>"),
        )


def write(records: Sequence[Record], path: Path, page: Page, most: int | None = None) -> int:
    """Bytes of the file. One of somebody else is not written over."""
    if path.is_dir():
        raise BadInput(f"out={printable(path)}: is a folder; name a file, as in out={printable(path / 'report.html')}")
    if path.exists() and MADE_BY not in path.read_text(encoding="utf-8", errors="replace")[:4000]:
        raise BadInput(f"out={printable(path)}: holds something else than a report; choose another file")
    made = page.html(records, most)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, made)
    return len(made.encode("utf-8"))


def beside(run: Path) -> None:
    """`report.html` of a run that has just ended, and the card of its model, soon: of many predictions only the first are read."""
    record = Record.open(run)
    write([record], run / "report.html", Page(language="en"), SOON)
    if (run / "model").is_dir():
        card.write(record, run / "model", record.name)

"""HTML that cannot be injected into: whatever is put into an element is escaped, unless this module made it."""

from collections.abc import Iterable
from html import escape
from typing import Any

from sslcli.errors import printable

LONGEST = 400  # characters of a text from outside
EMPTY = {"img", "meta"}


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def text(value: object, limit: int = LONGEST) -> Html:
    """A text from outside, to be read and never obeyed: no markup, no control or direction characters, no end of it out of sight."""
    return Html(escape(printable(value, limit)))


def tag(name: str, /, *inside: Any, **attributes: Any) -> Html:
    """`tag("td", label, class_="name")`: an element. `None` is left out; `_` in an attribute's name is `-`, and at its end nothing."""
    shown = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(v, 10**8)}"' for key, v in attributes.items() if v is not None)
    return Html(f"<{name}{shown}>") if name in EMPTY else Html(f"<{name}{shown}>{joined(inside)}</{name}>")


def joined(parts: Iterable[Any]) -> Html:
    return Html("".join(p if isinstance(p, Html) else text(p) for p in parts if p is not None))


def table(head: Iterable[Any], rows: Iterable[Iterable[Any]], numbers_from: int = 1, class_: str | None = None) -> Html:
    """A table that scrolls sideways where the page is narrow; columns from `numbers_from` on hold numbers."""
    head = list(head)

    def cells(name: str, row: Iterable[Any]) -> Html:
        return joined(tag(name, cell, class_="number" if i >= numbers_from else None) for i, cell in enumerate(row))

    top = tag("thead", tag("tr", cells("th", head))) if any(head) else None
    body = tag("tbody", joined(tag("tr", cells("td", row)) for row in rows))
    return tag("div", tag("table", top, body, class_=class_), class_="wide")


def data(value: Any, shown: str, source: str | None) -> Html:
    """A number as people read it, with the number itself and where it stands (`test.accuracy` of metrics.json)."""
    return tag("data", shown, value=repr(value), data_from=source)

"""Charts as SVG inside the page: no script, no font, colours of the page's own style, so that they follow light and dark."""

import math
from collections.abc import Sequence
from typing import Any

from sslcli.report.markup import Html, joined, tag, text

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 250, 46, 10, 10, 26
POINTS = 300  # of a line; more cannot be told apart
COLOURS = 6

Line = tuple[str, Sequence[tuple[float, float]]]


def lines(title: object, series: Sequence[Line], across: object) -> Html | None:
    """Lines over steps, named above in their colours. Values far outside the middle nine tenths do not squeeze the rest."""
    series = [(name, sorted(points)) for name, points in series if points]
    every = [p for _, points in series for p in points]
    if not every or len({x for x, _ in every}) < 2:
        return None
    (x0, x1), (y0, y1) = _range([x for x, _ in every]), _range(_usual([y for _, y in every]))
    ticks = _ticks(y0, y1)
    y0, y1 = min(y0, ticks[0]), max(y1, ticks[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        right = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return round(right, 1), round(HEIGHT - BOTTOM - (min(max(y, y0), y1) - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM), 1)

    drawn: list[Any] = []
    for tick in ticks:
        _, y = at(x0, tick)
        drawn.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        drawn.append(tag("text", _short(tick), x=LEFT - 6, y=y + 4, class_="end"))
    for tick in (t for t in _ticks(x0, x1) if x0 <= t <= x1 and t == round(t)):  # there are no half steps
        drawn.append(tag("text", f"{tick:,.0f}", x=at(tick, y0)[0], y=HEIGHT - 8, class_="middle" if tick > x0 else None))
    for i, (_, points) in enumerate(series):
        places = [at(*p) for p in _thin(points)]
        drawn.append(tag("polyline", points=" ".join(f"{x},{y}" for x, y in places), class_=f"line c{i % COLOURS}"))
        if len(places) < 12:
            drawn += [tag("circle", cx=x, cy=y, r=3, class_=f"dot c{i % COLOURS}") for x, y in places]
    names = joined(tag("span", name, class_=f"key c{i % COLOURS}") for i, (name, _) in enumerate(series))
    picture = tag("svg", joined(drawn), viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=str(title))
    return tag("figure", tag("figcaption", tag("b", title), " ", names), picture, tag("small", across, class_="across"), class_="chart")


def bars(rows: Sequence[tuple[Any, float, tuple[float, float] | None, Html, bool]]) -> Html:
    """A bar a row with its interval: (name, value, interval, value as text, whether it is the one that matters)."""
    most = max([1e-9, *(max(value, high[1] if high else 0) for _, value, high, _, _ in rows)])
    most = 1.0 if 0.5 < most <= 1 else most
    return tag("div", joined(_bar(*row, most) for row in rows), class_="bars")


def _bar(name: Any, value: float, interval: tuple[float, float] | None, shown: Html, ours: bool, most: float) -> Html:
    def share(x: float) -> float:
        return round(100 * min(max(x / most, 0), 1), 2)

    parts = [tag("rect", x=0, y=2, width=share(value), height=12, class_="bar ours" if ours else "bar")]
    if interval:
        low, high = map(share, interval)
        parts.append(tag("line", x1=low, x2=high, y1=8, y2=8, class_="whisker"))
        parts += [tag("line", x1=x, x2=x, y1=4, y2=12, class_="whisker") for x in (low, high)]
    drawn = tag("svg", joined(parts), viewBox="0 0 100 16", preserveAspectRatio="none", aria_hidden="true")
    return tag("div", tag("span", name, class_="name"), drawn, tag("span", shown, class_="value"), class_="row ours" if ours else "row")


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of neighbours, where there are more points than a line can show; the last stays."""
    if len(points) <= POINTS:
        return list(points)
    size = math.ceil(len(points) / POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups] + [points[-1]]


def _usual(values: Sequence[float]) -> list[float]:
    if len(values) < 20:
        return list(values)
    ordered = sorted(values)
    middle = ordered[len(ordered) // 20 : len(ordered) - len(ordered) // 20]
    reach = 1.5 * (middle[-1] - middle[0])
    return [v for v in ordered if middle[0] - reach <= v <= middle[-1] + reach] or list(values)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - max(abs(low) * 0.1, 0.1), high + max(abs(high) * 0.1, 0.1))


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers that span a range."""
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough)
    first = math.floor(low / step + 1e-9)
    return [round((first + i) * step, 12) for i in range(math.ceil((high - first * step) / step - 1e-9) + 1)]


def _short(value: float) -> str:
    return text(f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}")

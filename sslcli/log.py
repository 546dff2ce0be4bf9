"""What a person sees while a run goes on: a live line on a terminal, plain lines elsewhere. All of it on stderr."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from sslcli.errors import printable

PLAIN_EVERY = 10.0  # seconds between progress lines where there is no terminal


class _Terminal(Console):
    def on_broken_pipe(self) -> None:
        """Nobody reads any more (`2>&1 | head`): go on in silence."""
        self.quiet = True


class Screen:
    """`quiet`: errors and the result only. `verbose`: details as well. Ranks other than 0 are silent."""

    def __init__(self, quiet: bool = False, verbose: bool = False, silent: bool = False):
        self.console = _Terminal(stderr=True, highlight=False, soft_wrap=True)
        self.quiet, self.verbose, self.silent = quiet or silent, verbose, silent
        self._bar: Progress | None = None

    def say(self, text: str) -> None:
        if not self.quiet:
            self._print(text)

    def detail(self, text: str) -> None:
        if self.verbose and not self.quiet:
            self._print(text)

    def warn(self, text: str) -> None:
        if not self.silent:
            self._print(f"warning: {text}", "yellow")

    def _print(self, text: str, style: str | None = None) -> None:
        for line in text.split("\n"):
            self.console.print(escape(printable(line, 4000)), style=style)

    @contextlib.contextmanager
    def progress(self, what: str, total: float | None, done: float = 0) -> Iterator["Bar"]:
        """A bar with the time that is left, judged by the speed so far (of this process, not counting what a resume skipped)."""
        if self.quiet:
            yield Bar(self, what, total, done, None)
            return
        if not self.console.is_terminal:
            yield Bar(self, what, total, done, None)
            return
        columns = (TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[note]}"))
        with Progress(*columns, console=self.console, transient=True, refresh_per_second=4) as bar:
            yield Bar(self, what, total, done, bar)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        if self.quiet or not rows:
            return
        table = Table(title=escape(title), title_justify="left", title_style="bold")
        for i, column in enumerate(columns):
            table.add_column(escape(column), justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*(escape(printable(shown(cell))) for cell in row))
        self.console.print(table)

    def result(self, values: Mapping[str, Any]) -> None:
        """The one line on stdout, for scripts; people have seen the table."""
        if not self.silent and not sys.stdout.isatty():
            print(json.dumps(values, ensure_ascii=False, default=str), flush=True)


class Bar:
    def __init__(self, screen: Screen, what: str, total: float | None, done: float, bar: Progress | None):
        self.screen, self.what, self.total, self.first = screen, what, total, done
        self.bar = bar
        self.task = bar.add_task(what, total=total, completed=int(done), note="") if bar else None
        self.started = self.shown = time.monotonic()

    def update(self, done: float, note: str = "", total: float | None = None) -> None:
        """`total`: where it is another now."""
        now, self.total = time.monotonic(), total or self.total
        left = self._left(done, now)
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, total=self.total, completed=int(done), note=escape(printable(f"{note}{left}")))
        elif not self.screen.quiet and now - self.shown >= PLAIN_EVERY:
            self.shown = now
            share = f"{done:,.0f}/{self.total:,.0f}" if self.total else f"{done:,.0f}"
            self.screen.say(f"{self.what} {share}  {note}{left}")

    def _left(self, done: float, now: float) -> str:
        moved = done - self.first
        if not self.total or moved <= 0:
            return ""
        return f"  {duration((self.total - done) * (now - self.started) / moved)} left"


def duration(seconds: float) -> str:
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def seconds(limit: str | float | None) -> float | None:
    """90, "90s", "3m", "1.5h" -> seconds."""
    if limit is None:
        return limit
    limit = str(limit)
    scale = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(limit.strip()[-1:].lower())
    try:
        value = float(limit.strip()[:-1] if scale else limit) * (scale or 1)
    except ValueError as error:
        raise ValueError(f"time_limit={limit}: expected seconds, or a number with s, m, h or d, as in 90s or 2h") from error
    if not 0 < value < float("inf"):
        raise ValueError(f"time_limit={limit}: expected more than zero, and an end")
    return value


def counted(count: int, noun: str, verb: str = "") -> str:
    """So many of them, in words that agree: 1 row, 2 rows; with a verb as several use it: 1 row stands, 2 rows stand."""
    said = {"are": "is", "have": "has", "": ""}.get(verb, f"{verb}s") if count == 1 else verb
    return f"{count:,} {noun}{'' if count == 1 else 's'} {said}".rstrip()


def shown(value: Any) -> str:
    """A number as people read it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"

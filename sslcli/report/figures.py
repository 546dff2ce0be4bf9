"""Numbers of a run as people read them, each with where it stands."""

import json
from pathlib import Path
from typing import Any

from sslcli.report.markup import Html, data, joined, tag, text
from sslcli.report.record import SHARES, Record, number
from sslcli.report.words import Words


class Figures:
    def __init__(self, words: Words, record: Record):
        self.words, self.record = words, record

    def shown(self, key: str, value: Any) -> str:
        """As text. `key` says what it is: a share of all is shown in per cent."""
        if isinstance(value, bool) or number(value) is None:
            return "" if value is None else str(value)
        leaf = key.rsplit(".", 1)[-1]
        if leaf in SHARES and 0 <= value <= 1:
            return self.words.words["share"].format(value=f"{100 * value:.1f}")
        if leaf == "seconds":
            return self.words.duration(value)
        if leaf.endswith("_bytes"):
            return f"{value / 1e6:,.0f} MB"
        if isinstance(value, int):
            return f"{value:,}"
        return f"{value:.4f}" if 1e-3 <= abs(value) < 100 or value == 0 else f"{value:,.1f}" if abs(value) >= 100 else f"{value:.2e}"

    def figure(self, *keys: str) -> Html | None:
        """The number at a path of metrics.json; of a score (split, key) over several seeds, their mean."""
        place = self.record.path(*keys) if len(keys) == 2 else keys
        return self.at(place, self.record.at(*place), keys[-1])

    def at(self, keys: tuple[str, ...], value: Any, name: str = "") -> Html | None:
        """The same, its value known. `name`: what it is of, where the path's end does not say it."""
        if number(value) is None:
            return None
        return data(value, self.shown(name or keys[-1], value), self._place(keys))

    def _place(self, keys: tuple[str, ...]) -> str:
        """The run, and a JSON pointer (RFC 6901) into its metrics.json."""
        return f"{self.record.dir}#" + "".join("/" + k.replace("~", "~0").replace("/", "~1") for k in keys)

    def interval(self, split: str, key: str) -> Html | None:
        found = self.record.interval(split, key)
        if found is None:
            return None
        place = self.record.path(split, key, "interval")
        low, high = (data(x, self.shown(key, x), self._place((*place, str(i)))) for i, x in enumerate(found))
        return self.words("to", low=low, high=high)

    def plain(self, key: str, value: Any) -> Html:
        """Of another file than metrics.json, or of text."""
        if isinstance(value, tuple):
            return joined([self.shown(key, value[0]), " – ", self.shown(key, value[1])])
        if isinstance(value, (list, dict)):
            return text(json.dumps(value, ensure_ascii=False))
        return text(self.shown(key, value))

    def start(self) -> Html:
        """What the run started from."""
        source = self.record.config.get("from") or self.record.config.get("run")
        if not isinstance(source, str):
            return self.words("scratch")
        if self.record.config.get("init") == "random":
            return self.words("untrained", source=source)
        parts = Path(source).parts
        return tag("code", source if len(parts) < 4 else f"\u2026/{parts[-2]}/{parts[-1]}", title=source)  # its end tells

"""`ssl leaks`: rows of one part of the data that stand in another as well, listed pair by pair."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sslcli.commands import Call
from sslcli.commands.folder import NOTHING_KEPT
from sslcli.data.radar import Rows
from sslcli.errors import BadInput, printable
from sslcli.evidence import likeness
from sslcli.evidence.leaks import KINDS, Leaks, Sketch, radar
from sslcli.log import counted
from sslcli.run import storage, write_atomically
from sslcli.schema import Part
from sslcli.spreadsheet import write_table

COLUMNS = ("part", "row", "in", "in_row", "kind", "similarity", "place", "in_place", "text", "in_text")


def leaks(call: Call, *, data: Part[Rows], out: str, plugins: list[str]) -> dict[str, Any]:
    source, target = data.build(), Path(out)
    if len(source.parts) < 2:
        raise BadInput("data: name two parts or more, as in data.train=train.csv data.test=test.csv")
    if target.exists() and not (target.is_dir() and ((target / "leaks.json").exists() or not any(target.iterdir()))):
        raise BadInput(f"out={printable(out)}: already holds something else; choose another folder")

    # every part as what is compared of it
    stores: dict[str, Any] = {}
    if source.kind == "image":
        stores = {part: source.pictures(part, likeness.SIDE) for part in source.parts}
        looks = {part: likeness.Looks.of(store.count, likeness.taker(store)) for part, store in stores.items()}
        found = radar(looks, likeness.between)
    else:
        found = radar({part: _sketch(call, source, part) for part in source.parts})

    # what was found
    summary = found.summary()
    rows = [[f"{s['part']} in {s['in']}", *(s[kind] for kind in KINDS), s["rows"], f"{s['share']:.2%}"] for s in summary]
    call.screen.table(out, ("", "word for word" if source.kind == "text" else "equal", "nearly", "in pieces", "rows", "share"), rows)
    call.screen.say(sentence(found))
    result = {"out": out, "rows": found.rows, "overlap": summary}
    if call.dry_run:
        call.screen.say(NOTHING_KEPT)
        return result
    with storage(target.parent):
        target.mkdir(parents=True, exist_ok=True)
        _list(target / "pairs.csv", found, source, stores)
        write_atomically(target / "leaks.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    call.screen.say(f"pairs.csv          {target / 'pairs.csv'}")
    return result


def sentence(found: Leaks) -> str:
    """The finding in words, of the part that is scored."""
    part = next(name for name in ("test", "valid", "train") if name in found.rows)
    others = [one for one, two in found.pairs if two == part]
    leaked = len(found.leaked(part, others))
    where = " or ".join(others)
    if not leaked:
        return f"no row of {part} was found in {where}"
    remedy = "; take them out of one side, or trust no score of them" if part != "train" else ""
    stand = "stands" if leaked == 1 else "stand"
    return (
        f"{leaked:,} of {counted(found.rows[part], 'row')} of {part} ({leaked / found.rows[part]:.1%}) {stand} in {where} as well{remedy}"
    )


def _sketch(call: Call, source: Rows, part: str) -> Sketch:
    with call.screen.progress(f"reading {part}", None) as bar:

        def texts() -> Any:
            for i, (_, text) in enumerate(source.texts(part)):
                if i % 10_000 == 0:
                    bar.update(i, f"{i:,} rows")
                yield text

        return Sketch.of(texts())


def _list(path: Path, found: Leaks, source: Rows, stores: dict[str, Any]) -> None:
    """A line a pair; the rows are read once more, for how they begin."""
    wanted: dict[str, set[int]] = {}
    for (one, two), pairs in found.pairs.items():
        wanted.setdefault(one, set()).update(p.first for p in pairs)
        wanted.setdefault(two, set()).update(p.second for p in pairs)
    shown = {part: source.shown(part, np.array(sorted(rows), np.int64), stores.get(part)) for part, rows in wanted.items()}

    def listed() -> Iterator[tuple[Any, ...]]:
        for (one, two), pairs in found.pairs.items():
            for p in pairs:
                (place, text), (in_place, in_text) = shown[two][p.second], shown[one][p.first]
                yield two, p.second + 1, one, p.first + 1, p.kind, p.similarity, place, in_place, text, in_text

    write_table(path, COLUMNS, listed())

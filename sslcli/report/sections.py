"""The parts of a report, each from what one run wrote down; a part that has nothing to say is not there."""

import base64
import io
from pathlib import Path
from typing import Any

from sslcli.report import chart
from sslcli.report.figures import Figures
from sslcli.report.markup import Html, joined, table, tag, text
from sslcli.report.record import RIGHT, Predictions, leaves, number

CLASSES, ROWS, FILES = 60, 400, 30  # rows of a table; more are in the run folder
SIDE = 1400  # pixels to which a picture that does not fit is brought down


def section(title: Html, *parts: Html | None) -> Html | None:
    some = [p for p in parts if p]
    return tag("section", tag("h3", title), *some) if some else None


def count_of(facts: Any) -> tuple[int, str]:
    """How many of what a part holds."""
    facts = facts if isinstance(facts, dict) else {}
    if (documents := number(facts.get("documents"))) is not None:
        return int(documents), "documents"
    return int(number(facts.get("examples")) or 0), "pictures" if "pixels" in facts else "examples"


def curves(figures: Figures) -> Html | None:
    record, words = figures.record, figures.words
    training: dict[str, list[tuple[float, float]]] = {}
    held: dict[str, list[tuple[float, float]]] = {}
    for line in record.log:
        step = number(line.get("step"))
        for into, values in ((training, line), (held, line.get("valid"))):
            for key, value in values.items() if step is not None and isinstance(values, dict) else ():
                if (y := number(value)) is not None:
                    into.setdefault(key, []).append((float(step or 0), float(y)))
    losses: list[chart.Line] = []
    for key in [k for k in training if k == "loss" or k.endswith(".loss")][:4]:
        losses.append((f"{words('c_training')} {key.removesuffix('loss').strip('.')}".strip(), training[key]))
    losses += [(words.name("valid"), held["loss"])] if "loss" in held else []
    kept = [k for k in held if k.rsplit(".")[-1] in RIGHT | {"macro_f1", "f1", "knn", "probe", "map", "masked_accuracy"}]
    kept = kept or [k for k in held if k.endswith(("accuracy", "retrieval_accuracy"))]
    scores: list[chart.Line] = [(words.name(k), held[k]) for k in kept[:4]]
    drawn = (chart.lines(words("c_loss"), losses, words("c_step")), chart.lines(words("c_scores"), scores, words("c_step")))
    some = [d for d in drawn if d]
    return section(words("h_curves"), tag("div", *some, class_="charts")) if some else None


def classes(figures: Figures) -> Html | None:
    """Precision, recall, F1 and support of every label; of very many, the weakest and the averages."""
    record, words = figures.record, figures.words
    split = record.split
    report = record.metrics[split].get("report") if split else None
    report = {k: v for k, v in report.items() if isinstance(v, dict)} if isinstance(report, dict) else {}
    averages = [k for k in report if k.endswith(" avg")]
    names = [k for k in report if k not in averages]
    note = None
    if len(names) > CLASSES:
        note = tag("p", words("n_classes", count=CLASSES, all=f"{len(names):,}"), class_="note")
        names = sorted(names, key=lambda k: number(report[k].get("f1-score")) or 0.0)[:CLASSES]
    keys = ("precision", "recall", "f1-score", "support")
    rows = [
        [words.name(k) if k in averages else k] + [figures.figure(str(split), "report", k, x) or "" for x in keys] for k in names + averages
    ]
    head = [words("label"), *(words.name(k) for k in keys[:3]), words("support")]
    return section(words("h_classes"), table(head, rows), note) if rows else None


def errors(figures: Figures, said: Predictions | None) -> Html | None:
    words = figures.words
    if said is None or not said.wrong:
        return None
    count = words("errors" if said.all_read else "errors_part", wrong=f"{said.wrong:,}", rows=f"{said.rows:,}")
    pairs = table([words("is"), words("taken_for"), words("times")], [(a, b, f"{n:,}") for a, b, n in said.pairs], 2)
    worst = [(text(shown, 220), a, b, figures.shown("accuracy", sure)) for sure, a, b, shown in said.worst]
    rows = table([words("input"), words("is"), words("taken_for"), words("sure")], worst, 3, "texts")
    return section(words("h_errors"), tag("p", count), tag("h4", words("h_pairs")), pairs, tag("h4", words("h_worst")), rows)


def pictures(figures: Figures, budget: int) -> Html | None:
    shown: list[Html] = []
    left_out: list[str] = []
    for path in figures.record.pictures():
        kind, content = _fitting(path, min(budget, 900_000))
        if content is None:
            left_out.append(path.name)
            continue
        budget -= len(content)
        source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        shown.append(tag("figure", tag("img", src=source, alt=path.name), tag("figcaption", path.name), class_="picture"))
    missing = tag("p", figures.words("left_out", names=", ".join(left_out)), class_="note") if left_out else None
    return section(figures.words("h_pictures"), *shown, missing)


def _fitting(path: Path, most: int) -> tuple[str, bytes | None]:
    """The file itself, or a smaller picture of it."""
    try:
        if path.stat().st_size <= most:
            return "png", path.read_bytes()
        from PIL import Image

        with Image.open(path) as picture:
            picture.thumbnail((SIDE, SIDE))
            made = io.BytesIO()
            picture.convert("RGB").save(made, "WEBP", quality=80)
        return "webp", made.getvalue() if made.tell() <= most else None
    except Exception:  # a damaged picture; the report says that it is not there
        return "png", None


def data(figures: Figures) -> Html | None:
    record, words = figures.record, figures.words
    parts = [(s, f) for s in ("train", "valid", "test", "gallery") if isinstance(f := record.data.get(s), dict)]
    rows = []
    for split, facts in parts:
        count, things = count_of(facts)
        tokens, cut = number(facts.get("tokens")), number(facts.get("cut_rows"))
        counted = joined([f"{count:,} ", words(things)])
        rows.append([words.name(split), counted, f"{tokens:,}" if tokens is not None else "", f"{cut:,}" if cut is not None else ""])
    files = [(s, f) for s, fs in (record.data.get("files") or {}).items() if isinstance(fs, list) for f in fs if isinstance(f, dict)]
    listed = [
        [
            str(f.get("file", "")),
            words.name(s),
            f"{size:,}" if (size := number(f.get("bytes"))) is not None else "",
            _code(f.get("sha256"), 16),
        ]
        for s, f in files[:FILES]
    ]
    more = tag("p", words("more", count=f"{len(files) - FILES:,}", file="data.json"), class_="note") if len(files) > FILES else None
    told = table([words("part"), words("count"), words("tokens"), words("cut")], rows) if rows else None
    filed = table([words("file"), words("part"), words("size"), words("sha")], listed, 2) if listed else None
    return section(words("h_data"), told, tag("h4", words("h_files")) if filed else None, filed, more)


def _code(value: Any, limit: int) -> Html:
    return tag("code", str(value)[:limit] if value else "")


def leaks(figures: Figures) -> Html | None:
    found = figures.record.metrics.get("leaks")
    if not isinstance(found, dict):
        return None
    rows = [[_code(".".join(k), 60), figures.figure("leaks", *k) or figures.plain("", v)] for k, v in _paths(found)]
    return section(figures.words("h_leaks"), table([figures.words("key"), figures.words("value")], rows))


def receipts(figures: Figures) -> Html | None:
    found = list(leaves(figures.record.receipts))
    rows = [[_code(k, 120), figures.plain(k.split(".")[-1], v)] for k, v in found]
    return _folded(figures, "h_receipts", rows, "receipts.json")


def numbers(figures: Figures) -> Html | None:
    rows = [[_code(".".join(k), 160), figures.at(k, v) or figures.plain("", v)] for k, v in _paths(figures.record.metrics)]
    return _folded(figures, "h_all", rows, "metrics.json")


def _paths(value: Any, keys: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """(keys, plain value), the items of lists by their place."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) and len(value) < 50 else None
    if inner is None or len(keys) > 6:
        return [(keys, value)]
    return [leaf for k, v in inner for leaf in _paths(v, (*keys, str(k)))]


def settings(figures: Figures) -> Html | None:
    rows = [[_code(k, 120), figures.plain("", v)] for k, v in leaves(figures.record.config)]
    return _folded(figures, "h_config", rows, "config.yaml")


def _folded(figures: Figures, title: str, rows: list[Any], file: str) -> Html | None:
    """Long tables that few want: opened with a click, and when printed."""
    if not rows:
        return None
    words = figures.words
    more = tag("p", words("more", count=f"{len(rows) - ROWS:,}", file=file), class_="note") if len(rows) > ROWS else None
    inner = table([words("key"), words("value")], rows[:ROWS])
    return tag("section", tag("details", tag("summary", tag("h3", words(title))), inner, more))


def again(figures: Figures) -> Html | None:
    """The commands, and what they were run with."""
    record, words = figures.record, figures.words
    typed = "\n".join(str(text(c, 4000)) for c in record.commands)
    commands = joined([tag("p", words("again"), class_="note"), tag("pre", tag("code", Html(typed)))]) if typed else None
    made = [(k, v) for k, v in leaves(record.environment) if not k.startswith("command") and k != "format"]
    rows = [[_code(k.removeprefix("packages."), 80), figures.plain("", v)] for k, v in made]
    with_what = joined([tag("h4", words("h_environment")), table([], rows)]) if rows else None
    return section(words("h_again"), commands, with_what)

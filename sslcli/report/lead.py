"""The first screen of a report: what was trained, what it came to, and whether that beats what is cheap; or which run is best."""

from collections.abc import Sequence
from typing import Any

from sslcli.evidence.causes import sentence
from sslcli.report import chart
from sslcli.report.compare import Difference, between, unpaired
from sslcli.report.figures import Figures
from sslcli.report.markup import Html, joined, table, tag, text
from sslcli.report.markup import data as number_of
from sslcli.report.record import RIGHT, SHARES, Predictions, Record, number
from sslcli.report.sections import count_of, section
from sslcli.report.words import Words


def answer(figures: Figures, level: str, said: Predictions | None) -> Html:
    """What was trained, what it came to, and what a cheap method makes of the same labels."""
    record, words = figures.record, figures.words
    kind = words.name(record.kind) if record.kind else None
    started = str(record.environment.get("started", ""))[:10]
    above = " · ".join(p for p in (str(words(record.verb)), kind, started) if p)
    lead = _pretrained(figures) if record.verb == "pretrain" else _trained(figures, said)
    lead += [tag("p", told, class_="verdict") for line in record.log if (told := sentence(line.get("alarm"), words.language))]
    facts = [(words(k), v) for k, v in _facts(figures) if v]
    listed = tag("dl", joined(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts), class_="facts")
    title = tag(level, record.name)
    return tag("header", tag("p", above, class_="above"), title, *lead, listed, class_="first")


def _trained(figures: Figures, said: Predictions | None) -> list[Html]:
    record, words = figures.record, figures.words
    split, key = record.split, record.score
    if split is None or key is None:
        return []
    score, part = figures.figure(split, key), words.name(split)
    rows = said.rows if said and said.all_read and key in RIGHT else None
    first = words("right", score=score, rows=f"{rows:,}", split=part) if rows else None
    first = first or words("scored", score=score, name=words.name(key), split=part)
    interval = tag("small", words("interval"), " ", found) if (found := figures.interval(split, key)) else None
    sentences = [tag("p", first, " ", interval, class_="answer"), tag("p", _against_cheap(figures, split, key), class_="verdict")]
    if count := figures.figure("seeds", "asked"):
        sentences.append(tag("p", words("means", count=count, seed=figures.figure("seeds", "delivered")), class_="note"))
    if more := _against_start(figures, key):
        sentences.append(tag("p", more, class_="verdict"))
    if more := _leaked(figures, key):
        sentences.append(tag("p", more, class_="verdict"))
    return [*sentences, _beside_each_other(figures, split, key)]


def _against_cheap(figures: Figures, split: str, key: str) -> Html:
    record, words = figures.record, figures.words
    cheap = record.value("baseline", key)
    ours = record.value(split, key)
    if cheap is None or ours is None:
        return words("no_baseline")
    if ends := record.ends("seeds", "above_baseline", key, "interval"):  # seed by seed, on the same labels
        found: Difference | None = Difference(ours - cheap, *ends, 0)
    else:
        found = unpaired(cheap, record.interval("baseline", key), ours, record.interval(split, key))
    verdict = found.verdict(key) if found else Difference(ours - cheap, ours - cheap, ours - cheap, 0).verdict(key)
    method = words.name(record.metrics["baseline"].get("method", "baseline"))
    said = {"better": "win", "same": "draw" if found else "lose", "worse": "lose"}[verdict]
    return words(said, method=method, cheap=figures.figure("baseline", key))


def _against_start(figures: Figures, key: str) -> Html | None:
    """What a head on the untouched start came to, where the run compared: both networks held still."""
    found = figures.record.metrics.get("verdict")
    if not isinstance(found, dict) or found.get("verdict") not in ("helped", "no difference", "hurt"):
        return None
    ours, start = (figures.at(("verdict", name), found.get(name), key) for name in ("pretrained", "start"))
    return figures.words(str(found["verdict"]), ours=ours, score=start) if ours and start else None


def _leaked(figures: Figures, key: str) -> Html | None:
    found = figures.record.metrics.get("leaks")
    if not isinstance(found, dict) or not number(found.get("rows")):
        return None
    score = figures.figure(f"{found.get('of')}_without_leaks", key)
    return figures.words("leaks", count=figures.figure("leaks", "rows"), score=score) if score else None


def _beside_each_other(figures: Figures, split: str, key: str) -> Html:
    record, words = figures.record, figures.words
    rows: list[Any] = []
    for name, part, leaf, ours in (
        (words("this"), split, key, True),
        (words.name((record.metrics.get("baseline") or {}).get("method", "")), "baseline", key, False),
        (words("majority"), "baseline", "majority_accuracy" if key in ("accuracy", "top1") else "", False),
    ):
        value = record.value(part, leaf)
        if value is not None:
            interval = figures.interval(part, leaf)
            shown = joined([figures.figure(part, leaf), tag("small", interval) if interval else None])
            rows.append((name, value, record.interval(part, leaf), shown, ours))
    return joined([tag("p", words("measure", name=words.name(key)), class_="note"), chart.bars(rows)])


def _pretrained(figures: Figures) -> list[Html]:
    record, words = figures.record, figures.words
    train = record.data.get("train") if isinstance(record.data.get("train"), dict) else {}
    count, things = count_of(train)
    steps, seconds = figures.figure("train", "steps"), figures.figure("train", "seconds")
    found = [tag("p", words("learned", count=f"{count:,}", things=words(things), steps=steps, time=seconds), class_="answer")]
    split = record.split
    looks = [v for line in record.log if isinstance(line.get("valid"), dict) and (v := number(line["valid"].get("loss"))) is not None]
    part = "valid" if record.value("valid", "loss") is not None else str(split)  # what training looked at
    if last := figures.figure(part, "loss"):
        ended = record.value(part, "loss") or 0.0
        looks = looks if part == "valid" else []
        key = "loss_is" if not looks else "loss_fell" if ended < looks[0] else "loss_rose"
        found.append(tag("p", words(key, first=f"{looks[0]:.4f}" if looks else "", last=last), class_="verdict"))
    if split and (probe := figures.figure(split, "probe")):
        found.append(tag("p", words("probe_is", score=probe), class_="verdict"))
    if more := _more(figures):
        found.append(tag("p", more, class_="verdict"))
    return [*found, tag("p", words("worth"), class_="verdict")]


def _more(figures: Figures) -> Html | None:
    """What more pretraining would bring, where somebody looked beside it."""
    found, words = figures.record.metrics.get("projection"), figures.words
    if not isinstance(found, dict) or number(found.get("seconds")) is None:
        return None
    values: dict[str, Any] = {"time": figures.figure("projection", "seconds"), "name": words.name(found.get("metric"))}
    ends = found.get("gain_interval")
    if number(found.get("gain")) is None or not isinstance(ends, list) or [number(x) for x in ends].count(None) or len(ends) != 2:
        return words("more_unknown", **values)
    gain, low, high = (_signed(figures, "probe", float(x)) for x in (found["gain"], *ends))
    key = {"helps": "more_helps", "hardly helps": "more_hardly"}.get(str(found.get("verdict")), "more_may")
    return words(key, **values, gain=gain, low=low, high=high)


def _facts(figures: Figures) -> list[tuple[str, Html | None]]:
    record, words = figures.record, figures.words
    count, things = count_of(record.data.get("train"))
    labels = record.data.get("labels_in_order")
    part = "train" if "train" in record.metrics else "evaluation"
    return [
        ("start", figures.start()),
        ("trained_on", joined([f"{count:,} ", words(things)]) if count else None),
        ("labels", text(f"{len(labels):,}") if isinstance(labels, list) and labels else None),
        ("steps", figures.figure(part, "steps")),
        ("time", figures.figure("seeds" if record.at("seeds", "seconds") else part, "seconds")),
        ("memory", figures.figure(part, "peak_memory_bytes")),
    ]


def best(words: Words, records: Sequence[Record], most: int | None) -> Html:
    """The highest of several runs against the one that follows it."""
    first = records[0]
    alike = [r for r in records if r.score and r.score == first.score and r.split == first.split]
    if len(alike) < 2 or first.score is None:
        return tag("p", words("unlike"), class_="answer")
    key, split = first.score, str(first.split)
    ranked = sorted(alike, key=lambda r: r.value(split, key) or 0.0, reverse=Difference(0, 1, 1, 0).verdict(key) == "better")
    top, other = ranked[0], ranked[1]
    found = between(other, top, most)
    high, low = (Figures(words, r).figure(split, key) for r in (top, other))
    tie = top.value(split, key) == other.value(split, key)
    said = "unclear" if found is None else "chance" if found.verdict(key) == "same" else "clear"
    lead = tag("p", words("tie" if tie else "best", best=top.name, score=high, other=other.name, cheap=low), class_="answer")
    rows = []
    for record in ranked:
        figures = Figures(words, record)
        shown = joined([figures.figure(split, key), tag("small", figures.interval(split, key))])
        rows.append((record.name, record.value(split, key) or 0.0, record.interval(split, key), shown, record is top))
    note = tag("p", words("measure", name=words.name(key)), class_="note")
    return joined([lead, None if tie else tag("p", words(said), class_="verdict"), note, chart.bars(rows)])


def side_by_side(words: Words, records: Sequence[Record], differences: Sequence[Difference | None]) -> Html | None:
    first = records[0]
    head = [words("run"), words("score"), words("difference", name=first.name), words("verdict")]
    head += [words(k) for k in ("start", "trained_on", "steps", "time", "memory")]
    rows = []
    for record, found in zip(records, [None, *differences], strict=True):
        figures, (split, key) = Figures(words, record), (record.split, record.score)
        facts = dict(_facts(figures))
        score: Any = ""
        if split and key:
            score = joined([words.name(key), " ", figures.figure(split, key), tag("small", figures.interval(split, key))])
        verdict = "" if record is first else words(found.verdict(str(key))) if found else words("unknown")
        cells = [tag("b", record.name), score, _difference(figures, key, found), verdict]
        rows.append([*cells, *(facts[k] or "" for k in ("start", "trained_on", "steps", "time", "memory"))])
    return section(words("h_compare"), table(head, rows, len(head), "runs"))


def _difference(figures: Figures, key: str | None, found: Difference | None) -> Html | str:
    if found is None or key is None:
        return ""
    shown = [_signed(figures, key, x) for x in (found.value, found.low, found.high)]
    how = figures.words("paired", rows=f"{found.paired:,}") if found.paired else figures.words("unpaired")
    return joined([shown[0], tag("small", figures.words("to", low=shown[1], high=shown[2])), tag("small", how)])


def _signed(figures: Figures, key: str, value: float) -> Html:
    """A difference; of shares, in points of a hundred."""
    shown = str(figures.words("points", value=f"{100 * abs(value):.1f}")) if key in SHARES else figures.shown(key, abs(value))
    return number_of(value, f"{'−' if value < 0 else '+'}{shown}", None)

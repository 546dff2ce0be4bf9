"""What a reading of two score curves (efficiency.py) means, in words and in money."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sslcli.evidence.efficiency import Reading


def told(reading: Reading, names: Sequence[str], tells: bool, budgets: np.ndarray, price: float | None) -> dict[str, Any]:
    """The reading as plain values, with `verdict` and `sentence`. `names`: with pretraining, without. Where no curve rises
    and they are not apart (not `tells`), labels teach nothing and none can have been saved."""
    least, most = budgets[[0, -1]].tolist()
    verdict = reading.verdict if tells else "nothing saved"
    few, many = number(reading.few, least, most), number(reading.many, least, most)
    fixed = reading.many_interval[0] == reading.many_interval[1]  # the score was read off the curve without pretraining
    span = spanned(reading.few_interval if fixed else reading.many_interval, least, most)
    pair = f"{names[0]} with {few} labels{span if fixed else ''} = {names[1]} with {many}{'' if fixed else span}"
    sentence = {
        "saved": f"{pair}; {_number_saved(reading, budgets)}{_shares(reading)}{_money(reading, budgets, price)}",
        "hurt": f"it hurt: {pair}",
        "nothing saved": f"nothing saved that can be told from chance: {pair}",
    }[verdict]
    if not tells:
        sentence = f"nothing saved: more labels do not raise the score ({least:,} to {most:,} were tried)"
    values = {k: getattr(reading, k) for k in ("score", "few", "few_interval", "many", "many_interval", "saved", "saved_interval")}
    return {"verdict": verdict, "sentence": sentence, **values, **_saved_labels(reading, budgets), **_saved_money(reading, budgets, price)}


def number(labels: float, least: int, most: int) -> str:
    """Labels for people; beyond what was tried only the side is known."""
    return f"more than {most:,}" if labels == math.inf else f"at most {least:,}" if labels <= 0 else f"{labels:,.0f}"


def spanned(interval: tuple[float, float], least: int, most: int) -> str:
    low, high = interval
    if low <= 0 and high == math.inf:
        return " (95 % interval: anything)"
    if high == math.inf:
        return f" (95 % interval: >= {low:,.0f})"
    if low <= 0:
        return f" (95 % interval: <= {high:,.0f})"
    return f" (95 % interval {low:,.0f} to {high:,.0f})"


def table(each: Sequence[dict[str, Any]], budgets: np.ndarray) -> list[list[str]]:
    """A line a budget: with pretraining so many labels, without so many."""
    least, most = budgets[[0, -1]].tolist()
    return [
        [number(r["few"], least, most), number(r["many"], least, most), spanned(r["many_interval"], least, most).strip(" ()")] for r in each
    ]


def plain(value: Any) -> Any:
    """For JSON, which has no infinity: null where a number lies beyond what was tried."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shares(reading: Reading) -> str:
    low, high = (max(0.0, x) for x in reading.saved_interval)
    return f" ({low:.0%} to {high:.0%})"


def _saved_labels(reading: Reading, budgets: np.ndarray) -> dict[str, Any]:
    """`labels_saved`, or no fewer than these (`at_least`) where one curve lies beyond the budgets; nothing where that is not known."""
    if reading.few == math.inf or reading.many <= 0:
        return {}
    beyond = reading.few <= 0 or reading.many == math.inf
    few = float(budgets[0]) if reading.few <= 0 else reading.few
    many = float(budgets[-1]) if reading.many == math.inf else reading.many
    return {"labels_saved": round(many - few, 6), "at_least": beyond}


def _number_saved(reading: Reading, budgets: np.ndarray) -> str:
    found = _saved_labels(reading, budgets)
    return f"at least {found['labels_saved']:,.0f} labels saved" if found.get("at_least") else f"{reading.saved:.0%} of the labels saved"


def _saved_money(reading: Reading, budgets: np.ndarray, price: float | None) -> dict[str, float]:
    found = _saved_labels(reading, budgets)
    return {"label_price": price, "money_saved": found["labels_saved"] * price} if price is not None and found else {}


def _money(reading: Reading, budgets: np.ndarray, price: float | None) -> str:
    found = _saved_money(reading, budgets, price)
    least = "at least " if _saved_labels(reading, budgets).get("at_least") else ""
    return f"; worth {least}{found['money_saved']:,.2f} at {price:,.2f} a label" if found else ""


def unripe(points: Sequence[Mapping[str, Any]], name: str) -> str | None:
    """More labels do not harm a network that is trained to its end. Where they seem to, by more than chance, its runs were too short,
    and what pretraining saved is told too high."""
    last = points[-1]
    best = max(points, key=lambda p: p["score"])
    if best["interval"][0] <= last["score"]:
        return None
    found = f"{best['score']:.3f} with {best['labels']:,} labels and {last['score']:.3f} with {last['labels']:,}"
    return f"but {name} has {found}: its runs were too short, and less is saved than that"

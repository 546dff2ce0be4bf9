"""The leak radar: time and memory for a million short texts by the command line, and what it finds of planted leaks."""

import csv
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from scripts.benchmarks.rows import Bench

PLANTED = 2000  # of each kind
WORDS = 30_000


def rows(bench: Bench) -> None:
    count = 50_000 if bench.quick else 1_000_000
    tests = count // 10
    chance = random.Random(0)
    known = ["".join(chance.choices("abcdefghijklmnoprstuvwy", k=chance.randint(2, 10))) for _ in range(WORDS)]
    total, weights = 0.0, []
    for i in range(WORDS):
        weights.append(total := total + 1 / (i + 10))

    def text() -> str:
        return " ".join(chance.choices(known, cum_weights=weights, k=chance.randint(10, 24))).capitalize() + "."

    train = [text() for _ in range(count - tests)]
    kinds: dict[str, Callable[[str], str]] = {
        "exact": lambda t: t,
        "re-wrapped": lambda t: t.replace(" ", "\n  ", 3),
        "re-cased, other punctuation": lambda t: t.upper().replace(" ", ", ", 2).rstrip(".") + "!",
        "10 % of words changed": lambda t: _changed(t, chance),
    }
    planted = [(kind, i) for kind in kinds for i in chance.sample(range(len(train)), min(PLANTED, tests // 8))]
    test = [kinds[kind](train[i]) for kind, i in planted]
    test += [text() for _ in range(tests - len(test))]
    paths = {name: _written(bench.folder / f"leaks-{name}.jsonl", texts) for name, texts in (("train", train), ("test", test))}
    out = bench.fresh("leaks")
    done = bench.ssl("leaks", f"data.train={paths['train']}", f"data.test={paths['test']}", f"out={out}")
    bench.row(f"leak radar, {count:,} short texts", done.seconds, unit="s", better="lower", peak_memory_mb=done.peak_bytes / 1e6)
    with (out / "pairs.csv").open(newline="", encoding="utf-8") as file:
        found = {int(row["row"]) - 1: int(row["in_row"]) - 1 for row in csv.DictReader(file)}
    right = Counter(kind for place, (kind, i) in enumerate(planted) if found.get(place) == i)
    for kind, share in Counter(kind for kind, _ in planted).items():
        bench.row(f"leak radar, found: {kind}", right[kind] / share, unit="share", planted=share)
    false = sum(place >= len(planted) for place in found)
    bench.row("leak radar, false", false / (tests - len(planted)), unit="share of the other test rows", better="lower", rows=false)


def _changed(text: str, chance: random.Random) -> str:
    parts = text.split()
    for i in chance.sample(range(len(parts)), round(len(parts) / 10)):
        parts[i] = f"other{chance.randint(0, 10**6)}"
    return " ".join(parts)


def _written(path: Path, texts: list[str]) -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": t}) + "\n" for t in texts)
    return path

"""A finished run, read from its folder as plain values. The folder may be a stranger's: nothing in it is trusted to be what it should."""

import heapq
import json
import math
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from sslcli import config
from sslcli.errors import BadInput, at, printable
from sslcli.run import config_of

HEADLINE = (
    *("top1", "accuracy", "f1", "recall@1", "spearman", "ndcg@10", "map", "probe", "knn", "bits_per_byte", "perplexity"),
    *("masked_accuracy", "token_accuracy", "psnr", "loss"),
)
RIGHT = {"top1", "accuracy", "recall@1"}  # a mean over examples of whether they are right
LOWER_IS_BETTER = {"loss", "perplexity", "bits_per_byte", "mae", "ece"}
SHARES = {"top1", "top5", "accuracy", "macro_f1", "micro_f1", "f1", "precision", "recall", "f1-score", "map", "probe", "knn"}
SHARES |= {"recall@1", "recall@5", "recall@10", "masked_accuracy", "token_accuracy", "contrastive_accuracy", "retrieval_accuracy"}
SHARES |= {"majority_accuracy", "assignment_accuracy"}
WORST, PAIRS = 12, 12  # rows and pairs of labels that are kept of the predictions
SOON = 20_000  # predictions that are read where a run waits for its report
BEFORE = 4  # runs that a run's `from=` is followed through


@dataclass
class Predictions:
    """What predictions.jsonl says, in bounded memory."""

    rows: int = 0
    wrong: int = 0
    all_read: bool = True
    pairs: list[tuple[str, str, int]] = field(default_factory=list)  # is, taken for, how often; the most frequent first
    worst: list[tuple[float, str, str, str]] = field(default_factory=list)  # how sure, is, taken for, input; the surest first


@dataclass
class Record:
    dir: Path
    config: dict[str, Any]
    metrics: dict[str, Any]
    data: dict[str, Any]
    environment: dict[str, Any]
    receipts: dict[str, Any]
    log: list[dict[str, Any]]  # the lines of metrics.jsonl
    scout: dict[str, Any] = field(default_factory=dict)  # of a run whose objective was chosen by pilots
    errors: dict[str, Any] = field(default_factory=dict)  # of runs that looked at what they get wrong

    @classmethod
    def open(cls, folder: Path) -> "Record":
        tree = config.load(config_of(folder))
        if not (folder / "metrics.json").is_file():
            raise BadInput(f"run={printable(folder)}: not finished, it has no metrics.json; finish it with run.dir=<it> resume=auto")
        values = {name: _mapping(folder / f"{name}.json") for name in ("metrics", "data", "environment", "receipts", "scout", "errors")}
        return cls(folder, tree, log=list(lines(folder / "metrics.jsonl")), **values)

    @property
    def name(self) -> str:
        return self.dir.name or self.dir.absolute().name

    @property
    def verb(self) -> str:
        return "evaluate" if "evaluation" in self.metrics else "finetune" if "task" in self.config else "pretrain"

    @property
    def kind(self) -> str:
        """Of its task or objective; of an evaluation, unknown."""
        node = self.config.get("task") or self.config.get("objective")
        return str(node.get("kind", "")) if isinstance(node, Mapping) else ""

    @property
    def split(self) -> str | None:
        """The held-out part that its headline is of."""
        return next((s for s in ("test", "valid") if isinstance(self.metrics.get(s), dict) and self.metrics[s]), None)

    @property
    def score(self) -> str | None:
        """The score that speaks for the run."""
        return next((k for k in HEADLINE if self.split and number(self.metrics[self.split].get(k)) is not None), None)

    def path(self, split: str | None, key: str | None, leaf: str = "mean") -> tuple[str, ...]:
        """Where in metrics.json a score stands, or its `interval`: of several seeds their mean and its interval."""
        over = ("seeds", str(split), str(key))
        if isinstance(self.at(*over), dict):
            return *over, leaf
        return str(split), str(key) if leaf == "mean" else f"{key}_{leaf}"

    def at(self, *keys: str) -> Any:
        found: Any = self.metrics
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def value(self, split: str | None, key: str | None) -> float | None:
        return number(self.at(*self.path(split, key)))

    def interval(self, split: str | None, key: str | None) -> tuple[float, float] | None:
        return self.ends(*self.path(split, key, "interval"))

    def ends(self, *keys: str) -> tuple[float, float] | None:
        """Of an interval at a path of metrics.json."""
        found = self.at(*keys)
        if isinstance(found, list) and len(found) == 2 and all(number(x) is not None for x in found):
            return float(found[0]), float(found[1])
        return None

    @property
    def commands(self) -> list[str]:
        """What to type to have this run again, the runs that it starts from first."""
        found: list[str] = []
        place, tree, made = self.dir, self.config, self.environment
        for _ in range(BEFORE):
            words = made.get("command")
            if not isinstance(words, list) or len(words) < 2:
                break
            found.insert(0, shlex.join(["ssl", *map(str, words[1:])]))
            source = tree.get("from") or tree.get("run")
            if not isinstance(source, str) or not (Path(source) / "config.yaml").is_file() or Path(source) == place:
                break
            place, made = Path(source), _mapping(Path(source) / "environment.json")
            try:
                tree = config.load(place / "config.yaml")
            except Exception:  # another run's file: without it the story begins later
                tree = {}
        return found

    def pictures(self) -> list[Path]:
        """PNG files of the folder itself; a link might lead out of it."""
        found = (p for p in sorted(self.dir.glob("*.png")) if p.is_file() and not p.is_symlink())
        return [p for p in found if _begins(p) == b"\x89PNG\r\n\x1a\n"]

    def predictions(self, most: int | None = None) -> Predictions | None:
        """Of tasks with one label an example."""
        path = self.dir / "predictions.jsonl"
        if not path.is_file():
            return None
        found, pairs = Predictions(), Counter[tuple[str, str]]()
        surest: list[tuple[float, int, str, str, str]] = []
        for row in islice(lines(path), most):
            gold, said = row.get("gold"), row.get("prediction")
            if not isinstance(gold, str) or not isinstance(said, str):
                return None
            found.rows += 1
            if gold == said:
                continue
            found.wrong += 1
            pairs[gold, said] += 1
            probabilities = row.get("probabilities")
            sure = number(probabilities.get(said)) if isinstance(probabilities, dict) else None
            item = (sure or 0.0, -found.rows, gold, said, str(row.get("input", "")))
            (heapq.heappush if len(surest) < WORST else heapq.heappushpop)(surest, item)
        found.all_read = most is None or found.rows < most
        found.pairs = [(*pair, count) for pair, count in pairs.most_common(PAIRS)]
        found.worst = [(sure, gold, said, shown) for sure, _, gold, said, shown in sorted(surest, reverse=True)]
        return found if found.rows else None


def number(value: Any) -> float | None:
    """A finite number, or None."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines; what is damaged is passed over."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value


def leaves(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(dotted key, plain value) of nested objects, short lists as one."""
    if isinstance(value, dict) and depth < 8:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}".lstrip("."), depth + 1)
    elif isinstance(value, list) and len(value) == 2 and all(number(x) is not None for x in value):
        yield path, tuple(value)
    else:
        yield path, value


def _mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{at(path)}: not JSON: {printable(error, 120)}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{at(path)}: expected an object of keys and values")
    return value


def _begins(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return os.read(file.fileno(), 8)
    except OSError:
        return b""

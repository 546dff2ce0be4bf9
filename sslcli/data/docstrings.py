"""Text that is on every machine where this tool is installed: the docstrings of the standard library and of the dependencies.

Read statically (parsed, never imported). `docstrings` is the unlabelled corpus; `docstrings:train`, `docstrings:few` (8 a part) and
`docstrings:test` are a labelled task: which part of which library does this summary (the first paragraph of a docstring) come from.
"""

import ast
import gc
import hashlib
import json
import re
import sysconfig
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sslcli.data.lines import Bad
from sslcli.data.store import cache, temporary_folder
from sslcli.errors import BadInput
from sslcli.evidence.leaks import Sketch, between
from sslcli.run import cores

VERSION = 3
LIBRARIES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "pandas": "pandas",
    "torch": "torch",
    "transformers": "transformers",
}
PARTS = (
    "numpy.lib numpy.polynomial pandas.io scipy.linalg scipy.optimize scipy.signal scipy.sparse scipy.stats "
    "sklearn.linear_model sklearn.metrics torch.distributed torch.nn"
).split()
SHORTEST, SHORTEST_LABELLED = 40, 20  # characters of a text, and of a summary, worth keeping
TEST_SHARE, TEST_MOST, SHOTS = 0.4, 60, 8
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "testing", "idlelib", "lib2to3", "_vendor", "externals", "__pycache__"}
# the text would name its own label: `from scipy.stats import norm`, `torch.nn.Linear`
NAMED = re.compile(rf"\b(?:{'|'.join(LIBRARIES)})(?:\.\w+)+")


class Docstrings:
    def __init__(self, key: str, spec: str, seed: int):
        self.split, self.seed = spec.partition(":")[2] or "corpus", seed
        if self.split not in ("corpus", "train", "few", "test"):
            raise BadInput(
                f"{key}={spec}: the embedded text has docstrings (the corpus), docstrings:train, docstrings:few and docstrings:test"
            )
        self.path = extracted()

    def records(self) -> Iterator[tuple[str, int, dict[str, Any]] | tuple[str, Bad]]:
        taken: dict[str, int] = {}
        for number, row in enumerate(self._rows(), 1):
            if self.split == "corpus":
                if row["split"] in ("corpus", "train"):
                    yield f"docstrings:{row['source']}", number, {"text": row["text"]}
                continue
            if row["split"] != ("test" if self.split == "test" else "train"):
                continue
            taken[row["part"]] = taken.get(row["part"], 0) + 1
            if self.split == "few" and taken[row["part"]] > SHOTS:
                continue
            yield f"docstrings:{row['source']}", number, {"text": NAMED.sub("·", _summary(row["text"])), "label": row["part"]}

    def fingerprint(self) -> list[dict[str, Any]]:
        return [
            {
                "file": f"docstrings:{self.split}",
                "bytes": self.path.stat().st_size,
                "sha256": self.path.stem,
                "seed": self.seed if self.split == "few" else None,
            }
        ]

    def _rows(self) -> Iterator[dict[str, Any]]:
        with self.path.open(encoding="utf-8") as file:
            rows = (json.loads(line) for line in file)
            if self.split != "few":
                yield from rows
                return
            labelled = [row for row in rows if row["split"] == "train"]
        yield from sorted(labelled, key=lambda row: _hash(f"{self.seed} {row['text']}"))


def extracted() -> Path:
    """The texts of the libraries as they are installed here, extracted once: a JSON-lines file named by its content."""
    installed = {name: version(package) for name, package in LIBRARIES.items()}
    key = _hash(json.dumps([VERSION, sysconfig.get_python_version(), PARTS, installed]))
    link = cache() / "docstrings" / key
    if link.exists():
        return link.parent / f"{link.read_text()}.jsonl"
    with temporary_folder(link.parent) as making:
        digest = hashlib.sha256()
        with (making / "texts").open("wb") as file:
            for row in _rows():
                line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
                digest.update(line)
                file.write(line)
        final = link.parent / f"{digest.hexdigest()}.jsonl"
        (making / "texts").rename(final)
        (making / "name").write_text(digest.hexdigest())
        (making / "name").rename(link)
    return final


def _rows() -> Iterator[dict[str, Any]]:
    """Every text once, with its part and split: the files of a part are dealt whole to train or test, so that the near-duplicates of
    a file never stand on both sides; a summary that stands anywhere twice is no example; and nothing of test is in the corpus."""
    files = _files()
    # trees hold no cycles, and looking for some takes two thirds of the time of parsing
    with ProcessPoolExecutor(min(cores(), 8), get_context("spawn"), initializer=gc.disable) as pool:
        texts = list(pool.map(_texts, [path for _, path in files], chunksize=16))
    seen: set[str] = set()
    rows: list[dict[str, Any]] = []
    for (source, _), found in zip(files, texts, strict=True):
        part = ".".join(source.split("/")[:2]).removesuffix(".py")
        for text in found:
            normal = " ".join(text.lower().split())
            if normal not in seen:
                seen.add(normal)
                rows.append({"source": source, "text": text, "part": part, "split": "corpus"})
    summaries = Counter(_summary(row["text"]).lower() for row in rows)
    for row in rows:
        summary = _summary(row["text"]).lower()
        if row["part"] not in PARTS or summaries[summary] > 1 or len(summary) < SHORTEST_LABELLED:
            row["part"] = None
    tested = {source for part in PARTS for source in _deal([row for row in rows if row["part"] == part])}
    for row in rows:
        if row["source"] in tested:
            row["split"] = "beside the test"  # its neighbours are in the test: no corpus either
        elif row["part"]:
            row["split"] = "train"
    _choose(rows)
    yield from rows


def _summary(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def _deal(rows: list[dict[str, Any]]) -> set[str]:
    """The files of a part that are the test's, in an order that no one chose."""
    sources = sorted({row["source"] for row in rows}, key=_hash)
    tested: set[str] = set()
    for source in sources:
        if sum(row["source"] in tested for row in rows) < TEST_SHARE * len(rows):
            tested.add(source)
    return tested


def _choose(rows: list[dict[str, Any]]) -> None:
    """The test, out of the labelled rows of its files: at most TEST_MOST a part, none like what is learnt from."""
    learnt = [row for row in rows if row["split"] != "beside the test"]
    labelled = [row for row in learnt if row["part"]]
    able = [row for row in rows if row["split"] == "beside the test" and row["part"]]
    alike = [
        *between(Sketch.of(row["text"] for row in learnt), Sketch.of(row["text"] for row in able)),
        *between(Sketch.of(_summary(row["text"]) for row in labelled), Sketch.of(_summary(row["text"]) for row in able)),
    ]
    leaked = {pair.second for pair in alike}
    able = [row for i, row in enumerate(able) if i not in leaked]
    for part in PARTS:
        for row in sorted((row for row in able if row["part"] == part), key=lambda row: _hash(row["text"]))[:TEST_MOST]:
            row["split"] = "test"


def _files() -> list[tuple[str, str]]:
    """(name below the library's root, path) of every source file, standard library first."""
    paths = sysconfig.get_paths()
    roots = [(Path(paths["stdlib"]), "")]
    site = [Path(paths["purelib"]), Path(paths["platlib"])]
    for name in LIBRARIES:
        home = next((s / name for s in site if (s / name).is_dir()), None)
        if home:
            roots.append((home, f"{name}/"))
    found = []
    for root, prefix in roots:
        for path in sorted(root.rglob("*.py")):
            inner = path.relative_to(root)
            if not SKIPPED.intersection(inner.parts):
                found.append((prefix + inner.as_posix(), str(path)))
    return found


def _texts(path: str) -> list[str]:
    """The docstrings of one file, the texts that it attaches with `add_docstr`/`add_newdoc`, and pydoc's topics."""
    raw = Path(path).read_bytes()
    if b'"""' not in raw and b"'''" not in raw and b"topics" not in raw:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(raw)
        except (SyntaxError, ValueError):
            return []
    found: list[str] = []
    attached = any(word in raw for word in (b"add_docstr", b"add_newdoc", b"topics"))
    for node in ast.walk(tree) if attached else _statements(tree):
        text: Any = None
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
        elif isinstance(node, ast.Call) and _name(node.func) in ("add_docstr", "add_newdoc"):
            constants = [c.value for a in node.args for c in ast.walk(a) if isinstance(c, ast.Constant) and isinstance(c.value, str)]
            text = max(constants, key=len, default=None)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and path.endswith("topics.py"):
            found += [v.value for v in node.value.values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
        if text and len(text) >= SHORTEST:
            found.append(text.strip())
    return found


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """As ast.walk, in its order, without expressions: no docstring stands below one."""
    waiting: deque[ast.AST] = deque([tree])
    while waiting:
        node = waiting.popleft()
        waiting.extend(n for n in ast.iter_child_nodes(node) if isinstance(n, (ast.stmt, ast.excepthandler, ast.match_case)))
        yield node


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

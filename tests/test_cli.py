"""The command line as a user types it."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

from tests.conftest import CONFIGS, TINY, rows, write_jsonl


def test_help_is_static_and_complete(process) -> None:
    heavy = "import sys; from sslcli.cli import main; code = main(['--help']); main(['pretrain', '--help']); main(['--version'])"
    check = "; bad = {'torch', 'transformers', 'hydra', 'omegaconf', 'numpy', 'pydantic', 'yaml'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", f"{heavy}{check}; sys.exit(str(bad) if bad else code)"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = subprocess.run([sys.executable, "-m", "sslcli", "finetune", "--help"], capture_output=True, text=True).stdout
    for path in (Path(__file__).parents[1] / "configs").glob("*/*.yaml"):
        if path.parent.name in ("task", "optimizer", "trainer", "model", "tokenizer", "data"):
            assert path.stem in shown, f"{path.stem} is not in the help"


def test_the_story_of_four_verbs(ssl, tmp_path: Path, corpus: Path, labelled: Path) -> None:
    done = ssl("pretrain", f"data.train={corpus}", *TINY, "trainer.steps=6", "run.dir=lm")
    assert done.code == 0, done.err
    test = write_jsonl(tmp_path / "test.jsonl", rows(30, seed=1))
    done = ssl("finetune", "from=lm", f"data.train={labelled}", f"data.test={test}", "trainer.steps=8", "run.dir=task")
    assert done.code == 0, done.err
    scores = json.loads(Path("task/metrics.json").read_text())
    assert 0 <= scores["test"]["accuracy"] <= 1 and len(scores["test"]["accuracy_interval"]) == 2
    assert done.result["test"] == scores["test"]
    lines = Path("task/predictions.jsonl").read_text().splitlines()
    assert len(lines) == 30 and set(json.loads(lines[0])) == {
        "id",
        "input",
        "gold",
        "prediction",
        "loss",
        "probabilities",
        "file",
        "record",
    }
    again = ssl("evaluate", "run=task", f"data.test={test}", "out=again")
    assert again.code == 0, again.err
    assert again.result["test"]["accuracy"] == scores["test"]["accuracy"]
    exported = ssl("export", "run=task", "format=hf", "out=dist/task")
    assert exported.code == 0, exported.err
    assert exported.result["agreement"]["labels_that_differ"] == 0
    folder = {p.name for p in Path("task").iterdir()}
    assert {
        "config.yaml",
        "environment.json",
        "data.json",
        "metrics.jsonl",
        "metrics.json",
        "receipts.json",
        "checkpoints",
        "model",
    } <= folder


def test_an_exported_folder_loads_in_plain_transformers(ssl, corpus: Path, labelled: Path) -> None:
    from transformers import pipeline

    assert ssl("pretrain", f"data.train={corpus}", *TINY, "trainer.steps=3", "run.dir=lm").code == 0
    assert ssl("finetune", "from=lm", f"data.train={labelled}", "trainer.steps=3", "run.dir=task").code == 0
    assert ssl("export", "run=task", "out=dist").code == 0
    classify = pipeline("text-classification", model="dist", tokenizer="dist", device="cpu")
    recorded = [json.loads(line) for line in Path("task/predictions.jsonl").read_text().splitlines()]
    for row in recorded:
        answer = classify(row["input"])[0]
        assert answer["label"] == row["prediction"]
        assert abs(answer["score"] - max(row["probabilities"].values())) < 1e-3


def test_mistakes_are_one_line(ssl, corpus: Path) -> None:
    done = ssl("pretrian")
    assert done.code == 2 and "did you mean pretrain?" in done.err
    done = ssl("pretrain", "optmizer.lr=1", "model=bert_tny", "trainer.batch_size=0", f"data.train={corpus}")
    assert done.code == 2 and "Traceback" not in done.err
    assert "did you mean optimizer.lr?" in done.err and "did you mean bert_tiny?" in done.err and "trainer.batch_size=0" in done.err
    assert all(line.startswith("error: ") for line in done.err.strip().splitlines())


def test_cfg_shows_the_composed_configuration(ssl) -> None:
    done = ssl("pretrain", "--cfg", "job", "optimizer.lr=3e-4", "objective=span_contrastive")
    assert done.code == 0 and "lr: 0.0003" in done.out and "kind: span_contrastive" in done.out


def test_dry_run_leaves_nothing(ssl, tmp_path: Path, corpus: Path, labelled: Path) -> None:
    before = sorted(p.name for p in tmp_path.iterdir())
    for verb, data in (("pretrain", corpus), ("finetune", labelled)):
        done = ssl(verb, f"data.train={data}", *TINY, "--dry-run")
        assert done.code == 0, done.err
        assert done.result["two_steps"] and done.result["reloads_equal"] and "[CLS]" in done.result["example"]
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_every_recipe_composes_by_the_command_on_it(ssl) -> None:
    for path in (CONFIGS / "experiment").glob("*.yaml"):
        header, command, *_ = path.read_text(encoding="utf-8").splitlines()
        assert header == "# @package _global_", "where Hydra looks for it"
        words = shlex.split(command.lstrip("# "))
        assert words[0] == "ssl" and f"experiment={path.stem}" in words
        one = [w.split(",")[0] for w in words[1:] if w != "-m"]
        done = ssl(*one, "--cfg", "job")
        assert done.code == 0, (path.name, done.err)

"""Sweeps, completion, evaluation, dry runs, the wheel: what surrounds a run."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sslcli.completion import complete
from tests.conftest import ROOT, TINY, rows, write_jsonl

QUICK = [*TINY, "trainer.steps=2", "baseline=false"]


@pytest.mark.usefixtures("warm_sweeps")
def test_a_sweep_runs_every_combination_and_survives_failures(ssl, labelled: Path) -> None:
    command = ["finetune", "-m", f"data.train={labelled}", f"data.test={labelled}", *TINY, "trainer.steps=2", "sweep.dir=sweep"]
    done = ssl(*command, "optimizer.lr=1e-3,-5", "seed=0,1")
    assert done.code == 1, done.err
    table = json.loads(Path("sweep/sweep.json").read_text())
    assert [(r["optimizer.lr"], r["seed"], r["state"]) for r in table] == [
        ("0.001", "0", "done"), ("0.001", "1", "done"), ("-5", "0", "bad input"), ("-5", "1", "bad input"),
    ]  # fmt: skip
    assert all("test_accuracy" in r for r in table[:2]) and "optimizer.lr=-5" in done.err
    assert done.result == {"sweep": "sweep", "runs": 4, "failed": 2}
    assert "over seeds" in done.err and "95 % interval" in done.err and "TF-IDF" in done.err
    # a run of the sweep is the run alone
    alone = ssl(
        "finetune", f"data.train={labelled}", f"data.test={labelled}", *TINY, "trainer.steps=2", "optimizer.lr=1e-3", "run.dir=alone"
    )
    assert alone.code == 0
    assert json.loads(Path("alone/metrics.json").read_text())["test"] == json.loads(Path("sweep/000/metrics.json").read_text())["test"]
    # again: what is complete is not run again
    again = ssl(*command, "optimizer.lr=1e-3", "seed=0,1")
    assert again.code == 0 and "2 runs are complete already" in again.err


def test_an_extended_sweep_keeps_its_folders_apart(tmp_path: Path) -> None:
    """What 000 was made with is what 000 is reported as, however the values are listed next time."""
    from sslcli.commands.sweep import _jobs, _place

    first = _jobs(["optimizer.lr=1e-5,3e-5", "seed=0,1"], tmp_path)
    _place(first, tmp_path)
    again = _jobs(["optimizer.lr=1e-5,3e-5", "seed=0,1,2"], tmp_path)
    _place(again, tmp_path)
    places = {job.name: job.folder.name for job in again}
    assert all(places[job.name] == job.folder.name for job in first) and len(set(places.values())) == 6
    one = _jobs(["optimizer.lr=3e-5", "seed=1"], tmp_path)
    _place(one, tmp_path)
    assert one[0].folder == first[3].folder, "written otherwise, the same run"


def test_a_stopped_sweep_passes_it_on_and_says_how_to_go_on(ssl, labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sslcli.commands import sweep
    from sslcli.errors import Preempted

    told = []

    class Stopped:
        def __init__(self, *_: object, **__: object):
            pass

        def poll(self) -> None:
            raise Preempted("stopped by SIGINT; with the same run.dir, resume=auto continues from the last checkpoint")

        def send_signal(self, number: int) -> None:
            told.append(number)

        def wait(self) -> int:
            return 75

    monkeypatch.setattr(sweep.warm, "POSSIBLE", False)
    none = ssl("finetune", "-m", f"data.train={labelled}", *QUICK, "seed=0,1", "sweep.dir=sweep", "sweep.parallel=0")
    assert none.code == 2 and "sweep.parallel: " in none.err and not Path("sweep").exists()
    monkeypatch.setattr(sweep.subprocess, "Popen", Stopped)
    done = ssl("finetune", "-m", f"data.train={labelled}", *QUICK, "seed=0,1", "sweep.dir=sweep", "sweep.parallel=2")
    assert done.code == 75 and "stopped by SIGINT; the same command with sweep.dir=sweep goes on" in done.err and len(told) == 2


@pytest.mark.usefixtures("warm_sweeps")
def test_evaluations_are_swept_too(ssl, labelled: Path, tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", rows(30, seed=2))
    assert ssl("finetune", f"data.train={labelled}", *QUICK, "run.dir=run").code == 0
    done = ssl("evaluate", "-m", "run=run", f"data.test={labelled},{other}", "sweep.dir=sweep")
    assert done.code == 0, done.err
    assert json.loads(Path("sweep/000/metrics.json").read_text())["test"]["accuracy"] >= 0


def test_a_sweep_says_what_it_cannot_sweep(ssl) -> None:
    assert "sweep.dir" in ssl("pretrain", "-m", "run.dir=a,b").err
    assert ssl("pretrain", "-m", "sweep.colour=1").code == 2


@pytest.mark.parametrize(
    ("line", "among", "not_among"),
    [
        ("ssl ", ["pretrain", "finetune", "evaluate", "export", "completion"], ["model="]),
        ("ssl pre", ["pretrain"], ["finetune"]),
        ("ssl pretrain mo", ["model="], ["objective="]),
        ("ssl pretrain model=", ["model=bert_tiny", "model=gpt_small"], ["objective=masked_lm"]),
        ("ssl pretrain model=bert_tiny objective=mas", ["objective=masked_lm"], ["objective=causal_lm"]),
        ("ssl pretrain objective=span_contrastive objective.", ["objective.temperature="], ["objective.rate="]),
        ("ssl finetune trainer.", ["trainer.steps=", "trainer.batch_size="], []),
        ("ssl pretrain data=files data.", ["data.train=", "data.columns=", "data.on_bad_record="], ["data.text="]),
        ("ssl finetune --", ["--dry-run", "--multirun"], []),
        ("ssl completion ", ["bash", "zsh", "fish"], []),
        ("ssl nothing ", [], ["model="]),
    ],
)
def test_completion(line, among, not_among) -> None:
    found = complete(line)
    assert set(among) <= set(found) and not set(not_among) & set(found)


def test_completion_in_a_real_bash(tmp_path: Path) -> None:
    if not shutil.which("bash"):
        pytest.skip("no bash on this machine")
    script = subprocess.run([sys.executable, "-m", "sslcli", "completion", "bash"], capture_output=True, text=True).stdout
    (tmp_path / "ssl").write_text(f'#!/bin/sh\nexec {sys.executable} -m sslcli "$@"\n')
    (tmp_path / "ssl").chmod(0o755)
    typed = {
        "ssl pretrain model=bert_t": "bert_tiny",
        "ssl pretrain objective=sp": "span_contrastive",
        "ssl pretrain opti": "optimizer=",
        "ssl fine": "finetune",
    }
    for line, expected in typed.items():
        words = line.replace("=", " = ").split(" ")  # as readline cuts them
        words = [w for w in words if w] + ([""] if line.endswith(" ") else [])
        test = (
            f'{script}\nCOMP_LINE="{line}"; COMP_POINT={len(line)}; COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}\n'
            'compopt() { :; }\n_ssl_complete\nprintf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "-c", test], capture_output=True, text=True, env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        )
        assert expected in done.stdout.split(), (line, done.stdout, done.stderr)


def test_evaluate_names_what_is_missing(ssl, labelled: Path) -> None:
    assert "run=nowhere: no such folder" in ssl("evaluate", "run=nowhere").err
    Path("empty").mkdir()
    assert "is not a run folder" in ssl("evaluate", "run=empty").err
    assert ssl("finetune", f"data.train={labelled}", *QUICK, "run.dir=runs/a").code == 0
    done = ssl("evaluate", "run=runs/b")
    assert done.code == 2 and "runs there: runs/a" in done.err
    assert "missing; give run=<value>" in ssl("evaluate").err


def test_evaluate_on_other_data_checks_its_labels(ssl, labelled: Path, tmp_path: Path) -> None:
    assert ssl("finetune", f"data.train={labelled}", *QUICK, "run.dir=a").code == 0
    write_jsonl(tmp_path / "other.jsonl", [{"body": r["text"], "topic": "horse"} for r in rows(3)])
    done = ssl("evaluate", "run=a", "data.test=other.jsonl", "data.columns.text=body", "data.columns.label=topic")
    assert done.code == 2 and "other.jsonl:1: the label horse is none of the 3 that the run has learnt" in done.err
    write_jsonl(tmp_path / "fine.jsonl", [{"body": r["text"], "topic": r["label"]} for r in rows(12)])
    done = ssl("evaluate", "run=a", "data.test=fine.jsonl", "data.columns.text=body", "data.columns.label=topic", "out=scores")
    assert done.code == 0 and len(Path("scores/predictions.jsonl").read_text().splitlines()) == 12, done.err


def test_evaluate_reads_the_columns_that_the_run_read(ssl, tmp_path: Path) -> None:
    """Two columns that could be the text: what was chosen for the run holds for its evaluation."""
    records = [{"text": "x y", "summary": r["text"], "label": r["label"]} for r in rows(45)]
    write_jsonl(tmp_path / "data.jsonl", records)
    assert ssl("finetune", "data.train=data.jsonl", "data.columns.text=summary", *QUICK, "run.dir=run").code == 0
    done = ssl("evaluate", "run=run", "data.test=data.jsonl", "out=out")
    assert done.code == 0 and "columns text=summary, label=label" in done.err, done.err


def test_a_file_named_like_the_embedded_texts_is_a_file(ssl, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "docstrings.jsonl", [{"text": r["text"]} for r in rows(60)])
    done = ssl("pretrain", "data.train=docstrings.jsonl", *TINY, "trainer.steps=1", "run.dir=run")
    assert done.code == 0 and json.loads(Path("run/data.json").read_text())["train"]["documents"] <= 60, done.err


@pytest.mark.parametrize(("documents", "code"), [(1, 2), (12, 0)])
def test_a_small_corpus_is_trained_on_or_refused_in_one_line(ssl, tmp_path: Path, documents: int, code: int) -> None:
    write_jsonl(tmp_path / "corpus.jsonl", [{"text": r["text"]} for r in rows(documents)])
    done = ssl("pretrain", "data.train=corpus.jsonl", *TINY, "trainer.steps=2", "run.dir=run")
    assert done.code == code and "internal" not in done.err, done.err
    assert ("rows that this objective can use" if code else "too small to judge by") in done.err


def test_a_folder_of_other_things_is_never_resumed_nor_removed(ssl, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "old").mkdir(parents=True)
    (tmp_path / "runs" / "old" / "metrics.json").write_text("{}")
    done = ssl("pretrain", f"data.train={corpus}", *TINY, "run.dir=runs", "resume=auto")
    assert done.code == 2 and "no run to resume" in done.err, done.err
    assert (tmp_path / "runs" / "old" / "metrics.json").read_text() == "{}"


def test_what_means_nothing_is_refused(ssl, corpus: Path) -> None:
    for word, said in (
        ("data.shots=8", "data.shots: means nothing"),
        ("trainer.time_limit=0", "more than zero"),
        ("objective=causal_lm", "needs a decoder"),
    ):
        done = ssl("pretrain", f"data.train={corpus}", *TINY, word, "run.dir=run")
        assert done.code == 2 and said in done.err, (word, done.err)


def test_evaluate_a_pretraining_run(ssl, corpus: Path) -> None:
    assert ssl("pretrain", f"data.train={corpus}", *TINY, "trainer.steps=3", "run.dir=lm").code == 0
    before = json.loads(Path("lm/metrics.json").read_text())["valid"]
    done = ssl("evaluate", "run=lm", "out=again")
    assert done.code == 0, done.err
    assert done.result["valid"]["loss"] == pytest.approx(before["loss"], rel=1e-4)


def test_dry_runs_of_every_verb_keep_nothing(ssl, tmp_path: Path, corpus: Path, labelled: Path) -> None:
    assert ssl("finetune", f"data.train={labelled}", f"data.test={labelled}", *QUICK, "run.dir=a").code == 0
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    sweep = ["finetune", "-m", f"data.train={labelled}", *QUICK, "seed=0,1"]
    for words in (["evaluate", "run=a"], ["export", "run=a", "out=dist"], ["pretrain", f"data.train={corpus}", *TINY], sweep):
        done = ssl(*words, "--dry-run")
        assert done.code == 0 and "dry run" in done.err, done.err
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


def test_quiet_and_verbose(ssl, corpus: Path) -> None:
    command = ["pretrain", f"data.train={corpus}", *TINY, "trainer.steps=4", "trainer.eval_every=2"]
    quiet, plain, loud = (ssl(*command, *flag, f"run.dir=r{i}") for i, flag in enumerate((["-q"], [], ["-v"])))
    assert quiet.err == "" and quiet.result["run"] == "r0"
    assert "documents" in plain.err and "step 2" not in plain.err and "step 2" in loud.err


def test_what_a_label_holds_is_shown_and_not_obeyed(ssl, tmp_path: Path) -> None:
    evil = "\x1b[31mred\u202eevil\r\nnext"
    write_jsonl(tmp_path / "data.jsonl", [{**r, "label": evil if r["label"] == "cat" else r["label"]} for r in rows(60)])
    done = ssl("finetune", "data.train=data.jsonl", "data.test=data.jsonl", *QUICK, "run.dir=run")
    assert done.code == 0, done.err
    assert "\x1b[31m" not in done.err and "\u202e" not in done.err and "\\x1b[31mred" in done.err


def test_secrets_are_not_written_down(ssl, corpus: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_plantedplanted")
    monkeypatch.setattr(sys, "argv", ["ssl", "pretrain", "from=https://me:hf_plantedplanted@host/x", "token=hf_plantedplanted"])
    assert ssl("pretrain", f"data.train={corpus}", *TINY, "trainer.steps=1", "run.dir=run").code == 0
    for path in Path("run").rglob("*"):
        assert path.is_dir() or b"hf_planted" not in path.read_bytes(), path


def test_the_wheel_carries_the_configurations_and_runs_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--disable-pip-version-check", "-w", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "hatchling" in done.stderr and "No matching distribution" in done.stderr:
        pytest.skip("the build back-end is not to be had here (no package index)")
    assert done.returncode == 0, done.stderr
    wheel = next(tmp_path.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    ours = {f"sslcli/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "configs").rglob("*.yaml")}
    assert ours <= set(names) and not [n for n in names if n.startswith(("tests/", "scripts/", "ssl/"))]
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    shown = subprocess.run(
        [sys.executable, "-m", "sslcli", "pretrain", "--cfg", "job"], capture_output=True, text=True, cwd=elsewhere, env=env
    )
    assert shown.returncode == 0 and "objective:" in shown.stdout, shown.stderr
    where = subprocess.run(
        [sys.executable, "-c", "import sslcli; print(sslcli.__file__)"], capture_output=True, text=True, cwd=elsewhere, env=env
    )
    assert str(tmp_path / "site") in where.stdout


def test_odd_places(ssl, tmp_path: Path, monkeypatch) -> None:
    """A run folder and a corpus with spaces and letters of elsewhere; no home; a C locale."""
    folder = tmp_path / "my data 数据"
    folder.mkdir()
    write_jsonl(folder / "naïve corpus.jsonl", [{"text": r["text"]} for r in rows(60)])
    env = {"HOME": "/nonexistent", "LC_ALL": "C", "SSL_CACHE": ""}
    environment = {k: v for k, v in {**os.environ, **env}.items() if v}
    command = [
        sys.executable,
        "-m",
        "sslcli",
        "pretrain",
        f"data.train={folder}/naïve corpus.jsonl",
        *TINY,
        "trainer.steps=1",
        f"run.dir={folder}/run",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env={k: v for k, v in environment.items() if k != "SSL_CACHE"}
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "run" / "model" / "config.json").exists()


def test_a_refused_run_leaves_no_folder(ssl, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for place in ("a/b/run", "mine/run"):
        assert ssl("pretrain", "data.train=nowhere.txt", *TINY, f"run.dir={place}").code == 2
    assert [p.name for p in tmp_path.iterdir()] == ["mine"] and not any((tmp_path / "mine").iterdir())

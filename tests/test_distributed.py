"""Two processes and one, at equal global batch: the same data, the same losses, the same decisions."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import TINY, rows, write_jsonl

RUN = [
    *TINY,
    "data.max_length=16",
    "trainer.batch_size=16",
    "trainer.precision=fp32",
    "trainer.log_every=1",
    "trainer.eval_every=20",
    "seed=3",
]


def losses(run: Path) -> list[float]:
    return [r["loss"] for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in r]


def scores(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl", rows(200))


@pytest.mark.parametrize("objective", ["masked_lm", "span_contrastive"])
def test_two_processes_learn_as_one(ssl, warm, data, tmp_path, objective) -> None:
    more = [f"objective={objective}", *(["objective.shortest=4"] if objective == "span_contrastive" else [])]
    command = ["pretrain", f"data.train={data}", *RUN, *more, "trainer.steps=50"]
    assert ssl(*command, "run.dir=one").code == 0
    done = warm(*command, "trainer.devices=2", "run.dir=two")
    assert done.returncode == 0, done.stderr
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 50
    assert max(abs(a - b) / abs(a) for a, b in zip(one, two, strict=True)) < 1e-5
    assert scores(tmp_path / "one")["train"]["data_order"] == scores(tmp_path / "two")["train"]["data_order"]
    assert scores(tmp_path / "two")["valid"]["loss"] == pytest.approx(scores(tmp_path / "one")["valid"]["loss"], rel=1e-5)
    assert json.loads(done.stdout.strip().splitlines()[-1])["run"] == "two", "one result line, from rank 0"


def test_two_processes_fine_tune_as_one(ssl, warm, data, tmp_path) -> None:
    command = ["finetune", f"data.train={data}", *RUN, "task.dropout=0", "dropout=0", "trainer.steps=25"]
    assert ssl(*command, "run.dir=one").code == 0
    done = warm(*command, "trainer.devices=2", "run.dir=two")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5, abs=1e-6)
    one, two = (scores(tmp_path / run)["valid"] for run in ("one", "two"))
    assert one["report"] == two["report"]
    assert all(two[k] == pytest.approx(v, rel=1e-4, abs=1e-6) for k, v in one.items() if k != "report")
    lines = [(tmp_path / run / "predictions.jsonl").read_text().splitlines() for run in ("one", "two")]
    assert [json.loads(x)["prediction"] for x in lines[0]] == [json.loads(x)["prediction"] for x in lines[1]]


def test_two_processes_stop_together_and_one_goes_on(ssl, oven, data, tmp_path) -> None:
    """The launcher is asked to stop; both ranks save and leave with 75; one process resumes what two began."""
    command = ["pretrain", "objective=masked_lm", f"data.train={data}", *RUN, "trainer.steps=400"]
    assert ssl(*command, "run.dir=whole").code == 0
    with (tmp_path / "err").open("wb") as err:
        process = oven.start([*command, "trainer.devices=2", "run.dir=cut"], err, err, os.environ, str(tmp_path))
    log, since = tmp_path / "cut" / "metrics.jsonl", time.monotonic()
    while not (log.exists() and log.stat().st_size > 500) and time.monotonic() - since < 90:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = (process.wait(60), (tmp_path / "err").read_text())
    assert said[0] == 75 and "error: stopped by SIGTERM" in said[1], said
    assert ssl("pretrain", "run.dir=cut", "resume=auto", "trainer.devices=1").code == 0
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    assert scores(tmp_path / "cut")["train"]["data_order"] == scores(tmp_path / "whole")["train"]["data_order"]


def test_torchrun_starts_it_too(process, data, tmp_path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "sslcli",
        "pretrain",
        "objective=masked_lm",
        f"data.train={data}",
        *RUN,
    ]
    done = subprocess.run([*command, "trainer.steps=3", "run.dir=run"], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert scores(tmp_path / "run")["train"]["steps"] == 3


def test_a_failed_rank_takes_the_others_down(warm, data, tmp_path) -> None:
    """And the launcher ends long before a rank's patience does (`warm` waits five minutes)."""
    command = ["pretrain", "objective=masked_lm", f"data.train={data}", *RUN, "trainer.batch_size=15", "trainer.steps=3"]
    done = warm(*command, "trainer.devices=2", "run.dir=run")
    assert done.returncode == 2 and "trainer.batch_size=15 is not divisible by trainer.devices=2; use 14 or 16" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [p for p in os.listdir("/proc") if p.isdigit() and _folder(p) == str(tmp_path)]


def _folder(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def test_a_rank_without_rows_goes_along(ssl, warm, data, tmp_path) -> None:
    """The last batch of an epoch holds one row: rank 1 has none of it, and the run is still that of one process."""
    short = write_jsonl(tmp_path / "short.jsonl", rows(33))
    command = ["finetune", f"data.train={short}", f"data.valid={data}", *RUN, "task.dropout=0", "dropout=0", "trainer.steps=6"]
    assert ssl(*command, "run.dir=one").code == 0
    done = warm(*command, "trainer.devices=2", "run.dir=two")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5, abs=1e-6)
    both = [*command, "task.head=linear", "objective=masked_lm", f"data.unlabelled={data}"]  # it has rows of the other term all the same
    assert ssl(*both, "run.dir=joint-one").code == 0
    done = warm(*both, "trainer.devices=2", "run.dir=joint-two")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "joint-two") == pytest.approx(losses(tmp_path / "joint-one"), rel=1e-4, abs=1e-5)
    dry = warm(*command, "trainer.devices=2", "run.dir=dry", "--dry-run")
    assert dry.returncode == 0 and not (tmp_path / "dry").exists(), dry.stderr

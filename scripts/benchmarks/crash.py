"""kill -9 at random moments of the reference workload, resumed until the run ends: is the end bit-identical to an undisturbed run?"""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from scripts.benchmarks.rows import Bench

# 2 layers, dropout, accumulation, random masks, cosine, running average, epochs of a few steps, a checkpoint every ten of 200 steps
WORKLOAD = (
    "objective=masked_lm tokenizer.vocabulary=400 "
    "model=bert_tiny model.layers=2 model.width=32 model.heads=2 model.inner=64 model.positions=64 "
    "model.dropout=0.1 data.max_length=16 trainer.batch_size=16 trainer.micro_batch_size=8 trainer.save_every=10 trainer.eval_every=16 "
    "trainer.log_every=4 trainer.deterministic=true optimizer.schedule=cosine optimizer.ema=0.95 optimizer.lr=1e-3 trainer.steps=200"
).split()
KILLS = 20


def rows(bench: Bench) -> None:
    data = bench.folder / "crash.jsonl"
    subjects = "the cat sat,a dog ran,our ship sailed,some rain fell".split(",")
    texts = [f"{subjects[i % 4]} near number {i * 7} of the old town" for i in range(512)]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    whole = bench.fresh("whole")
    seconds = bench.ssl("pretrain", f"data.train={data}", *WORKLOAD, f"run.dir={whole}").seconds
    expected, draw = _hashes(whole), random.Random(0)
    wanted = 3 if bench.quick else KILLS
    runs = identical = kills = lost = 0
    while runs < wanted:
        run = bench.fresh("cut")
        killed, steps = _disturbed(bench, data, run, draw, seconds)
        if not killed:
            continue  # it was over before its moment came
        runs, kills, lost = runs + 1, kills + killed, max(lost, steps)
        identical += _hashes(run) == expected and not list((run / "checkpoints").glob(".tmp-*"))
    what = "runs killed at a random moment and resumed that end bit-identical to an undisturbed one"
    bench.row(what, identical, unit=f"of {runs}", kills=kills, most_steps_lost=lost)


def _disturbed(bench: Bench, data: Path, run: Path, draw: random.Random, seconds: float) -> tuple[int, int]:
    """A run that is killed at a moment drawn over its whole length, then with even odds again, until it ends. (kills, most steps lost)"""
    command = [sys.executable, "-m", "sslcli", "pretrain", f"data.train={data}", *WORKLOAD, f"run.dir={run}", "resume=auto", "-q"]
    env = {**os.environ, "SSL_CACHE": str(bench.folder / "cache")}
    kills = lost = 0
    while True:
        child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        if kills == 0 or draw.random() < 0.5:
            try:
                child.wait(draw.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                kills, lost = kills + 1, max(lost, _steps_lost(run))
        if child.wait() == 0:
            return kills, lost


def _steps_lost(run: Path) -> int:
    """Steps that were logged and that no checkpoint holds."""
    saved = max((int(p.name[5:]) for p in (run / "checkpoints").glob("step-*")), default=0)
    log = run / "metrics.jsonl"
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if line.endswith("}")] if log.exists() else [0]
    return max(0, max(steps, default=0) - saved)


def _hashes(run: Path) -> dict[str, str]:
    newest = max((run / "checkpoints").glob("step-*"))
    return {n: f["sha256"] for n, f in json.loads((newest / "manifest.json").read_text())["files"].items() if n.endswith("safetensors")}

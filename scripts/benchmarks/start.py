"""How long until something happens: help, the composed configuration, the first step on a prepared corpus."""

import os
import statistics
import subprocess
import sys
import time

from scripts.benchmarks.rows import Bench

# transformers is lazy: `import transformers` alone loads none of what a model needs
LAZY = "import torch, transformers"
IMPORTS = f"{LAZY}; from transformers import BertForMaskedLM, PreTrainedTokenizerFast"


def rows(bench: Bench) -> None:
    for what, words in (("ssl --help", ["--help"]), ("ssl pretrain --cfg job", ["pretrain", "--cfg", "job"])):
        times = [bench.ssl(*words).seconds for _ in range(max(5, bench.repeat))]
        bench.row(what, statistics.median(times), unit="s", better="lower")
    name, corpus = bench.corpus()
    command = ["pretrain", f"data.train={corpus}", "objective=masked_lm", "model=bert_mini", "trainer.steps=1", "trainer.log_every=1"]
    bench.ssl(*command, f"run.dir={bench.fresh('first')}")
    times = max(3, bench.repeat)
    bare, lazy = (statistics.median(bench.run([sys.executable, "-c", i]).seconds for _ in range(times)) for i in (IMPORTS, LAZY))
    first = statistics.median(_first_step(bench, command) for _ in range(times))
    what = f"command to first step on a prepared corpus ({name}), beyond importing torch and a transformers model"
    bench.row(what, first - bare, unit="s", better="lower", imports=bare, lazy_imports=lazy, to_first_step=first)


def _first_step(bench: Bench, command: list[str]) -> float:
    """Seconds until the first step stands in the log."""
    run = bench.fresh("second")
    env = {**os.environ, "SSL_CACHE": str(bench.folder / "cache")}
    start = time.monotonic()
    child = subprocess.Popen([sys.executable, "-m", "sslcli", *command, f"run.dir={run}", "-q"], env=env, stdout=subprocess.DEVNULL)
    while not (run / "metrics.jsonl").exists() and child.poll() is None:
        time.sleep(0.005)
    seconds = time.monotonic() - start
    if child.wait():
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    return seconds

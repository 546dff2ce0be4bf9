"""The quickstart's claim: pretraining on unlabelled text, then 8 labels a class, against no pretraining and against TF-IDF, five seeds."""

import json
import statistics
import time
from pathlib import Path

from scripts.benchmarks.rows import Bench

SEEDS = 5


def rows(bench: Bench) -> None:
    from sslcli.metrics import mean_interval

    run, sweep = bench.fresh("pretrained"), bench.fresh("labels")
    start = time.monotonic()
    pretrained = bench.ssl("pretrain", *(["trainer.steps=60"] if bench.quick else []), f"run.dir={run}")
    bench.ssl("finetune", "-m", f"from={run}", "init=pretrained,random", f"seed={','.join(map(str, range(SEEDS)))}", f"sweep.dir={sweep}")
    seconds = time.monotonic() - start
    scores = {"pretrained": [], "random": [], "tfidf": []}  # type: ignore[var-annotated]
    for job in json.loads((Path(sweep) / "sweep.json").read_text()):
        metrics = json.loads((Path(job["run"]) / "metrics.json").read_text())
        scores[job["init"]].append(metrics["test"]["accuracy"])
        if job["init"] == "pretrained":
            scores["tfidf"].append(metrics["baseline"]["accuracy"])
    for other, name in (("random", "from scratch"), ("tfidf", "TF-IDF with logistic regression")):
        gains = [a - b for a, b in zip(scores["pretrained"], scores[other], strict=True)]
        low, high = mean_interval(gains)
        bench.row(
            f"embedded task, 8 labels a class: accuracy after pretraining against {name}, mean of {SEEDS} seeds",
            statistics.mean(scores["pretrained"]),
            statistics.mean(scores[other]),
            gain=statistics.mean(gains),
            gain_interval=[low, high],
            better_in=f"{sum(g > 0 for g in gains)} of {SEEDS}",
            our_seeds=scores["pretrained"],
            peer_seeds=scores[other],
        )
    bench.row("quickstart: pretraining", pretrained.result["train"]["seconds"], unit="s", better="lower")
    bench.row("quickstart: pretraining and ten fine-tunings", seconds, unit="s", better="lower")

"""Masked language modelling, BERT 4 x 256, vocabulary 30,522, blocks of 128, batch 32: speed, and the loss after the same minutes."""

import json
import statistics
from pathlib import Path

from scripts.benchmarks.rows import Bench, step_rate

TOKENS = 128 * 32
MINUTES = 3.0
OURS = [
    "objective=masked_lm",
    "objective.rate=0.15",
    "model=bert_mini",
    "tokenizer.vocabulary=30522",
    "trainer.batch_size=32",
    "data.max_length=128",
]


def rows(bench: Bench) -> None:
    name, corpus = bench.corpus()
    path = corpus if corpus != "docstrings" else _as_file(bench)
    first = bench.fresh("tokenizer")
    bench.ssl("pretrain", f"data.train={path}", *OURS, "trainer.steps=1", f"run.dir={first}")
    common = dict(data=path, tokenizer=first / "model", batch=32, block=128, layers=4, hidden=256, lr=5e-4)  # noqa: C408
    steps = 12 if bench.quick else 25
    peer = {b: bench.peer("peer_mlm", **common, steps=steps, bf16=b, seconds=None).result["tokens_per_second"] for b in (False, True)}
    rates: dict[str, float] = {}
    for label, more in (
        ("defaults", []),
        ("dropout 0.1", ["model.dropout=0.1"]),
        ("fp32, dropout 0.1", ["model.dropout=0.1", "trainer.precision=fp32"]),
    ):
        found = []
        for _ in range(bench.repeat):
            run = bench.fresh("mlm")
            quiet = [f"trainer.steps={steps + 15}", "trainer.log_every=1", "trainer.eval_every=10000", "trainer.save_every=10000"]
            bench.ssl("pretrain", f"data.train={path}", *OURS, *more, *quiet, "optimizer.lr=5e-4", f"run.dir={run}")
            found.append(step_rate(run, TOKENS, 8))
        rates[label] = statistics.median(found)
    shown = {"corpus": name, "unit": "tokens/s"}
    bench.row("masked LM with dropout 0.1, ours in bf16 against the Trainer's default (fp32)", rates["dropout 0.1"], peer[False], **shown)
    bench.row("masked LM with dropout 0.1, both in bf16", rates["dropout 0.1"], peer[True], **shown)
    bench.row("masked LM with dropout 0.1, both in fp32", rates["fp32, dropout 0.1"], peer[False], **shown)
    bench.row("masked LM, our defaults against the Trainer's", rates["defaults"], peer[False], **shown)
    _chip(bench, rates["defaults"])
    _curves(bench, path)
    _quality(bench, path, common)


def _curves(bench: Bench, path: str) -> None:
    """The same steps in bf16 and in fp32: the mean loss of the last third, and what differs from step to step by chance."""
    steps, means = 30 if bench.quick else 150, {}
    for precision, seed in (("fp32", 0), ("bf16", 0), ("fp32", 1)):
        run = bench.fresh("curve")
        more = [
            f"trainer.precision={precision}",
            f"seed={seed}",
            f"trainer.steps={steps}",
            "trainer.log_every=1",
            "trainer.eval_every=10000",
        ]
        bench.ssl("pretrain", f"data.train={path}", *OURS, *more, f"run.dir={run}")
        losses = [r["loss"] for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in r]
        means[precision, seed] = statistics.mean(losses[-steps // 3 :])
    noise = abs(means["fp32", 1] - means["fp32", 0])
    what = f"masked LM, mean loss of steps {steps - steps // 3} to {steps}: bf16 against fp32"
    bench.row(what, means["bf16", 0], means["fp32", 0], unit="nats", better="lower", difference_between_seeds=noise)


def _quality(bench: Bench, path: str, common: dict) -> None:
    """Held-out loss after the same time of training; each judges on its own held-out twentieth, with 15 % hidden."""
    seconds = 30 if bench.quick else MINUTES * 60
    peer = bench.peer("peer_mlm", **common, steps=int(seconds / 2), bf16=False, seconds=seconds).result
    for label, more in (("BERT", ["model.dropout=0.1", "optimizer.lr=5e-4"]), ("our defaults", [])):
        run = bench.fresh("quality")
        command = [f"data.train={path}", *OURS, *more, f"trainer.time_limit={seconds}s", "trainer.eval_every=100000"]
        done = bench.ssl("pretrain", *command, f"run.dir={run}").result
        loss = done["valid"]["loss"]
        steps = {"our_steps": done["train"]["steps"], "peer_steps": peer["steps"]}
        bench.row(f"held-out loss after {seconds / 60:g} minutes, {label}", loss, peer["valid_loss"], unit="nats", better="lower", **steps)


def _chip(bench: Bench, tokens_per_second: float) -> None:
    """How near the chip: the matrix products of a step against what the same cores do in one large bf16 product."""
    import time

    import torch

    a, b = torch.randn(2048, 2048).bfloat16(), torch.randn(2048, 2048).bfloat16()
    times = []
    for _ in range(15):
        start = time.monotonic()
        a @ b
        times.append(time.monotonic() - start)
    peak = 2 * 2048**3 / statistics.median(times)
    body, vocabulary = 4 * 12 * 256**2, 30528 * 256 * 0.15 + 256**2 * 0.15
    used = tokens_per_second * 6 * (body + vocabulary + 4 * 128 * 256)
    bench.row("share of the chip's bf16 products that masked LM uses", used / peak, unit="", peak_gflops=peak / 1e9)


def _as_file(bench: Bench) -> str:
    from sslcli.data.docstrings import Docstrings

    path = bench.folder / "docstrings.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for item in Docstrings("data.train", "docstrings", 0).records():
            file.write(json.dumps(item[2]) + "\n")
    return str(Path(path))

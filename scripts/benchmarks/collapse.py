"""The collapse sentinel: planted collapses are told within 200 steps with their cause, healthy runs of all objectives are left alone."""

import contextlib
import io
import json
import os
import shutil
import statistics
import time
from typing import Any

from scripts.benchmarks.plants import PLANTS, Patch
from scripts.benchmarks.rows import Bench

STEPS = 200
TINY = ["trainer.batch_size=32", "data.max_length=32", "tokenizer.vocabulary=1000", "model.layers=1", "model.width=64", "model.inner=128"]
SMALL = {"image": ["data=digits", "trainer.batch_size=32"], "text": TINY}
QUIET = [f"trainer.steps={STEPS}", "trainer.log_every=50", "trainer.eval_every=100000", "trainer.save_every=100000"]
TEXT = {"masked_lm": "bert_tiny", "causal_lm": "gpt_tiny", "span_contrastive": "modern_nano", "simcse": "bert_tiny", "tsdae": "bert_tiny"}
IMAGE = ("autoencoder", "mae", "simmim", "simclr", "moco", "byol", "simsiam", "vicreg", "barlow_twins", "dino", "swav")
HEADS = {"simsiam": ["objective.dim=256", "objective.bottleneck=64"]} | {
    name: ["objective.hidden=256"] for name in ("byol", "vicreg", "barlow_twins", "moco", "dino", "swav")
}
AGAIN = ("simclr", "byol", "simsiam", "moco")  # on photographs too


def rows(bench: Bench) -> None:
    told, named, false, shares = 0, 0, 0, []
    for name, plant in PLANTS.items():
        alarm, facts = _run(bench, [*_small(plant.words), "trainer.on_collapse=stop"], plant.patch())
        told, named = told + (alarm is not None), named + (alarm is not None and alarm["cause"] in plant.causes)
        print(json.dumps({"planted": name, "alarm": alarm, **facts}), flush=True)
    runs = [_small([f"objective={name}"]) for name in (*TEXT, *IMAGE)] + _photographs(bench)
    for words in runs:
        alarm, facts = _run(bench, words, contextlib.nullcontext())
        false, shares = false + (alarm is not None), [*shares, facts["share_of_time"]]
        print(
            json.dumps({"healthy": " ".join(w for w in words if w.startswith(("objective", "data="))), "alarm": alarm, **facts}), flush=True
        )
    bench.row(f"collapse: planted, told within {STEPS} steps", told, None, "runs", of=len(PLANTS), cause_named=named)
    bench.row(f"collapse: alarms in healthy runs of {STEPS} steps", false, None, "runs", "lower", of=len(runs))
    bench.row("collapse: share of the time, median of the healthy runs", statistics.median(shares), most=max(shares))


def _small(words: list[str]) -> list[str]:
    name = words[0].removeprefix("objective=")
    if name in TEXT:
        return [*words, *SMALL["text"], f"model={TEXT[name]}", *(["tokenizer=bpe"] if name == "causal_lm" else [])]
    crops = ["augment.local.count=2"] if name in ("dino", "swav") else []  # fewer small ones: a quarter of the time
    return [
        *words,
        *HEADS.get(name, []),
        *SMALL["image"],
        *crops,
        *(["model=vit_nano", "model.width=64"] if name in ("mae", "simmim") else []),
    ]


def _photographs(bench: Bench) -> list[list[str]]:
    folder = bench.labelled("cifar10-part")
    if folder is None:
        return []
    data = ["data=images", f"data.train={folder / 'train.parquet'}", "model=resnet18", "model.width=16", "trainer.batch_size=32"]
    return [[f"objective={name}", *data] for name in AGAIN]


def _run(bench: Bench, words: list[str], patch: Patch) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """(the alarm, facts) of a run in this process, where a patch is felt."""
    from sslcli.cli import main

    os.environ.setdefault("SSL_CACHE", str(bench.folder / "cache"))
    run, start, said = bench.fresh("collapse"), time.monotonic(), io.StringIO()
    with patch, contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(["pretrain", *words, *QUIET, f"run.dir={run}"])
    if code not in (0, 4):
        raise SystemExit(f"{' '.join(words)} ended with {code}:\n{said.getvalue()[-2000:]}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = {k: round(v, 4) for line in lines for k, v in line.items() if k.startswith("sentinel.")}
    facts = {"exit": code, "seconds": round(time.monotonic() - start), "last": last}
    if code == 0:
        facts["share_of_time"] = json.loads((run / "receipts.json").read_text())["sentinel"]["share_of_time"]
    if "SSL_KEEP" in os.environ:
        with open(os.environ["SSL_KEEP"], "a") as file:
            file.write(json.dumps({"words": words, "lines": lines}) + "\n")
    shutil.rmtree(run)
    return next((line["alarm"] for line in lines if "alarm" in line), None), facts

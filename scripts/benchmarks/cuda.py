"""On a CUDA device: how much of its arithmetic pretraining uses, and what stands in the way."""

import itertools
import json
import statistics
import sys
from pathlib import Path

from scripts.benchmarks.rows import Bench

BATCH, EVERY = 256, 10
QUIET = [f"trainer.log_every={EVERY}", "trainer.eval_every=100000", "trainer.save_every=100000", f"trainer.batch_size={BATCH}"]
ENCODER, DECODER = (12, 768), (8, 512)  # layers and width of ViT-B, and of the decoder of He et al. 2022
SIDE, PATCH, RATIO = 224, 16, 0.75
BERT = (12, 768)
BLOCK, WORDS, MASKED = 128, 30_522, 0.3


def rows(bench: Bench) -> None:
    import torch

    if not torch.cuda.is_available():
        bench.row("cuda: not measured, no CUDA device is on this machine", 0.0)
        return
    peak = _product()
    bench.row(f"{torch.cuda.get_device_name()}: one product of bf16 matrices, 8192 a side", peak / 1e12, unit="TFLOP/s")
    _mae(bench, peak)
    _masked(bench, peak)


def _product(side: int = 8192) -> float:
    """Operations a second, of random matrices (zeros would be faster than any data)."""
    import torch

    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    found = []
    for _ in range(13):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        a @ b
        end.record()
        torch.cuda.synchronize()
        found.append(2 * side**3 / (start.elapsed_time(end) / 1000))
    return statistics.median(found[3:])


def blocks(layers: int, width: int, tokens: int) -> float:
    """Operations of a step for one row through `layers` transformer blocks: forward, and twice as much backward."""
    return 3.0 * layers * tokens * (24 * width**2 + 4 * tokens * width)


def _mae(bench: Bench, peak: float) -> None:
    folder = bench.labelled("cifar10-part")
    if folder is None:
        bench.row("cuda, MAE: not measured, the data set cifar10-part is not on this machine", 0.0)
        return
    patches = (SIDE // PATCH) ** 2
    seen, pixels = 1 + int(patches * (1 - RATIO)), 3 * PATCH**2
    ends = 6.0 * (seen * pixels * ENCODER[1] + seen * ENCODER[1] * DECODER[1] + (patches - seen + 1) * DECODER[1] * pixels)
    work = blocks(*ENCODER, seen) + blocks(*DECODER, 1 + patches) + ends
    sizes = [f"objective.layers={DECODER[0]}", f"objective.width={DECODER[1]}", "objective.heads=16", f"objective.ratio={RATIO}"]
    words = ["objective=mae", "model=vit_base", f"model.patch={PATCH}", *sizes, "data=images", f"data.size={SIDE}"]
    what = f"MAE, ViT-B, {SIDE} px, batch {BATCH}"
    _compared(bench, what, "images", work, peak, [*words, f"data.train={folder / 'test.parquet'}"])


def _masked(bench: Bench, peak: float) -> None:
    name, corpus = bench.corpus()
    work = blocks(*BERT, BLOCK) / BLOCK + MASKED * 6.0 * BERT[1] * (WORDS + BERT[1])  # logits only where something is masked
    words = [
        "objective=masked_lm",
        "model=bert_base",
        f"objective.rate={MASKED}",
        f"data.max_length={BLOCK}",
        f"tokenizer.vocabulary={WORDS}",
    ]
    what = f"masked LM, BERT base, {name}, blocks of {BLOCK}, batch {BATCH}"
    _compared(bench, what, "tokens", work, peak, [*words, f"data.train={corpus}"], BLOCK)


def _compared(bench: Bench, what: str, unit: str, work: float, peak: float, words: list[str], per_row: int = 1) -> None:
    """Compiled, as long runs are; not compiled; compiled, on one batch that stays on the device, which shows what feeding it costs."""
    ways = {
        "compiled": ("sslcli", ["trainer.compile=true"]),
        "not compiled": ("sslcli", ["trainer.compile=false"]),
        "one batch": ("scripts.benchmarks.in_memory", ["trainer.compile=true"]),
    }
    steps = 30 if bench.quick else 80
    rate, more = {}, {}
    for name, (module, extra) in ways.items():
        run = bench.fresh("cuda")
        command = [sys.executable, "-m", module, "pretrain", *words, *QUIET, *extra, f"trainer.steps={steps}", f"run.dir={run}"]
        done = bench.run(command)
        rate[name] = _rate(run) * per_row
        more[name] = {"seconds": done.seconds, "peak_memory_bytes": done.result["train"]["peak_memory_bytes"]}
    ours = rate["compiled"]
    shown = {"share_of_product": ours * work / peak, "operations_each": work, "rates": rate, "cost": more}
    bench.row(what, ours, rate["not compiled"], unit=f"{unit}/s", peer_is="not compiled", **shown)


def _rate(run: Path) -> float:
    """Rows a second, from the median time between logged steps; the first are left out (compilation)."""
    lines = [r for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "seconds" in r]
    pairs = itertools.pairwise(lines[1:])
    return statistics.median((b["step"] - a["step"]) * BATCH / (b["seconds"] - a["seconds"]) for a, b in pairs)

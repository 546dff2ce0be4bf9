"""Labels saved: planted curves read back; then the real thing on digits, with its verdict."""

import json
from pathlib import Path

from scripts.benchmarks.rows import Bench

TRUTHS, REPEATS = (2.5, 4.0, 10.0), 20
NAMES = ("pretrained", "from scratch")


def rows(bench: Bench) -> None:
    from sslcli.evidence.efficiency import read, resampled
    from tests.planted import BUDGETS, planted

    for truth in TRUTHS:
        found = [read(resampled(planted(s, truth)), BUDGETS, *NAMES, (NAMES[1], float(BUDGETS[-1]))) for s in range(REPEATS)]
        covered = sum(r.saved_interval[0] <= 1 - 1 / truth <= r.saved_interval[1] for r in found)
        bench.row(f"planted: {1 - 1 / truth:.0%} of the labels saved, 95 % interval covers it in", covered, REPEATS)
    for flat, name in ((False, "unrelated corpus"), (True, "shuffled labels")):
        said = [read(resampled(planted(s, 1.0, flat=flat)), BUDGETS, *NAMES, (NAMES[1], float(BUDGETS[-1]))).verdict for s in range(10)]
        bench.row(f"planted, {name}: nothing saved or hurt in", sum(v != "saved" for v in said), 10)
    run = bench.fresh("digits")
    bench.ssl("pretrain", "data=digits", *(["trainer.steps=20"] if bench.quick else []), f"run.dir={run}")
    bench.ssl("curve", f"from={run}", f"curve.seeds={2 if bench.quick else 3}", "curve.labels=[2,5,10,20,40]", "sweep.parallel=2")
    curve = json.loads(Path(f"{run}-curve/curve.json").read_text())
    interval = curve["saved_interval"]
    bench.row("digits: share of the labels saved", curve["saved"], interval=interval, said=curve["sentence"], seconds=_seconds(run))


def _seconds(run: Path) -> float:
    return float(json.loads((run / "metrics.json").read_text())["train"]["seconds"])

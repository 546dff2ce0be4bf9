"""`scripts/bench`: runs the named benchmarks and prints their rows."""

import argparse
import importlib
import sys
from pathlib import Path

from scripts.benchmarks.rows import Bench

NAMES = (
    "start",
    "data",
    "mlm",
    "finetune",
    "crash",
    "quickstart",
    "images",
    "augment",
    "few",
    "leaks",
    "copies",
    "curve",
    "scout",
    "collapse",
    "cuda",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("what", choices=(*NAMES, "all"))
    parser.add_argument("--data", type=Path, help="folder of the real data sets")
    parser.add_argument("--repeat", type=int, default=3, help="measurements of which the median is reported")
    parser.add_argument("--seeds", type=int, default=3, help="runs behind a score")
    parser.add_argument("--quick", action="store_true", help="a fraction of the steps: to see that it works")
    options = parser.parse_args()
    root = Path(__file__).parents[2]
    data = options.data or next((p for p in (root / "shared" / "data", root.parent / "shared" / "data") if p.is_dir()), None)
    bench = Bench(data, options.repeat, options.seeds, options.quick)
    for name in NAMES if options.what == "all" else (options.what,):
        importlib.import_module(f"scripts.benchmarks.{name}").rows(bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())

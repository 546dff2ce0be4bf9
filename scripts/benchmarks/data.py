"""Preparing text: speed, memory that does not grow with the corpus, and reading what was prepared."""

import json
import os
import sys
from pathlib import Path

from scripts.benchmarks.rows import Bench

PREPARE = """
import json, sys, time
from pathlib import Path
from sslcli.data import corpus
from sslcli.data.text import TextData
from sslcli.data.tokenizer import Tokenizer
from scripts.benchmarks.rows import own_peak
path, folder = sys.argv[1:]
words = Tokenizer.load(Path(folder))
none = dict.fromkeys(("valid", "test", "delimiter", "labels", "max_length", "too_long", "shots"))
some = {"columns": {}, "encoding": "utf-8", "valid_fraction": 0.01, "on_bad_record": "fail", "allow_empty": False, "allow_changed": False}
data = TextData(0, train=path, **some, **none)
start = time.monotonic()
prepared = corpus.prepare(data, words)
seconds = time.monotonic() - start
print(json.dumps({"seconds": seconds, "peak": own_peak(), "store": str(prepared.stores["train"].path)}))
"""

READ = """
import json, sys, time
from pathlib import Path
import numpy as np
from sslcli.data.blocks import block_places, read_blocks
from sslcli.data.chance import permutation
from sslcli.data.store import Store
store = Store(Path(sys.argv[1]))
places = block_places(store, 128)
order = permutation(0, 0, places.count)
order = np.concatenate([order] * max(1, 2_000_000 // len(order)))[:2_000_000 // 128 * 8]
best = float("inf")
for _ in range(5):
    start, tokens = time.monotonic(), 0
    for i in range(0, len(order) - 256, 256):
        tokens += read_blocks(store, order[i:i + 256], places.width).size
    best = min(best, (time.monotonic() - start) / tokens)
print(json.dumps({"tokens_per_second": 1 / best}))
"""


def rows(bench: Bench) -> None:
    from scripts.benchmarks.rows import minilm

    name, source = bench.corpus()
    sizes = (10, 100) if bench.quick else (10, 100, 1000)
    peaks = {}
    for megabytes in sizes:
        path = _grown(bench, source, megabytes)
        done = bench.run([sys.executable, "-c", PREPARE, str(path), str(minilm())], {"SSL_CACHE": str(bench.fresh("cache"))})
        peaks[megabytes] = done.peak_bytes
        size = path.stat().st_size
        bench.row(
            f"prepare {megabytes} MB of {name}", size / 1e6 / done.result["seconds"], unit="MB/s", peak_memory_mb=done.peak_bytes / 1e6
        )
        path.unlink()
        last = done
    bench.row(
        "peak memory, largest against smallest",
        max(peaks.values()) / min(peaks.values()),
        unit="x",
        better="lower",
        peaks_mb={k: v / 1e6 for k, v in peaks.items()},
    )
    read = bench.run([sys.executable, "-c", READ, last.result["store"]])
    bench.row("tokens read from the store, shuffled blocks of 128", read.result["tokens_per_second"] / 1e6, unit="M/s")


def _grown(bench: Bench, source: str, megabytes: int) -> Path:
    """The corpus, repeated with words of its own in every copy, until it has the size."""
    if source == "docstrings":
        from sslcli.data.docstrings import extracted

        source = str(extracted())
    texts = [json.loads(line)["text"] for line in Path(source).read_text(encoding="utf-8").splitlines()]
    path, copy = bench.folder / f"grown-{megabytes}.jsonl", 0
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1e6:
            for i, text in enumerate(texts):
                file.write(json.dumps({"text": f"{text} {copy * len(texts) + i:x}"}, ensure_ascii=False) + "\n")
                if i % 256 == 0 and file.tell() >= megabytes * 1e6:
                    break
            copy += 1
    os.sync()
    return path

"""Fine-tuning a pretrained 22M-parameter model on real data: examples a second and scores against the Transformers Trainer."""

import statistics

from scripts.benchmarks.rows import Bench, minilm

SETS = {"wnut17": ("ner", "token_classification", 16, "f1"), "banking77": ("classify", "text_classification", 32, "accuracy")}


def rows(bench: Bench) -> None:
    for name, (kind, task, batch, score) in SETS.items():
        folder = bench.labelled(name)
        if folder is None:
            bench.row(f"{name}: not measured, the data set is not on this machine", 0.0)
            continue
        common = dict(data=folder, model=minilm(), task=kind, batch=batch, epochs=1.0, lr=1e-4, seed=0, warmup=20)  # noqa: C408
        peer = {
            b: statistics.median(
                bench.peer("peer_finetune", **common, bf16=b, limit=batch * 30).result["examples_per_second"] for _ in range(bench.repeat)
            )
            for b in (False, True)
        }
        ours = {}
        for precision in ("auto", "fp32"):
            found = []
            for _ in range(bench.repeat):
                run = bench.fresh("speed")
                quiet = [
                    "trainer.steps=60",
                    "trainer.log_every=1",
                    "trainer.eval_every=10000",
                    "trainer.save_every=10000",
                    "baseline=false",
                ]
                command = [f"task={task}", f"from={minilm()}", f"data.train={folder / 'train.jsonl'}", f"trainer.batch_size={batch}"]
                bench.ssl("finetune", *command, *quiet, f"trainer.precision={precision}", f"run.dir={run}")
                found.append(_mean_rate(run, batch))
            ours[precision] = statistics.median(found)
        bench.row(f"{name}: our defaults against the Trainer's (fp32)", ours["auto"], peer[False], unit="examples/s")
        bench.row(f"{name}: both in fp32", ours["fp32"], peer[False], unit="examples/s")
        bench.row(f"{name}: both in bf16", ours["auto"], peer[True], unit="examples/s")
        if bench.seeds:
            _scores(bench, name, kind, task, batch, score)


def _scores(bench: Bench, name: str, kind: str, task: str, batch: int, score: str) -> None:
    folder = bench.labelled(name)
    assert folder is not None
    ours, peers = [], []
    valid = [f"data.valid={folder / 'valid.jsonl'}"] if (folder / "valid.jsonl").exists() else []
    for seed in range(bench.seeds):
        command = [f"task={task}", f"from={minilm()}", f"data.train={folder / 'train.jsonl'}", f"data.test={folder / 'test.jsonl'}", *valid]
        more = [f"trainer.batch_size={batch}", "trainer.epochs=3", f"seed={seed}", "baseline=false", f"run.dir={bench.fresh('score')}"]
        ours.append(bench.ssl("finetune", *command, *more).result["test"][score])
        warmup = 0 if kind == "ner" else 20
        peer = bench.peer(
            "peer_finetune",
            data=folder,
            model=minilm(),
            task=kind,
            batch=batch,
            epochs=3,
            lr=1e-4,
            seed=seed,
            bf16=False,
            limit=None,
            warmup=warmup,
        )
        peers.append(peer.result["score"])
    bench.row(
        f"{name}: test {score} after 3 epochs, mean of {bench.seeds} seeds",
        statistics.mean(ours),
        statistics.mean(peers),
        our_seeds=ours,
        peer_seeds=peers,
    )


def _mean_rate(run, batch: int) -> float:
    """Batches are of unlike length: the mean over all steps after the first few, not the median step."""
    import json

    seconds = [r["seconds"] for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "seconds" in r]
    return batch * (len(seconds) - 6) / (seconds[-1] - seconds[5])

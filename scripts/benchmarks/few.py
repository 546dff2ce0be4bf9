"""Few labels: heads against SetFit and logistic regression on frozen vectors; adapters, adversaries, more pretraining against none."""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from scripts.benchmarks.rows import Bench, Done, minilm

SHOTS = 8  # a class, where the set brings no file of few labels
SETS = {"banking77": "train_10shot", "clinc150": "train_10shot", "sst2": None, "trec": None}
LEFT_OUT = {"clinc150": "oos"}  # not an intent
ADVERSARIES = ("plain", "fgm", "freelb", "smart", "vat")
OBJECTIVES = ("masked_lm", "simcse", "tsdae")  # before the labels, on the texts of the same set
BOUND = {"banking77": 400, "clinc150": 80}  # SetFit's steps where its pairs are many: what its authors' default needs takes hours


def rows(bench: Bench) -> None:
    missing = [name for name in SETS if bench.labelled(name) is None]
    if missing:
        bench.row(f"few: not measured, {', '.join(missing)} are not on this machine", 0.0)
        return
    _heads(bench)
    _tuners(bench)
    _adversaries(bench)
    _terms(bench)


def _python(bench: Bench) -> str:
    """SetFit lives apart: it brings much that the product does not need."""
    root = Path(__file__).parents[2] / ".benchmarks" / "setfit"
    python = root / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(root)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "torch>=2.13,<2.14", "setfit==1.2.*"], check=True)
    return str(python)


def subset(bench: Bench, name: str, seed: int) -> tuple[Path, Path]:
    """(training file of few labels, test file): the same rows for everybody."""
    from sslcli.data.text import few

    folder = bench.labelled(name)
    assert folder is not None
    found = []
    for split in (SETS[name] or "train", "test"):
        lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        records = [r for r in map(json.loads, lines) if r["label"] != LEFT_OUT.get(name)]
        if split == "train":
            ids = {x: i for i, x in enumerate(sorted({r["label"] for r in records}))}
            records = [records[i] for i in few(seed, [ids[r["label"]] for r in records], SHOTS)]
        path = bench.folder / f"{name}-{split}-{seed}.jsonl"
        path.write_text("".join(json.dumps({"text": r["text"], "label": r["label"]}) + "\n" for r in records), encoding="utf-8")
        found.append(path)
    return found[0], found[1]


def tuned(bench: Bench, train: Path, test: Path, seed: int, *words: str, source: object = None) -> Done:
    run = bench.fresh("few")
    given = [f"from={source or minilm()}", f"data.train={train}", f"data.test={test}", f"seed={seed}", "trainer.seeds=1", "baseline=false"]
    return bench.ssl("finetune", *given, *words, f"run.dir={run}")


def _heads(bench: Bench) -> None:
    """Accuracy and time by set, against the better of both peers; then the mean of the sets."""
    python, means = _python(bench), []
    for name in SETS:
        scores: dict[str, list[float]] = {"ours": [], "frozen": [], "setfit": []}
        took: dict[str, list[float]] = {"ours": [], "setfit": []}
        for seed in range(bench.seeds):
            train, test = subset(bench, name, seed)
            ours = tuned(bench, train, test, seed, "task.head=auto")
            scores["ours"].append(ours.result["test"]["accuracy"])
            took["ours"].append(ours.seconds)
            common: dict[str, Any] = {"train": train, "test": test, "model": minilm(), "seed": seed}
            scores["frozen"].append(bench.peer("peer_fewshot", method="frozen", steps=None, **common).result["accuracy"])
            if seed == 0 or SETS[name] is None:  # with a fixed file its seeds differ little, and each costs minutes
                peer = bench.peer("peer_fewshot", python, method="setfit", steps=BOUND.get(name), **common)
                scores["setfit"].append(peer.result["accuracy"])
                took["setfit"].append(peer.seconds)
        mean = {k: statistics.mean(v) for k, v in scores.items()}
        best = max(mean["frozen"], mean["setfit"])
        means.append((mean["ours"], best))
        seconds = {k: statistics.mean(v) for k, v in took.items()}
        bench.row(f"{name}, few labels: accuracy against the better peer", mean["ours"], best, means=mean, seconds=seconds, by_seed=scores)
    gain = statistics.mean(a - b for a, b in means)
    bench.row("few labels, mean of the sets: gain over the better peer", gain, lowest=min(a - b for a, b in means))


def _tuners(bench: Bench) -> None:
    """Parameter-efficient against full fine-tuning: score, share of the parameters, step time and memory."""
    for name, task, key in (("banking77", "text_classification", "accuracy"), ("wnut17", "token_classification", "f1")):
        folder = bench.labelled(name)
        if folder is None:
            continue
        found = {}
        for kind in ("null", "lora", "adapter"):
            done = [
                tuned(bench, folder / "train.jsonl", folder / "test.jsonl", seed, f"task={task}", f"peft={kind}", "trainer.epochs=3")
                for seed in range(bench.seeds)
            ]
            train = [d.result["train"] for d in done]
            found[kind] = {
                "score": statistics.mean(d.result["test"][key] for d in done),
                "by_seed": [d.result["test"][key] for d in done],
                "examples_per_second": statistics.median(t["examples_per_second"] for t in train),
                "peak_memory_bytes": statistics.median(t["peak_memory_bytes"] for t in train),
            }
        for kind in ("lora", "adapter"):
            bench.row(f"{name}: {kind} against full fine-tuning", found[kind]["score"], found["null"]["score"], all=found)


def _adversaries(bench: Bench) -> None:
    for name in SETS:
        for kind in ADVERSARIES:
            clean, attacked = [], []
            for seed in range(bench.seeds):
                train, test = subset(bench, name, seed)
                done = tuned(bench, train, test, seed, "task.head=linear", f"adversarial={kind}", "trainer.steps=100")
                more = bench.ssl("evaluate", f"run={done.result['run']}", f"data.test={test}", "robustness=true")
                clean.append(done.result["test"]["accuracy"])
                attacked.append(more.result["robustness"])
            bench.row(f"{name}: adversarial={kind}, accuracy", statistics.mean(clean), by_seed=clean, attacked=attacked)


def _terms(bench: Bench) -> None:
    """Continued pretraining on a set's own texts, and joint training, against the labels alone."""
    for name in SETS:
        folder = bench.labelled(name)
        assert folder is not None
        corpus = f"data.train={folder / 'train.jsonl'}"
        found: dict[str, list[float]] = {}
        for objective in (None, *OBJECTIVES):
            source = minilm()
            if objective:
                run = bench.fresh("more")
                bench.ssl("pretrain", f"from={minilm()}", f"objective={objective}", corpus, "trainer.steps=150", f"run.dir={run}")
                source = run
            for seed in range(bench.seeds):
                train, test = subset(bench, name, seed)
                done = tuned(bench, train, test, seed, "task.head=auto", source=source)
                found.setdefault(objective or "none", []).append(done.result["test"]["accuracy"])
        for objective, scores in found.items():
            if objective != "none":
                bench.row(f"{name}: {objective} on its own texts first", statistics.mean(scores), statistics.mean(found["none"]), all=found)

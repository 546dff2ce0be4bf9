"""The scout against trying everything: each objective for the whole time by itself, and all of them scouted in the time of one."""

import json
from pathlib import Path

from scripts.benchmarks.rows import Bench

SECONDS = 900.0  # of each long run, and of a scout from its first pilot to its end
SMALL = ["model=resnet_nano", "data.size=16", "trainer.batch_size=64"]
PICTURES = ("simclr", "vicreg", "byol", "simsiam")
TEXTS = ("span_contrastive", "masked_lm", "simcse", "tsdae")


def rows(bench: Bench) -> None:
    seconds = SECONDS / 6 if bench.quick else SECONDS
    for name, words, test in _sets(bench):
        _row(bench, name, words, test, seconds)


def _sets(bench: Bench) -> list[tuple[str, list[str], list[str]]]:
    """(name, what to pretrain on, what a probe of texts is fitted and tested on)"""
    found: list[tuple[str, list[str], list[str]]] = [("digits", ["data=digits", "trainer.batch_size=64"], [])]
    if folder := bench.labelled("trec"):
        train, test = f"data.train={folder / 'train.jsonl'}", f"data.test={folder / 'test.jsonl'}"
        found.append(("trec", [train], [train, test]))
    if folder := bench.labelled("fashion-mnist"):
        split = [f"data.{s}={folder / f'{n}-images-idx3-ubyte.gz'}" for s, n in (("train", "train"), ("test", "t10k"))]
        found.append(("fashion-mnist", [*split, "data=images", *SMALL], []))
    if folder := bench.labelled("cifar10-part"):
        found.append(("cifar10-part", [*(f"data.{s}={folder / f'{s}.parquet'}" for s in ("train", "test")), "data=images", *SMALL], []))
    return found


def _row(bench: Bench, name: str, words: list[str], test: list[str], seconds: float) -> None:
    objectives = TEXTS if test else PICTURES
    run, all_words = bench.fresh(f"scout-{name}"), f"objective.candidates=[{','.join(objectives)}]"
    done = bench.ssl("pretrain", *words, "objective=auto", all_words, f"budget={seconds:g}s", f"run.dir={run}")
    board = json.loads((run / "scout.json").read_text())
    scores, spent = {}, 0.0
    for objective in objectives:
        alone = bench.fresh(f"{objective}-{name}")
        spent += bench.ssl("pretrain", *words, f"objective={objective}", f"trainer.time_limit={seconds:g}s", f"run.dir={alone}").seconds
        scores[objective] = _score(bench, alone, test)
    best, chosen = max(scores, key=lambda k: scores[k]), board["chosen"]
    bench.row(
        f"{name}: probe after a scout of {seconds:g} s in all, against the best of {len(objectives)} runs of {seconds:g} s each",
        _score(bench, run, test),
        scores[best],
        chosen=chosen,
        best=best,
        chosen_alone=scores[chosen],
        behind_best=scores[best] - scores[chosen],
        alone=scores,
        decided_by=board["by"],
        pilots={p["name"]: [look["scores"][board["by"]] for look in p["looks"]] for p in board["pilots"]},
        steps={p["name"]: [look["steps"] for look in p["looks"]] for p in board["pilots"]},
        whole_share=done.seconds / spent,
        deciding_share=board["spent"] / spent,
        budget_kept=done.seconds / seconds,
        exhaustive_seconds=spent,
    )


def _score(bench: Bench, run: Path, test: list[str]) -> float:
    """A linear layer on the frozen features, on test data that nobody chose by."""
    if not test:
        return float(json.loads((run / "metrics.json").read_text())["test"]["probe"])
    frozen = ["peft=linear_probe", "trainer.steps=1", "trainer.seeds=1", "verdict=false", "baseline=false", "optimizer.lr=1e-6"]
    return float(bench.ssl("finetune", f"from={run}", *test, *frozen, f"run.dir={bench.fresh('probe')}").result["test"]["accuracy"])

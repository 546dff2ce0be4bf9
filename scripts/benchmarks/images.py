"""Pictures: speed of SimCLR and MAE against lightly and the Transformers Trainer, and what minutes of pretraining are worth."""

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.benchmarks.rows import Bench, step_rate

# torchvision needs the CUDA build of torch, so the peers live apart (about 6 GB)
PEER = (
    "torch==2.14.1",
    "torchvision==0.29.1",
    "lightly==1.6.*",
    "transformers==5.23.0",
    "accelerate",
    "datasets",
    "pyarrow",
    "scikit-learn",
)
MINUTES = 10.0
QUIET = ["trainer.log_every=1", "trainer.eval_every=100000", "trainer.save_every=100000"]
SIMCLR = ("objective=simclr", "model=resnet18")
RESNETS, VITS = (["model=resnet_nano", "trainer.batch_size=128"], ["model=vit_nano", "model.patch=4", "trainer.batch_size=128"])
OF_PATCHES = ("dino", "mae", "simmim")
OBJECTIVES = ("simclr", "moco", "byol", "simsiam", "vicreg", "barlow_twins", "swav", "autoencoder", *OF_PATCHES)
MAE = ("objective=mae", "model=vit_micro", "model.patch=4", "objective.width=192", "objective.heads=3")


def rows(bench: Bench) -> None:
    folder = bench.labelled("cifar10-part")
    if folder is None:
        bench.row("images: not measured, the data set cifar10-part is not on this machine", 0.0)
        return
    _data(bench, folder)
    python = _peer_python(bench)
    _simclr(bench, folder, python)
    _mae(bench, folder, python)
    _neighbours(bench, folder, python)
    _objectives(bench, folder)
    _digits(bench)
    _fashion(bench)


def _peer_python(bench: Bench) -> str:
    root = Path(__file__).parents[2] / ".benchmarks" / "peers"
    python = root / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(root)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEER], check=True)
    return str(python)


def _once(bench: Bench, folder: Path, steps: int, *words: str, module: str = "sslcli") -> float:
    run = bench.fresh("images")
    given = [f"data.train={folder / 'train.parquet'}", "data=images", *words, *QUIET, f"trainer.steps={steps}", f"run.dir={run}"]
    bench.run([sys.executable, "-m", module, "pretrain", *given])
    return step_rate(run, 256, 2)


def _data(bench: Bench, folder: Path) -> None:
    """What reading and augmenting cost: the same steps, once on one batch that stays in memory, augmented."""
    for what, words in (("SimCLR, ResNet-18", SIMCLR), ("MAE, ViT 6 x 192", MAE)):
        modules = ("sslcli", "scripts.benchmarks.in_memory")
        rates = [[_once(bench, folder, 12, *words, module=m) for m in modules] for _ in range(bench.repeat)]
        ours, still = (statistics.median(found) for found in zip(*rates, strict=True))
        bench.row(f"{what}, 32 px: against the same step on data already augmented in memory", ours, still, unit="images/s")


def _simclr(bench: Bench, folder: Path, python: str) -> None:
    common = {"data": folder, "batch": 256, "seconds": 1e9, "neighbours": False, "seed": 0}
    plain, fast = {"steps": 6, "bf16": False, "channels_last": False}, {"steps": 12, "bf16": True, "channels_last": True}
    ours, slow, quick = _beside(bench, folder, 12, SIMCLR, "peer_simclr", python, [common | plain, common | fast])
    shown = {"unit": "images/s", "peer_is": "lightly"}
    bench.row("SimCLR, ResNet-18, 32 px: our defaults against lightly's (fp32)", ours, slow, **shown)
    bench.row("SimCLR, ResNet-18, 32 px: both in bf16, channels last", ours, quick, **shown)


def _mae(bench: Bench, folder: Path, python: str) -> None:
    settings = [{"data": folder, "batch": 256, "steps": 15, "bf16": bf16} for bf16 in (False, True)]
    ours, *peers = _beside(bench, folder, 25, MAE, "peer_mae", python, settings)
    for setting, peer in zip(settings, peers, strict=True):
        kind = "bf16" if setting["bf16"] else "fp32"
        bench.row(f"MAE, ViT 6 x 192, 32 px: ours against the Trainer in {kind}", ours, peer, unit="images/s")


def _beside(
    bench: Bench, folder: Path, steps: int, words: Sequence[str], name: str, python: str, settings: Sequence[dict[str, Any]]
) -> list[float]:
    """Images a second, medians: ours, then the peer's by its settings, in turn, so that the machine's moods are everybody's."""
    found: list[list[float]] = []
    for _ in range(bench.repeat):
        peers = [bench.peer(name, python, **setting).result["images_per_second"] for setting in settings]
        found.append([_once(bench, folder, steps, *words), *peers])
    return [statistics.median(rates) for rates in zip(*found, strict=True)]


def _neighbours(bench: Bench, folder: Path, python: str) -> None:
    """After the same minutes: the recommended recipe, and lightly's SimCLR in bf16; the neighbours of the test pictures."""
    seconds = (1 if bench.quick else MINUTES) * 60
    run = bench.fresh("recipe")
    words = ["experiment=small_images", f"data.train={folder / 'train.parquet'}", f"data.test={folder / 'test.parquet'}"]
    done = bench.ssl("pretrain", *words, f"trainer.time_limit={seconds}s", f"run.dir={run}").result
    common = {"data": folder, "batch": 256, "seconds": seconds, "steps": 10**9, "bf16": True, "channels_last": True}
    peer = bench.peer("peer_simclr", python, **common, neighbours=True, seed=0).result
    what = f"neighbours' accuracy on cifar10-part after {seconds / 60:g} minutes of pretraining"
    steps = {"our_steps": done["train"]["steps"], "peer_steps": peer["steps"]}
    bench.row(what, done["test"]["knn"], peer["knn"], probe=done["test"]["probe"], **steps)
    print(json.dumps({"run": str(run)}), file=sys.stderr)


def _objectives(bench: Bench, folder: Path) -> None:
    """Each for five minutes, with a network that sees hundreds of pictures a second. Five neighbours of raw pixels: 0.306."""
    seconds = (1 if bench.quick else 5) * 60
    for name in OBJECTIVES:
        small = VITS if name in OF_PATCHES else RESNETS
        run, words = bench.fresh(name), [f"data.{s}={folder / f'{s}.parquet'}" for s in ("train", "test")]
        done = bench.ssl("pretrain", "data=images", f"objective={name}", *small, *words, f"trainer.time_limit={seconds}s", f"run.dir={run}")
        alarms = json.loads((run / "receipts.json").read_text())["sentinel"].get("alarms")
        what = f"{name} on cifar10-part, {seconds // 60} minutes: neighbours' accuracy on the test pictures"
        bench.row(what, done.result["test"]["knn"], probe=done.result["test"]["probe"], steps=done.result["train"]["steps"], alarms=alarms)


def _digits(bench: Bench) -> None:
    """The story of a first visit, offline: pretraining on digits, then five labels a class, and the same network untrained."""
    run = bench.fresh("digits")
    first = bench.ssl("pretrain", "data=digits", f"run.dir={run}")
    once, scores = _few(bench, run, ["data=digits", "data.shots=5"])
    seconds = first.seconds + once
    _compared(bench, "digits, 5 labels a class: top-1 after pretraining against from scratch", scores, story_seconds=seconds)


def _fashion(bench: Bench) -> None:
    folder = bench.labelled("fashion-mnist")
    if folder is None:
        bench.row("fashion-mnist: not measured, the data set is not on this machine", 0.0)
        return
    train, test = (f"data.{s}={folder / f'{name}-images-idx3-ubyte.gz'}" for s, name in (("train", "train"), ("test", "t10k")))
    seconds = (1 if bench.quick else MINUTES) * 60
    run = bench.fresh("fashion")
    words = ["experiment=small_images", f"trainer.time_limit={seconds}s"]
    bench.ssl("pretrain", *words, train, f"run.dir={run}")
    _, scores = _few(bench, run, [train, test, "data.shots=10"])
    _compared(bench, f"fashion-mnist, 10 labels a class: top-1 after {seconds / 60:g} minutes against from scratch", scores)


def _few(bench: Bench, run: Path, words: list[str]) -> tuple[float, dict[str, list[float]]]:
    """(seconds of the first fine-tuning, top-1 by seed: pretrained, from scratch, neighbours of raw pixels)"""
    scores: dict[str, list[float]] = {"pretrained": [], "scratch": [], "pixels": []}
    first = 0.0
    for seed in range(bench.seeds):
        done = bench.ssl("finetune", f"from={run}", *words, f"seed={seed}", "trainer.seeds=1", f"run.dir={bench.fresh('few')}")
        first = first or done.seconds
        scores["pretrained"].append(done.result["test"]["top1"])
        scores["pixels"].append(done.result["baseline"]["top1"])
        more = ["init=random", "baseline=false", f"seed={seed}", "trainer.seeds=1", f"run.dir={bench.fresh('scratch')}"]
        scores["scratch"].append(bench.ssl("finetune", f"from={run}", *words, *more).result["test"]["top1"])
    return first, scores


def _compared(bench: Bench, what: str, scores: dict[str, list[float]], **more: float) -> None:
    means = {k: statistics.mean(v) for k, v in scores.items()}
    better = sum(a > b for a, b in zip(scores["pretrained"], scores["scratch"], strict=True))
    bench.row(what, means["pretrained"], means["scratch"], pixels=means["pixels"], better_in=better, seeds=len(scores["scratch"]), **more)

"""Augmentation on one core: views a second of each operation and of whole recipes against kornia, at 32, 96 and 224 pixels."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from scripts.benchmarks.rows import Bench
from sslcli import device, schema
from sslcli.augment import Augment
from sslcli.augment.blur import Blur
from sslcli.augment.colour import Colour, Grey, Solarise
from sslcli.augment.geometry import Affine, Crop, Geometry
from sslcli.augment.mix import Erase, Mix
from sslcli.augment.randaugment import RandAugment

SIZES = {32: 256, 96: 64, 224: 16}  # pixels a side: pictures a batch
STILL, WHOLE = Affine(0, 0, 0, 0), Crop((1, 1), (1, 1))
Step = Callable[[], Any]


def rows(bench: Bench) -> None:
    torch.set_num_threads(1)
    device.keep_heap()  # as the trainer does; kornia gains as well
    for size, batch in ({32: 64} if bench.quick else SIZES).items():
        # not noise: pictures have flat places, where a comparison is easily foreseen
        coarse = torch.rand(batch, 3, max(2, size // 8), max(2, size // 8))
        pixels = nn.functional.interpolate(coarse * 255, (size, size), mode="bilinear").byte()
        for what, views, ours, peer in _pairs(pixels):
            theirs = batch / _seconds(peer, bench.repeat) if peer else None  # one view
            bench.row(f"{what}, {size} px", batch * views / _seconds(ours, bench.repeat), theirs, "views/s of one core", batch=batch)


def _seconds(step: Step, repeat: int) -> float:
    """The least of a few, in time of the processor: others may be using the machine, and threads that wait for one another then say
    more about those others than about the step."""
    step()
    found = []
    for _ in range(repeat):
        start = time.process_time()
        step()
        found.append(time.process_time() - start)
    return min(found)


def _pairs(pixels: Tensor) -> Iterator[tuple[str, int, Step, Step | None]]:
    """(what, views of a picture, our step, kornia's if it has the like)"""
    size, pictures = pixels.shape[-1], pixels.float() / 255
    draws, target = torch.rand(len(pixels), 64), torch.eye(10)[torch.arange(len(pixels)) % 10]
    colour, blur = Colour(0.8, 0.4, 0.4, 0.4, 0.1), Blur(0.5, (0.1, 2.0), 1)
    crop, turn = Geometry(Crop((0.2, 1), (0.75, 1.3333)), STILL, 0.5), Geometry(WHOLE, Affine(15, 0.1, 0.15, 10), 0)
    ours: dict[str, Step] = {
        "crop and flip": lambda: crop(pixels, draws, size, True),
        "affine": lambda: turn(pixels, draws, size, False),
        "colour": lambda: colour(pictures.clone(), draws),
        "grey": lambda: Grey(0.2)(pictures.clone(), draws),
        "blur": lambda: blur(pictures.clone(), draws),
        "solarise": lambda: Solarise(0.2)(pictures.clone(), draws),
        "randaugment": lambda: RandAugment(2, 9)(pictures.clone(), draws[:, :4]),
        "erase": lambda: Erase(0.25, (0.02, 0.33))(pictures.clone(), draws),
        "mixup": lambda: Mix(1, 0.8, 0)(pictures, target, draws),
        "cutmix": lambda: Mix(1, 0, 1)(pictures, target, draws),
    }
    peers = _peers(pixels)
    yield from ((what, 1, step, peers.get(what)) for what, step in ours.items())
    for name in ("simclr", "byol", "dino", "mae", "strong"):
        augment = _recipe(name)
        all_draws = torch.rand(len(pixels), augment.draws)
        step = partial(augment.views, pixels, all_draws, True)
        yield f"recipe {name}", augment.count + augment.local, step, peers.get(f"recipe {name}")


def _peers(pixels: Tensor) -> dict[str, Step]:
    """kornia's, where it is installed; its RandAugment draws once for the whole batch, ours for each picture."""
    try:
        import kornia.augmentation as k
    except ImportError:
        return {}
    size, pictures = pixels.shape[-1], pixels.float() / 255
    crop = nn.Sequential(k.RandomResizedCrop((size, size), scale=(0.2, 1.0), ratio=(0.75, 1.3333)), k.RandomHorizontalFlip())
    affine = k.RandomAffine(15, (0.1, 0.1), (0.85, 1.15), 10, p=1.0)
    colour, grey = k.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), k.RandomGrayscale(p=0.2)
    blur = k.RandomGaussianBlur((13, 13), (0.1, 2.0), p=0.5)
    simclr = nn.Sequential(crop, colour, grey, *([blur] if size >= 48 else []))
    of_bytes = {"crop and flip": crop, "affine": affine, "recipe mae": crop, "recipe simclr": simclr}
    of_pictures = {
        "colour": colour,
        "grey": grey,
        "blur": blur,
        "solarise": k.RandomSolarize(p=0.2),
        "randaugment": k.auto.RandAugment(n=2, m=9),
        "erase": k.RandomErasing((0.02, 0.33), (0.3, 3.3), p=0.25),
        "mixup": k.RandomMixUpV2(p=1.0, data_keys=["input"]),
        "cutmix": k.RandomCutMixV2(p=1.0, data_keys=["input"]),
    }
    return {
        **{what: partial(lambda m: m(pixels.float() / 255), module) for what, module in of_bytes.items()},
        **{what: partial(module, pictures) for what, module in of_pictures.items()},
    }


def _recipe(name: str) -> Augment:
    path = Path(__file__).parents[2] / "configs" / "augment" / f"{name}.yaml"
    node = {k: v for k, v in yaml.safe_load(path.read_text()).items() if k != "modality"}
    part = schema._check_part("augment", Augment, node, (), [])
    assert part is not None
    return part.build()

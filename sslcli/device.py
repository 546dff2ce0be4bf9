"""What the device can do, and how it is set up for a run."""

import contextlib
import ctypes
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from sslcli.errors import BadInput

TOKENS_CPU, TOKENS_CUDA = 16_384, 65_536  # padded tokens of one forward pass, where the user names no micro_batch_size
MEMORY_CUDA = 15 << 30  # bytes of the smallest device (sold as 16 GB) that the latter is for
WORTH_STEPS, WORTH_SECONDS = 2000, 600.0  # what must lie ahead of a compilation, which takes up to a minute, to be paid back


def precision(asked: Literal["auto", "fp32", "bf16"], device: torch.device) -> torch.dtype:
    """bf16 wherever the device multiplies in it; fp32 otherwise."""
    able = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bf16()
    if asked == "bf16" and not able and device.type == "cuda":
        raise BadInput("trainer.precision=bf16: this GPU has no bf16; use trainer.precision=fp32")
    return torch.bfloat16 if asked == "bf16" or (asked == "auto" and able) else torch.float32


def _cpu_has_bf16() -> bool:
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def prepare(device: torch.device, deterministic: bool) -> None:
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
    if device.type == "cuda":
        torch.cuda.init()  # its memory has no statistics before
        torch.backends.cuda.matmul.allow_tf32 = not deterministic
        torch.cuda.reset_peak_memory_stats(device)
    else:
        keep_heap()


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Inside, CUDA devices multiply fp32 in fp32. TF32, which is faster, keeps 10 bits: too few to tell whether two networks are one."""
    places: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    try:
        yield
    finally:
        for place, was in zip(places, before, strict=True):
            place.allow_tf32 = was


def keep_heap() -> None:
    """Large blocks that glibc gives back to the kernel after every step come back as page faults: a quarter of a step, measured."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(-4, 0)  # M_MMAP_MAX: large blocks from the heap too
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: keep the top of the heap


def seed(seed: int, step: int, rank: int) -> None:
    """Dropout and other draws on the device: keyed by (seed, step, rank), so that nothing about them need be saved."""
    torch.manual_seed((seed * 1_000_003 + step) * 8191 + rank)


def token_budget(device: torch.device, pictures: bool = False) -> int:
    """Of pictures more on a larger device: each further piece of a batch costs the host another round of launches, and one H100 that got
    as little at a time as a small card waited for two thirds of a step (ViT-B)."""
    if device.type != "cuda":
        return TOKENS_CPU
    return TOKENS_CUDA * (max(1, torch.cuda.get_device_properties(device).total_memory // MEMORY_CUDA) if pictures else 1)


def worth_a_pass(device: torch.device) -> int:
    """Padded tokens that cost as much as the overhead of one more forward and backward pass."""
    return 8192 if device.type == "cuda" else 256


def compiles(asked: bool | Literal["auto"], device: torch.device, steps: int | None, seconds: float | None) -> bool:
    """Whether a network is compiled; where the user leaves it open: on CUDA, for so many steps, or for so long, that it pays."""
    if asked != "auto":
        return asked
    long = (seconds or 0.0) >= WORTH_SECONDS if steps is None else steps >= WORTH_STEPS
    return device.type == "cuda" and long


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device on CUDA, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free

"""Replicas: one process a device. Gradients are reduced once an optimizer step; every decision is agreed; rank 0 writes.

`trainer.devices=N` starts the processes here (exit codes and signals pass through); under `torchrun` they are found started.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from sslcli.errors import BadInput
from sslcli.run import cores

PATIENCE = timedelta(minutes=30)  # a rank that says nothing for so long is dead
GRACE = 30.0  # seconds that the others get after the first process has failed


@dataclass
class World:
    rank: int
    size: int
    device: torch.device
    talk: object | None = None  # a gloo group for small agreements, apart from the gradients' own

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def reduce(self, grads: Sequence[Tensor]) -> None:
        """Sum over ranks in place, as one message a dtype. The losses were already weighed by the global count."""
        if self.size == 1 or not grads:
            return
        flat = torch._utils._flatten_dense_tensors(grads)
        dist.all_reduce(flat)
        for grad, part in zip(grads, torch._utils._unflatten_dense_tensors(flat, grads), strict=True):
            grad.copy_(part)

    def same(self, tensors: Iterable[Tensor]) -> None:
        """What rank 0 has, everywhere."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.data, 0)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over ranks of a few numbers: batch weights and flags. Every step waits for these."""
        if self.size == 1:
            return list(values)
        message = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(message, group=self.talk)
        return message.tolist()

    def gather(self, value: object) -> list:
        if self.size == 1:
            return [value]
        found: list = [None] * self.size
        dist.all_gather_object(found, value, group=self.talk)
        return found


@contextlib.contextmanager
def world(devices: int) -> Iterator[World]:
    """This process's place among its replicas."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if size > 1 and devices not in (1, size):
        raise BadInput(f"trainer.devices={devices}, but {size} processes were started; leave trainer.devices to the launcher")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if size == 1:
        yield World(0, 1, device)
        return
    if dist.is_initialized():  # a run within a run: the processes have met
        yield World(rank, size, device, dist.new_group(backend="gloo", timeout=PATIENCE))
        return
    if cuda:
        torch.cuda.set_device(device)
    rendezvous = os.environ.get("SSL_RENDEZVOUS", "env://")
    dist.init_process_group("nccl" if cuda else "gloo", init_method=rendezvous, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield World(rank, size, device, dist.new_group(backend="gloo", timeout=PATIENCE))
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def launch(arguments: Sequence[str], devices: int) -> int:
    """Start `devices` replicas of this command; returns their exit code: the first that failed, else 0."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else devices
    if devices > found:
        raise BadInput(f"trainer.devices={devices}, but {found} devices are here")
    threads = max(1, cores() // devices)
    with tempfile.TemporaryDirectory(prefix="sslcli-") as folder:
        common = {
            **os.environ,
            "WORLD_SIZE": str(devices),
            "SSL_RENDEZVOUS": f"file://{Path(folder) / 'rendezvous'}",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        }
        command = [sys.executable, "-m", "sslcli", *arguments]
        # in sessions of their own: Ctrl-C comes once, from here
        own = [{**common, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(devices)]
        replicas = [subprocess.Popen(command, env=env, start_new_session=True) for env in own]
        return _wait(replicas)


def _wait(replicas: Sequence[subprocess.Popen]) -> int:
    def forward(number: int, _: object) -> None:
        for replica in replicas:
            with contextlib.suppress(OSError):
                replica.send_signal(number)

    kinds = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.signal(kind, forward) for kind in kinds]
    try:
        failed, deadline = 0, float("inf")
        while any(replica.poll() is None for replica in replicas):
            time.sleep(0.05)
            codes = [replica.poll() for replica in replicas]
            first = next((code for code in codes if code not in (None, 0)), 0)
            if first and not failed:
                failed = 128 - first if first < 0 else first
                deadline = time.monotonic() + (GRACE if failed == 75 else 2.0)
            if time.monotonic() > deadline:
                for replica in replicas:
                    replica.kill()
        return failed or next((code for replica in replicas if (code := replica.returncode)), 0)
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)

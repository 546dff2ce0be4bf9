"""What a run is made of, and how far training moved it."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from sslcli.core import Backbone, Objective
from sslcli.errors import BadCheckpoint
from sslcli.teacher import Queue, Teacher

LEAST_LOADED = 0.9  # of the network's tensors; below this a pretrained model is not that model


class Modules(nn.Module):
    """Everything that has weights or state: the network, and what objectives own beside it."""

    def __init__(self, model: Backbone, **objectives: Objective):
        super().__init__()
        self.model = model
        for name, objective in objectives.items():
            self.add_module(name, objective)


def check_loaded(loaded: Mapping[str, Any], source: str, random: bool) -> None:
    """A pretrained model must really have been loaded."""
    body, new = loaded["body_tensors"], loaded["body_new"]
    if not random and body and (body - new) / body < LEAST_LOADED:
        names = ", ".join(loaded["first_lost"][:3])
        raise BadCheckpoint(
            f"from={source}: only {body - new} of the network's {body} tensors are in it (missing {names}, ...); is it the right folder?"
        )


def parameters(modules: nn.Module) -> dict[str, int]:
    every = list(modules.parameters())
    trainable = sum(p.numel() for p in every if p.requires_grad)
    return {"parameters": sum(p.numel() for p in every), "trainable": trainable}


class Moved:
    """How far training moved the weights, and what follows them, block by block, from a sample of each tensor's values."""

    SAMPLE = 2048

    def __init__(self, modules: nn.Module):
        self.before = {n: self._sample(t) for n, _, t, moves in _tensors(modules) if moves}

    def _sample(self, p: torch.Tensor) -> torch.Tensor:
        flat = p.detach().flatten()
        return flat[:: max(1, math.ceil(len(flat) / self.SAMPLE))].float().cpu().clone()

    def receipt(self, modules: nn.Module) -> dict[str, float]:
        """Block -> relative change, |after - before| / |before|."""
        sums: dict[str, list[float]] = {}
        for name, block, tensor, _ in _tensors(modules):
            if name not in self.before:
                continue
            before = self.before[name]
            held = sums.setdefault(block, [0.0, 0.0])
            held[0] += float((self._sample(tensor) - before).square().sum())
            held[1] += float(before.square().sum())
        return {k: round(math.sqrt(a / b) if b else math.sqrt(a), 6) for k, (a, b) in sums.items()}


def _tensors(modules: nn.Module) -> Iterator[tuple[str, str, torch.Tensor, bool]]:
    """(name, block, tensor, whether training is to move it) of weights, of the averages of teachers and of queues."""
    yield from ((name, _block(name), p, p.requires_grad) for name, p in modules.named_parameters())
    for name, module in modules.named_modules():
        if isinstance(module, Teacher):
            yield from ((f"{name}.{n}", name, b, True) for n, b in module.averages.named_buffers())
        elif isinstance(module, Queue):
            yield name, name, module.values, True


def _block(name: str) -> str:
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: i + 1])
    return ".".join(parts[:3])

"""A network held still: which of its blocks learn, the vectors that it gives, and a linear layer solved on them."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslcli.core import Backbone
from sslcli.data.pixels import Pixels
from sslcli.errors import BadInput
from sslcli.losses import settle

PIXELS_CPU, PIXELS_CUDA = 1 << 19, 1 << 22  # of one forward pass without gradients
FLAT = 0.05  # of the mean deviation: a feature that varies less is not blown up to vary as the others do


def only_last(model: Backbone, blocks: int) -> list[nn.Module]:
    """The last so many blocks, and what follows them, learn; the rest does not. Returns the modules that are to stay as they are."""
    parameters = [(name, p, _block(name)) for name, p in model.named_parameters()]
    last = max((b for *_, b in parameters if b is not None), default=-1)
    if blocks > last + 1:
        raise BadInput(f"task.tune={blocks}: this network has {last + 1} blocks; give at most {last + 1}, or tune=full")
    inside = [i for i, (*_, b) in enumerate(parameters) if b is not None]
    learning = set()
    for i, (_, parameter, block) in enumerate(parameters):
        after = blocks > 0 and (i > inside[-1] if block is None else block > last - blocks)
        parameter.requires_grad_(after)
        learning |= {id(parameter)} if after else set()
    owned = ((module, [id(p) for p in module.parameters()]) for module in model.modules())
    return [module for module, own in owned if own and learning.isdisjoint(own)]


def _block(name: str) -> int | None:
    """The number of the block that a parameter belongs to: the first one in its name (`blocks.3.mlp.0.weight`: 3)."""
    found = re.search(r"\.(\d+)\.", f".{name}")
    return int(found[1]) if found else None


@torch.no_grad()
def vectors(model: Backbone, pixels: Callable[[np.ndarray], Tensor], rows: np.ndarray, side: int) -> Tensor:
    """Pooled vectors [N, D] of rows; `pixels` gives their normalised pictures of so many pixels a side, on the model's device."""
    cuda = next(model.parameters()).is_cuda
    size = max(1, (PIXELS_CUDA if cuda else PIXELS_CPU) // side**2)
    found = []
    for start in range(0, len(rows), size):
        batch = {"pixels": pixels(rows[start : start + size])}
        found.append(model.pool(model.encode(batch), batch).float())
    return torch.cat(found)


def labelled(model: Backbone, processor: Pixels, stream: Any, most: int) -> tuple[Tensor, Tensor]:
    """Vectors [N, D] and labels [N, ...] of the rows of a training stream, or of an even sample of very many; pictures as they are."""
    rows = np.arange(0, stream.places.count, -(-stream.places.count // most))
    device, labels = next(model.parameters()).device, []

    def pixels(part: np.ndarray) -> Tensor:
        batch = stream.read(part, np.zeros(len(part), np.uint64))
        labels.append(batch["label"].to(device))
        return processor.plain(batch["pixels"].to(device))

    return vectors(model, pixels, rows, processor.size), torch.cat(labels)


def linear(vectors: Tensor, outputs: int, loss: Callable[[Tensor], Tensor], strength: float) -> tuple[Tensor, Tensor]:
    """(weight [C, D], bias [C]) of the layer whose logits make `loss` least, solved on standardised vectors [N, D] (their scale is then
    folded into the layer). `strength`: the inverse of the ridge, as C in scikit-learn."""
    center, scale = vectors.mean(0), vectors.std(0, correction=0)
    scale = scale.clamp(min=float(FLAT * scale.mean()) + 1e-12)
    x = (vectors - center) / scale
    weight, bias = (torch.zeros(outputs, *rest, device=x.device, requires_grad=True) for rest in ((x.shape[1],), ()))
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        settle([weight, bias], lambda: loss(x @ weight.t() + bias), 1 / (2 * strength * len(x)))
    with torch.no_grad():
        weight = weight / scale
        return weight, bias - weight @ center

"""A network held still: which of its blocks learn, the vectors that it gives, and a linear layer solved on them."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslcli.core import Backbone
from sslcli.data.pixels import Pixels
from sslcli.errors import BadInput
from sslcli.losses import settle
from sslcli.lowered import Lowered

PIXELS_CPU, PIXELS_CUDA = 1 << 19, 1 << 22  # of one forward pass without gradients
RIDGES = [10.0 ** (i / 2) for i in range(-10, 5)]  # times the mean variance of the features
SLOPES = (1, 2, 4, 8, 16, 32)  # that make logits of what least squares says, which is about 0 or 1
CHOOSING = 4096  # rows that the ridge is chosen on
ROUNDED, CERTAIN = 256, 16.0  # rows that rounding is measured on, and how often its variance is added: measured at 5 to 90 labels a class


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
    """Vectors [N, D] and labels [N, ...] of the rows of a training stream, or of an even sample of very many; pictures as they are, in
    the precision of the weights."""
    rows = np.arange(0, stream.places.count, -(-stream.places.count // most))
    device, labels = next(model.parameters()).device, []

    def pixels(part: np.ndarray) -> Tensor:
        batch = stream.read(part, np.zeros(len(part), np.uint64))
        labels.append(batch["label"].to(device))
        return processor.plain(batch["pixels"].to(device))

    with torch.autocast(device.type, enabled=False):
        return vectors(model, pixels, rows, processor.size), torch.cat(labels)


def rounding(model: Backbone, processor: Pixels, stream: Any) -> Tensor | None:
    """What weights in the precision of training, which autocast says, change in the vectors of some rows [M, D]; None where nothing."""
    device = next(model.parameters()).device.type
    if not torch.is_autocast_enabled(device):
        return None
    exact, _ = labelled(model, processor, stream, ROUNDED)
    kept = [(p, p.data) for p in model.parameters()]
    lowered = Lowered(model, [], torch.get_autocast_dtype(device))
    try:
        return labelled(model, processor, stream, ROUNDED)[0] - exact
    finally:
        lowered.undo()
        for parameter, data in kept:
            parameter.data = data


def principal(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(centre [D], variances [D], axes [D, D]) of vectors [N, D], in double."""
    center = vectors.double().mean(0)
    x = vectors.double() - center
    values, axes = torch.linalg.eigh(x.t() @ x / len(x))
    return center, values.clamp(min=values[-1] * 1e-12), axes


def left_out(vectors: Tensor, target: Tensor, noise: Tensor | None = None) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Of ridges from weak to strong: (the ridge as a share of the mean variance, the layer [D, C] of least squares on the principal axes,
    what it says of each row [N, C] when that row is left out). The hat matrix tells the last without refitting."""
    center, values, axes = principal(vectors)
    rotated, mean = (vectors.double() - center) @ axes, target.double().mean(0)
    y = target.double() - mean
    moments = rotated.t() @ y / len(y)
    for share in RIDGES:
        variances = values + share * values.mean() + _noise(noise, axes)
        layer = moments / variances[:, None]
        leverage = rotated.square() @ (1 / variances) / len(y) + 1 / len(y)  # 1 / N: the mean is fitted too
        residual = (y - rotated @ layer) / (1 - leverage.clamp(max=1 - 1e-9))[:, None]
        yield share, layer, y - residual + mean


def linear(
    vectors: Tensor,
    target: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor | None = None,
    strength: float = 0.3,
) -> tuple[Tensor, Tensor]:
    """(weight [C, D], bias [C]) of the layer whose logits on vectors [N, D] make loss(logits, target [N, C]) least.

    Solved (L-BFGS) on whitened vectors, and folded back. Features of a network differ in variance by orders of magnitude, and the small
    ones tell classes apart too: how far they are evened out is what leaves the least loss when each row is left out, and never so far
    that `noise` [M, D] would be heard. `strength`: the inverse of the ridge on the layer, as C in scikit-learn.
    """
    center, projection = whitening(vectors, target, loss, noise)
    x = ((vectors.double() - center) @ projection).float()
    weight, bias = (torch.zeros(target.shape[1], *rest, device=x.device, requires_grad=True) for rest in ((x.shape[1],), ()))
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        settle([weight, bias], lambda: loss(x @ weight.t() + bias, target), 1 / (2 * strength * len(x)))
    with torch.no_grad():
        folded = weight.double() @ projection.t()
        return folded.float(), (bias.double() - folded @ center).float()


@torch.no_grad()
def whitening(
    vectors: Tensor, target: Tensor, loss: Callable[[Tensor, Tensor], Tensor], noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(centre [D], projection [D, D]), in double: principal axes, each over the root of its variance and of the ridge that fits best."""
    center, values, axes = principal(vectors)
    ridge = best_ridge(vectors, target, loss, noise) * values.mean() + _noise(noise, axes)
    return center, axes / (values + ridge).sqrt()


@torch.no_grad()
def best_ridge(vectors: Tensor, target: Tensor, loss: Callable[[Tensor, Tensor], Tensor], noise: Tensor | None = None) -> float:
    """The ridge, as a share of the mean variance, whose least squares leaves the least loss(logits, target) of rows that are left out."""
    some = slice(0, None, -(-len(vectors) // CHOOSING))

    def left(said: Tensor) -> float:
        return min(float(loss((said.float() - 0.5) * slope, target[some])) for slope in SLOPES)

    return min((left(said), share) for share, _, said in left_out(vectors[some], target[some], noise))[1]


def _noise(noise: Tensor | None, axes: Tensor) -> Tensor | float:
    """Its variance along the axes [D]."""
    return 0.0 if noise is None else CERTAIN * (noise.double() @ axes).square().mean(0)

"""Word embeddings of the words at hand: a task learns from a few thousand of them, and a step need not pass over the others.

The gradient of all other rows is nought, and so are Adam's moments of them; what is left out is the weight decay of words that never
occur. MiniLM on two cores: half of the weights are word embeddings, of which wnut17 meets a third. A GPU passes over them in no time.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcli.core import Term
from sslcli.lowered import lookup

MOST = 0.8  # of a table's rows: if more of them are met, nothing is gained


class Met(nn.Module):
    """In the place of a table [V, D]: the rows that are met learn, the others are looked up as they are."""

    def __init__(self, table: nn.Embedding, ids: Tensor):
        super().__init__()
        self.weight = nn.Parameter(table.weight.detach()[ids])  # [M, D]
        self.ids, self.rest = ids, table.weight.detach()  # plain tensors: neither is saved, averaged or rounded
        self.place = torch.full((len(self.rest),), -1, device=ids.device)
        self.place[ids] = torch.arange(len(ids), device=ids.device)
        self.padding = None if table.padding_idx is None else int(self.place[table.padding_idx])

    def forward(self, ids: Tensor) -> Tensor:
        place = self.place[ids]
        rows = lookup(self.weight, place.clamp(min=0), self.padding)
        if bool((place >= 0).all()):
            return rows
        return torch.where(place[..., None] >= 0, rows, F.embedding(ids, self.rest).to(rows.dtype))  # held-out texts have other words


class Vocabulary:
    """The swap, its end, and its checkpoints, in which the table is whole: a run may go on where nothing is swapped."""

    def __init__(self, modules: nn.Module, name: str, table: nn.Embedding, ids: Tensor):
        self.modules, self.name, self.table, self.met = modules, name, table, Met(table, ids)
        modules.set_submodule(name, self.met)

    @property
    def spared(self) -> int:
        """Values that do not learn, and that a checkpoint holds all the same."""
        return self.table.weight.numel() - self.met.weight.numel()

    def whole(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Groups of tensors by parameter (`name|moment`, too), as if all rows had been there."""
        return self._changed(tensors, self.met.weight.shape, self._widened)

    def part(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """The way back."""
        return self._changed(tensors, self.table.weight.shape, lambda _, tensor: tensor[self.met.ids.to(tensor.device)])

    def _changed(self, tensors: Mapping[str, Mapping[str, Tensor]], shape: torch.Size, change: Any) -> dict[str, dict[str, Tensor]]:
        mine = f"{self.name}.weight"
        return {
            group: {k: change(k, t) if k.split("|")[0] == mine and t.shape == shape else t for k, t in named.items()}
            for group, named in tensors.items()
        }

    def _widened(self, key: str, tensor: Tensor) -> Tensor:
        whole = torch.zeros_like(self.met.rest, dtype=tensor.dtype) if "|" in key else self.met.rest.to(tensor.dtype).clone()
        return whole.index_copy_(0, self.met.ids, tensor.detach())

    @torch.no_grad()
    def end(self) -> None:
        """The table is back, with what was learnt."""
        self.table.weight.data = self.met.rest.index_copy_(0, self.met.ids, self.met.weight.detach().float())
        self.modules.set_submodule(self.name, self.table)


def met(modules: nn.Module, terms: Sequence[Term]) -> Vocabulary | None:
    """Of the network's word embeddings, those that the batches can hold, from now on; None where that is not known or gains nothing."""
    table = getattr(getattr(modules, "model", None), "embedding", None)
    known = [term.stream.places.words for term in terms if term.stream.change is None]
    if type(table) is not nn.Embedding or table.weight.is_cuda or len(known) < len(terms) or any(words is None for words in known):
        return None
    shared = sum(p is table.weight for m in modules.modules() for p in m._parameters.values()) > 1  # a language model's head reads it too
    odd = table.max_norm is not None or table.sparse or table.scale_grad_by_freq
    perturbed = any(getattr(term.adversary, "on", None) == "weights" for term in terms)  # by a share of the whole table's size
    if not table.weight.requires_grad or shared or odd or perturbed:
        return None
    seen = np.zeros(len(table.weight), bool)
    for part in chain.from_iterable(words() for words in known):
        seen[part] = True
        if seen.mean() > MOST:
            return None
    name = next(name for name, module in modules.named_modules() if module is table)
    return Vocabulary(modules, name, table, torch.from_numpy(seen.nonzero()[0]).to(table.weight.device))

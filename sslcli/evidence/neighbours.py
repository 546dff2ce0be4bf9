"""Nearest neighbours of vectors by cosine: exact, a piece of the queries at a time."""

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 1 << 25  # similarities held at once


def nearest(queries: Tensor, bank: Tensor, k: int, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(similarities, rows of the bank), each [N, k], nearest first. `own` [N]: the row that a query must not find, itself."""
    queries, bank = F.normalize(queries.float(), dim=-1), F.normalize(bank.float(), dim=-1)
    k = min(k, len(bank) - (own is not None))
    similarities = queries.new_empty(len(queries), k)
    rows = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    size = max(1, CHUNK // len(bank))
    for start in range(0, len(queries), size):
        part = slice(start, start + size)
        found = queries[part] @ bank.t()
        if own is not None:
            found.scatter_(1, own[part, None], -torch.inf)
        similarities[part], rows[part] = found.topk(k)
    return similarities, rows


def votes(similarities: Tensor, labels: Tensor, classes: int, temperature: float) -> Tensor:
    """What the neighbours say, [N, C]: each votes for its label (`labels` [N, k]) with exp(similarity / temperature) (Wu et al. 2018)."""
    weights = (similarities / temperature).softmax(-1)
    return torch.zeros(len(labels), classes, device=labels.device).scatter_add_(1, labels, weights)


def accuracy(
    bank: Tensor, label: Tensor, queries: Tensor | None = None, gold: Tensor | None = None, k: int = 20, temperature: float = 0.07
) -> float:
    """Share of `queries` that their k neighbours in the bank name rightly; without queries, of the bank itself, leaving one out."""
    own = torch.arange(len(bank), device=bank.device) if queries is None else None
    similarities, rows = nearest(bank if queries is None else queries, bank, k, own)
    said = votes(similarities, label[rows], int(label.max()) + 1, temperature).argmax(-1)
    return float((said == (label if gold is None else gold)).float().mean())

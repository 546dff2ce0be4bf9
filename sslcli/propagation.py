"""Labels that flow from the few rows that have one to their neighbours, and on to theirs (Zhou et al. 2004)."""

from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from sslcli.evidence import neighbours
from sslcli.evidence.suspicious import directions

MOST = 40_000  # rows without a label in the graph; what more there are take the mean of their neighbours in it
PASSES, SETTLED = 200, 1e-4  # of the flow at most, and the change of all shares at which it has settled
SHARPNESS = 3  # similarities to this power: near neighbours count more (gamma of Iscen et al. 2019)


def propagated(known: np.ndarray, given: np.ndarray, bank: np.ndarray, k: int, reach: float) -> np.ndarray:
    """Shares of the labels [N, C] of rows `bank` [N, D], by rows `known` [M, D] whose labels are `given` [M, C], one-hot."""
    ours, theirs = torch.from_numpy(directions(np.concatenate([known, bank]))).split([len(known), len(bank)])
    some = np.arange(0, len(bank), max(1, -(-len(bank) // MOST)))
    vectors = torch.cat([ours, theirs[some]])
    found = flow(graph(vectors, k), given, reach)
    shares = np.empty((len(bank), given.shape[1]))
    shares[some] = found[len(known) :]
    rest = np.setdiff1d(np.arange(len(bank)), some)
    if len(rest):
        near, rows = neighbours.nearest(theirs[rest], vectors, k)
        shares[rest] = np.einsum("nk,nkc->nc", _strength(near), found[rows.numpy()])
    return shares / np.maximum(shares.sum(1, keepdims=True), 1e-300)


def graph(vectors: Tensor, k: int) -> Any:
    """Sparse [N, N]: similarities to the k nearest of each of vectors [N, D], made symmetric, each over the root of both rows' sums."""
    near, rows = neighbours.nearest(vectors, vectors, k, own=torch.arange(len(vectors)))
    places = np.repeat(np.arange(len(rows)), rows.shape[1]), rows.numpy().ravel()
    one_way = sparse.csr_array((_strength(near).ravel(), places), shape=(len(rows), len(rows)))
    both = one_way.maximum(one_way.T)
    scale = sparse.diags_array(np.maximum(both.sum(1), 1e-12) ** -0.5)
    return (scale @ both @ scale).tocsr()


def flow(graph: Any, given: np.ndarray, reach: float) -> np.ndarray:
    """Shares of labels [N, C] of all rows of a graph, of which the first have the labels `given` [M, C], one-hot. Every label has in all
    the share that it has among those (class mass normalisation, Zhu et al. 2003)."""
    start = np.zeros((graph.shape[0], given.shape[1]))
    start[: len(given)] = given
    found = start
    for _ in range(PASSES):
        before, found = found, reach * (graph @ found) + (1 - reach) * start
        if np.abs(found - before).sum() <= SETTLED * np.abs(found).sum():
            break
    found = found * (given.sum(0) / np.maximum(found.sum(0), 1e-300))
    return found / np.maximum(found.sum(1, keepdims=True), 1e-300)


def certainty(shares: np.ndarray) -> np.ndarray:
    """[N] of shares [N, C]: 1 where one label has all, 0 where all have as much or none was reached."""
    logs = np.log(np.maximum(shares, 1e-300))
    return np.where(shares.sum(1) > 0, 1 + (shares * logs).sum(1) / np.log(max(2, shares.shape[1])), 0.0).clip(0, 1)


def _strength(similarity: Tensor) -> np.ndarray:
    return similarity.clamp(min=0).double().numpy() ** SHARPNESS

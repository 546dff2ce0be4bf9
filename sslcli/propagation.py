"""Labels that flow from the few rows that have one to their neighbours, and on to theirs (Zhou et al. 2004)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from sslcli.evidence import neighbours
from sslcli.evidence.suspicious import STRENGTH, directions

MOST = 40_000  # rows without a label in the graph; what more there are take the mean of their neighbours in it
PASSES, SETTLED = 1000, 1e-9  # steps of the flow at most, and what may be left of its equations: rows far from all labels get little
PIECE = 10_000  # rows outside the graph at a time
ASKED = 2000  # labelled rows up to which it is asked whether likeness tells labels; with more nobody needs the others
FOLDS = 5  # of the labelled rows, each hidden once
SHARPNESS = 3  # similarities to this power: near neighbours count more (gamma of Iscen et al. 2019)


@dataclass(frozen=True)
class Propagated:
    """`shares` of the labels [N, C] of rows without one; of `asked` rows that have one, how many the flow names rightly without their own
    label, how many a linear layer on the same vectors, and of how many one of both was right. None are asked where a label has one row."""

    shares: np.ndarray
    flow: int = 0
    linear: int = 0
    either: int = 0
    asked: int = 0

    def doubt(self) -> str | None:
        """What is alike need not be of one label; told where the layer is ahead by two standard errors (McNemar's)."""
        if self.linear - self.flow < 2 * max(1, self.either) ** 0.5:
            return None
        both = f"rightly name {self.flow} of {self.asked} rows whose own label is hidden, a linear layer on the same vectors {self.linear}"
        return f"labels that flow {both}: what is alike here is not of one label, and wrong labels will be learnt; leave the objective out"


def propagated(known: np.ndarray, given: np.ndarray, bank: np.ndarray, k: int, reach: float) -> Propagated:
    """To rows `bank` [N, D], from rows `known` [M, D] whose labels are `given` [M, C], one-hot."""
    ours, theirs = torch.from_numpy(directions(np.concatenate([known, bank]))).split([len(known), len(bank)])
    some = np.arange(0, len(bank), max(1, -(-len(bank) // MOST)))
    vectors = torch.cat([ours, theirs[some]])
    edges = graph(vectors, k)
    found = flow(edges, given, reach)
    shares = np.empty((len(bank), given.shape[1]))
    shares[some] = found[len(known) :]
    if len(rest := np.setdiff1d(np.arange(len(bank)), some)):
        for part in np.array_split(rest, -(-len(rest) // PIECE)):
            near, rows = neighbours.nearest(theirs[part], vectors, k)
            shares[part] = np.einsum("nk,nkc->nc", _strength(near), found[rows.numpy()])
    return Propagated(shares / np.maximum(shares.sum(1, keepdims=True), 1e-300), *_hidden(ours.numpy(), given, edges, reach))


def _hidden(vectors: np.ndarray, given: np.ndarray, edges: Any, reach: float) -> tuple[int, int, int, int]:
    """(named rightly by the flow, by a linear layer, by one of them alone, asked): labels of a fold are hidden from both."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    label, most = given.argmax(1), min(FOLDS, int(given.sum(0)[given.any(0)].min()))
    if most < 2 or given.any(0).sum() < 2 or len(given) > ASKED:
        return 0, 0, 0, 0
    right = np.zeros((2, len(label)), bool)
    for fitted, hidden in StratifiedKFold(most, shuffle=True, random_state=0).split(vectors, label):
        seen = given.copy()
        seen[hidden] = 0
        layer = LogisticRegression(C=STRENGTH, max_iter=300).fit(vectors[fitted], label[fitted])
        right[0, hidden] = flow(edges, seen, reach)[hidden].argmax(1) == label[hidden]
        right[1, hidden] = layer.predict(vectors[hidden]) == label[hidden]
    return int(right[0].sum()), int(right[1].sum()), int((right[0] != right[1]).sum()), len(label)


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
    found, left = np.zeros_like(start), start.copy()  # of (I - reach S) found = start, by conjugate gradients, label by label
    along, size = left, np.square(left).sum(0)
    goal = SETTLED**2 * size
    for _ in range(PASSES):
        if (size <= goal).all():
            break
        turned = along - reach * (graph @ along)
        step = size / np.maximum((along * turned).sum(0), 1e-300)
        found, left = found + step * along, left - step * turned
        before, size = size, np.square(left).sum(0)
        along = left + size / np.maximum(before, 1e-300) * along
    found = found.clip(0)
    found = found * (given.sum(0) / np.maximum(found.sum(0), 1e-300))
    return found / np.maximum(found.sum(1, keepdims=True), 1e-300)


def certainty(shares: np.ndarray) -> np.ndarray:
    """[N] of shares [N, C]: 1 where one label has all, 0 where all have as much or none was reached."""
    logs = np.log(np.maximum(shares, 1e-300))
    return np.where(shares.sum(1) > 0, 1 + (shares * logs).sum(1) / np.log(max(2, shares.shape[1])), 0.0).clip(0, 1)


def _strength(similarity: Tensor) -> np.ndarray:
    return similarity.clamp(min=0).double().numpy() ** SHARPNESS

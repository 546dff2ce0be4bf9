"""Label propagation: labels flow from the few rows that have one to their neighbours, and on to theirs, before the network learns them all
(Iscen et al. 2019; the flow is that of Zhou et al. 2004)."""

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from scipy import sparse
from torch import Tensor

from sslcli.augment import Augment
from sslcli.data.store import Store
from sslcli.evidence import features, neighbours
from sslcli.evidence.suspicious import directions
from sslcli.pseudo import Pseudo, Said
from sslcli.schema import Part

MOST = 40_000  # unlabelled examples in the graph; what more there are take the mean of their neighbours in it
PASSES, SETTLED = 200, 1e-4  # of the flow at most, and the change of a label's shares at which it has settled
SHARPNESS = 3  # similarities to this power: near neighbours count more (gamma in the paper)


class LabelPropagation(Pseudo):
    """`neighbours` of each row, by the cosine of vectors as the run begins, seen from their mean; `reach`: what share of its label a row
    takes from them, pass by pass (alpha in the paper; near 1, labels flow far). A row counts by how certain its label is,
    1 - entropy / log C, over the mean of all."""

    name = "label_propagation"
    who = "the graph"

    def __init__(
        self,
        model: Any,
        processor: Any,
        task: Any,
        store: Any,
        *,
        strong: Part[Augment],
        neighbours: Annotated[int, Field(ge=1, le=1000)],
        reach: Annotated[float, Field(gt=0, lt=1)],
        threshold: Annotated[float, Field(ge=0, lt=1)],
        balance: bool,
    ):
        super().__init__(model, processor, task, store, strong)
        self.neighbours, self.reach, self.threshold, self.balance = neighbours, reach, threshold, balance

    def labels(self, model: Any, known: Store, store: Store, ask: Any) -> Iterator[Said]:
        shares = self.propagate(model, known, store)
        sure = certainty(shares)
        return ((self.task.labels[row.argmax()] if share else None, float(share)) for row, share in zip(shares, sure, strict=True))

    def propagate(self, model: Any, known: Store, store: Store) -> np.ndarray:
        """Shares of the labels [examples, C] of the unlabelled `store`, by the labelled one and the network as it is."""
        task, was = self.task, model.training
        model.eval()
        given, bank = (features.of_examples(task, model, part) for part in (known, store))
        model.train(was)
        label = np.array([task.labels.index(row["gold"]) for row in features.golds(known)])
        given, bank = torch.from_numpy(directions(np.concatenate([given, bank]))).split([len(given), len(bank)])
        some = np.arange(0, len(bank), -(-len(bank) // MOST))
        vectors = torch.cat([given, bank[some]])
        found = flow(graph(vectors, self.neighbours), np.eye(len(task.labels))[label], self.reach)
        shares = np.empty((len(bank), found.shape[1]))
        shares[some] = found[len(given) :]
        rest = np.setdiff1d(np.arange(len(bank)), some)
        if len(rest):
            near, rows = neighbours.nearest(bank[rest], vectors, self.neighbours)
            shares[rest] = np.einsum("nk,nkc->nc", _strength(near), found[rows.numpy()])
        return shares / np.maximum(shares.sum(1, keepdims=True), 1e-300)

    def counting(self, confidence: np.ndarray) -> np.ndarray:
        return (confidence / max(confidence.mean(), 1e-12)).astype(np.float32)


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

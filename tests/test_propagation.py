"""Labels that flow to neighbours: by the formula, along what hangs together, and doubted where likeness does not tell them."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sslcli import propagation
from sslcli.evidence.suspicious import directions
from sslcli.propagation import certainty, flow, graph


@pytest.mark.parametrize("reach", [0.5, 0.99, 0.999])
def test_labels_flow_by_the_formula(reach) -> None:
    """(I - a S)^-1 Y, then every label's mass as it is among the labelled ones."""
    vectors = F.normalize(torch.randn(60, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    near = vectors @ vectors.t() - 2 * torch.eye(60)
    edges = torch.zeros(60, 60).scatter_(1, near.topk(7).indices, near.topk(7).values.clamp(min=0) ** 3).double().numpy()
    edges = np.maximum(edges, edges.T)
    scale = edges.sum(1) ** -0.5
    wanted = scale[:, None] * edges * scale
    found = graph(vectors, 7)
    np.testing.assert_allclose(found.toarray(), wanted, atol=1e-6)
    given = np.eye(3)[[0, 1, 2, 2]]
    start = np.zeros((60, 3))
    start[:4] = given
    closed = np.linalg.solve(np.eye(60) - reach * wanted, start)
    closed *= given.sum(0) / closed.sum(0)
    np.testing.assert_allclose(flow(found, given, reach), closed / closed.sum(1, keepdims=True), atol=2e-3)


def test_labels_flow_along_what_hangs_together() -> None:
    """Two arcs on a sphere, a label at one end of each: the nearest label is the wrong one for the far ends."""
    turn = np.linspace(0, 2.6, 150)
    arc = np.stack([np.cos(turn), np.sin(turn), np.full(150, 0.3)], 1)
    vectors = F.normalize(torch.from_numpy(np.concatenate([arc, -arc * [1, 1, -1]])).float(), dim=1)
    order = np.array([0, 150, *range(1, 150), *range(151, 300)])
    gold, vectors = order // 150, vectors[order]
    assert ((vectors @ vectors[:2].t()).argmax(1).numpy() == gold).mean() < 0.75
    shares = flow(graph(vectors, 5), np.eye(2), 0.99)
    assert (shares.argmax(1) == gold).all() and (certainty(shares) > 0).all()
    assert certainty(np.array([[1.0, 0], [0.5, 0.5], [0, 0]])).tolist() == [1, 0, 0]


def test_what_is_not_in_the_graph_takes_from_its_neighbours(monkeypatch) -> None:
    from sklearn.datasets import load_digits

    pictures = load_digits()
    vectors, gold = pictures.data.astype(np.float32), pictures.target
    known = np.concatenate([np.flatnonzero(gold == y)[:5] for y in range(10)])
    found = propagation.propagated(vectors[known], np.eye(10)[gold[known]], vectors, 10, 0.99)
    whole = found.shares
    assert found.asked == 50 and found.flow > 35 and found.doubt() is None
    monkeypatch.setattr(propagation, "MOST", 600)
    some = propagation.propagated(vectors[known], np.eye(10)[gold[known]], vectors, 10, 0.99).shares
    np.testing.assert_allclose(some.sum(1), 1)
    nearest = gold[known][((directions(vectors) @ directions(vectors)[known].T).argmax(1))]
    assert min((shares.argmax(1) == gold).mean() for shares in (whole, some)) > (nearest == gold).mean() + 0.05


def test_labels_that_do_not_follow_likeness_are_doubted() -> None:
    """A label that one direction of many tells: a layer finds it, neighbours are like in all the others."""
    random = np.random.default_rng(0)
    label = random.integers(0, 2, 660)
    vectors = np.concatenate([random.normal(size=(660, 64)), (label[:, None] - 0.5) * 3.5], 1).astype(np.float32)
    found = propagation.propagated(vectors[:60], np.eye(2)[label[:60]], vectors[60:], 15, 0.99)
    assert "rows whose own label is hidden" in (found.doubt() or "") and found.linear > 50 and found.asked == 60
    alone = propagation.propagated(vectors[:2], np.eye(2), vectors[60:], 15, 0.99)
    assert alone.asked == 0 and alone.doubt() is None, "one row of a label cannot be hidden"

"""What each objective of images computes: against its paper's formulas, its authors' code, and transformers."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcli import losses
from sslcli.core import Batch
from sslcli.heads import BatchNorm, projector, vectors
from sslcli.objectives.barlow_twins import BarlowTwins
from sslcli.objectives.byol import BYOL
from sslcli.objectives.dino import DINO
from sslcli.objectives.moco import MoCo
from sslcli.objectives.simclr import SimCLR
from sslcli.objectives.simsiam import SimSiam
from sslcli.objectives.swav import SwAV
from sslcli.objectives.vicreg import VICReg
from tests.tiny_networks import batch_of, digits, made

# ---- contrastive


def pairs_of(objective: Any, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    first, second = objective.processor.views(batch)[:2]
    return vectors(model, first), vectors(model, second)


def test_simclr_is_nt_xent_of_projections_and_a_chunk_changes_nothing() -> None:
    """Loss and every gradient, whole and in chunks of an odd size; no pass sees more than a chunk."""
    found = {}
    for chunk in (None, 24):
        objective, model = made(SimCLR, chunk=chunk)
        batch = batch_of(objective, digits(), 32)
        output = objective(model, batch)
        output.loss.backward()
        found[chunk] = (output.loss, {n: p.grad for n, p in [*model.named_parameters(), *objective.named_parameters()]})
        assert model.passes == ([64] if chunk is None else [24, 24, 16, 16, 24, 24])
    (whole, gradients), (pieces, others) = found.values()
    assert torch.allclose(whole, pieces, atol=1e-6)
    largest = max(g.norm() for g in gradients.values())  # BatchNorm makes some of them nought, but for rounding
    for name, gradient in gradients.items():
        assert (gradient - others[name]).norm() <= 1e-5 * largest, name
    first, second = F.normalize(objective.projector(torch.cat(pairs_of(objective, model, batch))), dim=-1).chunk(2)
    expected, _ = losses.nt_xent(torch.stack([first, second]), torch.stack([first, second]), objective.temperature)
    assert torch.allclose(whole, expected, atol=1e-5)


@pytest.mark.parametrize("queue", [None, 40])
def test_moco_is_its_pseudocode(queue) -> None:
    """Algorithm 1 of MoCo v3: ctr(q1, k2) + ctr(q2, k1), keys from the momentum encoder, 2 * tau outside; a queue appends keys."""
    objective, model = made(MoCo, queue=queue, dim=16)
    held = objective.queue.values.clone() if queue else torch.zeros(0, 16)
    batch = batch_of(objective, digits(), 32)
    output = objective(model, batch)
    features = pairs_of(objective, model, batch)
    q1, q2 = (F.normalize(objective.predictor(objective.projector(x)), dim=-1) for x in features)
    k1, k2 = (F.normalize(objective.projector(x), dim=-1) for x in features)  # nothing has moved yet

    def ctr(q: Tensor, k: Tensor) -> Tensor:
        logits = torch.cat([q @ k.t(), q @ held.t()], 1) / 0.2
        return F.cross_entropy(logits, torch.arange(len(q))) * 2 * 0.2

    assert torch.allclose(output.loss, ctr(q1, k2) + ctr(q2, k1), atol=1e-5)
    objective.after_step(model, 0.5)
    if queue:
        new = torch.cat([k1, k2]).detach()
        kept = {tuple(np.round(x, 4)) for x in objective.queue.values.tolist()}
        assert sum(tuple(np.round(x, 4)) in kept for x in new.tolist()) == 40, "all places hold keys of this step"


# ---- without negatives


def test_byol_is_its_formula_and_its_twin_follows_slowly() -> None:
    objective, model = made(BYOL)
    batch = batch_of(objective, digits())
    output = objective(model, batch)
    z = [objective.projector(x) for x in pairs_of(objective, model, batch)]
    p = [F.normalize(objective.predictor(x), dim=-1) for x in z]
    t = [F.normalize(x, dim=-1).detach() for x in z]  # the twin is still the network itself
    expected = (p[0] - t[1]).square().sum(-1).mean() + (p[1] - t[0]).square().sum(-1).mean()
    assert torch.allclose(output.loss, expected, atol=1e-5)
    inputs = list(model.parameters())
    for ours, theirs in zip(torch.autograd.grad(output.loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5), "no gradient comes through the twin"
    before = objective.slow_model.twin.second.weight.detach().clone()
    with torch.no_grad():
        model.second.weight += 1.0
    objective.after_step(model, 0.5)
    moved = 1 - (1 - (1 - objective.momentum) * (np.cos(np.pi * 0.5) + 1) / 2)
    assert torch.allclose(objective.slow_model.twin.second.weight - before, torch.full_like(before, float(moved)), atol=1e-6)
    objective.after_step(model, 1.0)
    assert torch.allclose(objective.slow_model.twin.second.weight - before, torch.full_like(before, float(moved)), atol=1e-6)


def test_simsiam_is_its_pseudocode() -> None:
    """Algorithm 1: D(p1, z2) / 2 + D(p2, z1) / 2 with z detached; without the stopped gradient it would be another."""
    objective, model = made(SimSiam)
    batch = batch_of(objective, digits())
    z1, z2 = (objective.projector(x) for x in pairs_of(objective, model, batch))
    p1, p2 = objective.predictor(z1), objective.predictor(z2)

    def distance(p: Tensor, z: Tensor) -> Tensor:
        return -(F.normalize(p, dim=1) * F.normalize(z, dim=1)).sum(1).mean()

    stopped = (distance(p1, z2.detach()) + distance(p2, z1.detach())) / 2
    flowing = (distance(p1, z2) + distance(p2, z1)) / 2
    weight = model.second.weight
    ours, theirs, wrong = (torch.autograd.grad(x, weight, retain_graph=True)[0] for x in (objective(model, batch).loss, stopped, flowing))
    assert torch.allclose(ours, theirs, atol=1e-6) and not torch.allclose(ours, wrong, atol=1e-6)


def test_vicreg_and_barlow_twins_weigh_their_terms() -> None:
    objective, model = made(VICReg, invariance=2.0, variance=3.0, covariance=0.5)
    batch = batch_of(objective, digits())
    z = [objective.projector(x) for x in pairs_of(objective, model, batch)]
    invariance, variance, covariance = losses.vicreg_terms(*z)
    assert torch.allclose(objective(model, batch).loss, 2 * invariance + 3 * variance + 0.5 * covariance, rtol=1e-5)
    objective, model = made(BarlowTwins, redundancy=0.1)
    z = [objective.projector(x) for x in pairs_of(objective, model, batch)]
    on, off = losses.barlow_twins(*z)
    assert torch.allclose(objective(model, batch).loss, on + 0.1 * off, rtol=1e-5)


# ---- multi-crop


def test_dino_is_its_pseudocode() -> None:
    """Teacher: whole views, centred, at the temperature of its warm-up. Student: all views. Centre: mean of what the teacher said."""
    objective, model = made(DINO, small=3, prototypes=32, batch_norm=False)
    objective.centre.copy_(torch.randn(32) * 0.1)
    objective.progress = 0.15  # half of the warm-up
    batch, centre = batch_of(objective, digits(), 16), objective.centre.clone()
    views = objective.processor.views(batch)
    assert [v.shape[-1] for v in views] == [8, 8, 4, 4, 4]
    said = [objective.head(vectors(model, v)) for v in views]
    expected = 0.0
    for i in range(2):
        t = F.softmax((said[i] - centre) / (0.04 + 0.5 * (0.07 - 0.04)), -1)
        expected += sum(-(t * F.log_softmax(said[v] / 0.1, -1)).sum(-1).mean().item() for v in range(5) if v != i) / 8
    model.passes.clear()
    output = objective(model, batch)
    assert float(output.loss.detach()) == pytest.approx(expected, abs=1e-5)
    assert model.passes == [32, 48] and objective.slow_model.twin.passes[-1:] == [32], "a pass for each size; the teacher sees no crops"
    objective.after_step(model, 0.2)
    mean = torch.cat(said[:2]).mean(0)
    assert torch.allclose(objective.centre, 0.9 * centre + 0.1 * mean, atol=1e-5)


@pytest.mark.parametrize("cls", [DINO, SwAV])
def test_prototypes_wait(cls) -> None:
    objective, model = made(cls, small=2, freeze=0.1)
    batch = batch_of(objective, digits())
    prototypes = objective.head.prototypes if cls is DINO else objective.prototypes
    objective(model, batch).loss.backward()
    assert prototypes.weight.grad is None
    objective.after_step(model, 0.1)
    objective(model, batch).loss.backward()
    assert prototypes.weight.grad is not None


@pytest.mark.parametrize("queue", [None, 48])
def test_swav_is_its_code(queue) -> None:
    objective, model = made(SwAV, small=2, prototypes=12, queue=queue, queue_from=0.0, freeze=0.0)
    batch = batch_of(objective, digits(), 32)
    held = [q.values.clone() for q in objective.queues] if queue else []
    output = objective(model, batch)
    features = torch.cat(
        [vectors(model, torch.cat(g)) for g in (objective.processor.views(batch)[:2], objective.processor.views(batch)[2:])]
    )
    z = F.normalize(objective.projector(features), dim=-1)
    weight = F.normalize(objective.prototypes.weight, dim=-1)
    scores, expected = (z @ weight.t()).split(32), 0.0
    for i in range(2):
        out = torch.cat([held[i] @ weight.t(), scores[i]]) if queue else scores[i]
        q = losses.sinkhorn(out, 0.05, 3)[-32:]
        expected -= sum(float((q * F.log_softmax(scores[v] / 0.1, 1)).sum(1).mean()) for v in range(4) if v != i) / 3 / 2
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-5)
    objective.after_step(model, 0.1)
    if queue:
        for i, q in enumerate(objective.queues):
            assert torch.allclose(q.values.sort(0)[0], torch.cat([held[i][32:], z[32 * i : 32 * i + 32].detach()]).sort(0)[0], atol=1e-6)


# ---- heads


def test_projectors_have_the_shape_that_papers_draw() -> None:
    names = [type(m).__name__ for m in projector(4, 8, 8, 3, normalised=True)]
    assert names == ["Linear", "BatchNorm", "ReLU", "Linear", "BatchNorm", "ReLU", "Linear", "BatchNorm"]
    last = projector(4, 8, 3, bias=False)[-1]
    assert isinstance(last, nn.Linear) and last.bias is None


def test_batch_norm_is_torchs() -> None:
    ours, theirs = BatchNorm(5), nn.BatchNorm1d(5)
    for _ in range(2):
        x = torch.randn(16, 5) * 3 + 1
        assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    assert torch.allclose(ours.running_var, theirs.running_var)
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-6)
    low = ours.train().bfloat16()
    low.running_mean, low.running_var = low.running_mean.float(), low.running_var.float()
    assert low(x.bfloat16()).dtype == torch.bfloat16 and low.running_var.dtype == torch.float32

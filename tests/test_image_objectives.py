"""What each objective of images computes, against its paper's formulas and transformers; what every one of them promises."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from sslcli import losses
from sslcli.core import Backbone, Batch, Objective
from sslcli.data import chance
from sslcli.data.pixels import Pixels
from sslcli.data.store import Store, Writer, cache
from sslcli.data.stream import Stream
from sslcli.heads import BatchNorm, Layer, projector, sincos_positions, unpatched, vectors
from sslcli.lowered import Lowered
from sslcli.objectives.autoencoder import Autoencoder
from sslcli.objectives.barlow_twins import BarlowTwins
from sslcli.objectives.byol import BYOL
from sslcli.objectives.dino import DINO
from sslcli.objectives.mae import MAE
from sslcli.objectives.moco import MoCo
from sslcli.objectives.simclr import SimCLR
from sslcli.objectives.simmim import SimMIM
from sslcli.objectives.simsiam import SimSiam
from sslcli.objectives.swav import SwAV
from sslcli.objectives.vicreg import VICReg
from sslcli.teacher import Teacher
from tests.conftest import CONFIGS, parts

SIZE = 8


class Shaken:
    """Two views of other brightness, contrast and place, and `small` crops of half the side, all from `draws`."""

    def __init__(self, small: int = 0):
        self.count, self.small, self.draws = 2, small, 4 * (2 + small)

    def views(self, pixels: Tensor, draws: Tensor, mirror: bool) -> list[Tensor]:
        found, pixels = [], pixels.float() / 255
        for i, d in enumerate(draws.split(4, 1)):
            view = pixels * (0.9 + 0.2 * d[:, 0]).view(-1, 1, 1, 1) + 0.1 * (d[:, 1] - 0.5).view(-1, 1, 1, 1)
            view = torch.stack([v.roll((int(2 * x), int(2 * y)), (1, 2)) for v, (x, y) in zip(view, d[:, 2:].tolist(), strict=True)])
            found.append(view if i < 2 else view[:, :, 2:6, 2:6])
        return found


class Conv(Backbone):
    """Two convolutions without BatchNorm: no row sees another."""

    def __init__(self, processor: Pixels, dim: int = 24):
        super().__init__()
        self.dim, self.family = dim, "conv"
        self.embedding = nn.Conv2d(processor.channels, 16, 3, stride=2, padding=1)
        self.second = nn.Conv2d(16, dim, 3, padding=1)
        self.passes: list[int] = []

    def grid(self, size: int) -> int:
        return size // 2

    def encode(self, batch: Batch) -> Tensor:
        self.passes.append(len(batch["pixels"]))
        return self.second(F.gelu(self.embedding(batch["pixels"].to(self.second.weight.dtype)))).flatten(2).transpose(1, 2)

    def pool(self, hidden: Tensor, batch: Batch) -> Tensor:
        return hidden.mean(1)


class TinyVit(Backbone):
    def __init__(self, processor: Pixels, dim: int = 24, patch: int = 2, layers: int = 2):
        super().__init__()
        self.dim, self.patch, self.family = dim, patch, "vit"
        self.embedding = nn.Linear(processor.channels * patch**2, dim)
        self.first = nn.Parameter(torch.randn(dim) * 0.02)
        self.layers, self.norm = nn.ModuleList(Layer(dim, 2, 2 * dim) for _ in range(layers)), nn.LayerNorm(dim, eps=1e-6)
        self.register_buffer("positions", sincos_positions(self.grid(processor.size), dim))

    def grid(self, size: int) -> int:
        return size // self.patch

    def patches(self, pixels: Tensor) -> Tensor:
        cut = pixels.unflatten(2, (-1, self.patch)).unflatten(4, (-1, self.patch))
        return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def encode(self, batch: Batch) -> Tensor:
        x = self.embedding(self.patches(batch["pixels"]).to(self.first.dtype))
        if "masked" in batch:
            x = torch.where(batch["masked"][..., None], batch["mask_token"].to(x.dtype), x)
        side = int(x.shape[1] ** 0.5)
        x = x + sincos_positions(side, self.dim).to(x.dtype)
        if "visible" in batch:
            x = x.gather(1, batch["visible"][..., None].expand(-1, -1, self.dim))
        x = torch.cat([self.first.expand(len(x), 1, -1), x], 1)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def pool(self, hidden: Tensor, batch: Batch) -> Tensor:
        return hidden[:, 1:].mean(1)


def processor(small: int = 0, augmented: bool = True) -> Pixels:
    return Pixels(SIZE, 1, [0.3], [0.37], True, Shaken(small) if augmented else None)


@pytest.fixture(scope="session")
def digits() -> Store:
    from sklearn.datasets import load_digits

    images = (load_digits().images[:256] / 16 * 255).round().astype(np.uint8)
    folder = cache() / "stores" / "digits-of-a-test"
    for path, fields in (
        (folder, {"pixels": images}),
        (folder.with_name("digits-split"), {"place": np.arange(256), "owner": np.arange(256)}),
    ):
        path.mkdir(parents=True, exist_ok=True)
        writer = Writer(path, {name: values.dtype for name, values in fields.items()}, set())
        writer.meta = {"pixels": folder.name}
        writer.append(256, {}, **fields)
        writer.finish()
    return Store(path)


def batch_of(objective: Objective, store: Store, count: int = 64, epoch: int = 0) -> Batch:
    rows = np.arange(count)
    return objective.read(store, rows, chance.keys(0, epoch, rows))


def made(cls: type, small: int = 0, vit: bool = False, **changed: Any) -> tuple[Any, Any]:
    """An objective as its YAML has it, but for `changed`, on a tiny network."""
    torch.manual_seed(0)
    (path,) = [p for p in (CONFIGS / "objective").glob("*.yaml") if cls.__module__.endswith(f".{p.stem}")]
    keys = {k: v for k, v in yaml.safe_load(path.read_text()).items() if k not in ("defaults", "kind", "modality")}
    words = processor(small)
    model = TinyVit(words) if vit else Conv(words)
    return cls(model, words, **{**keys, **changed}), model


def unnormalised(module: nn.Module) -> nn.Module:
    """Without BatchNorm, so that rows and ranks are independent."""
    for name, child in module.named_children():
        setattr(module, name, nn.Identity() if isinstance(child, BatchNorm) else unnormalised(child))
    return module


# ---- what all promise


NAMES = [p.id for p in parts("objective", Objective, "image")]
HIDING = ("mae", "simmim")


@pytest.mark.parametrize("part", parts("objective", Objective, "image"))
class TestEveryImageObjective:
    @pytest.fixture
    def made(self, part, digits) -> tuple[Any, Any, Store]:
        torch.manual_seed(0)
        name = part.cls.__module__.rsplit(".", 1)[1]
        words = processor(2 if name in ("dino", "swav") else 0)
        model = TinyVit(words) if name in HIDING else Conv(words)
        return part.build(model, words).train(), model, digits

    def test_its_loss_is_finite_and_reaches_the_backbone(self, made) -> None:
        objective, model, store = made
        output = objective(model, batch_of(objective, store))
        assert output.loss.ndim == 0 and torch.isfinite(output.loss)
        assert all(v.ndim == 0 and not v.requires_grad and torch.isfinite(v) for v in output.logs.values()), output.logs
        output.loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())

    def test_it_falls(self, made) -> None:
        """As the loop calls it: teachers move after each step."""
        objective, model, store = made
        trainable = [*model.parameters(), *(p for p in objective.parameters() if p.requires_grad)]
        engine = torch.optim.AdamW(trainable, lr=3e-3)
        values, batch = [], batch_of(objective, store, 32)
        for step in range(30):
            output = objective(model, batch)
            engine.zero_grad()
            output.loss.backward()
            engine.step()
            objective.after_step(model, (step + 1) / 30)
            values.append(float(output.loss.detach()))
        first, last = sum(values[:3]) / 3, sum(values[-3:]) / 3
        assert last < first - 0.02 * abs(first), values

    def test_its_batch_says_its_weight_and_depends_on_keys_alone(self, made) -> None:
        objective, _, store = made
        first, second = batch_of(objective, store, 8), batch_of(objective, store, 8)
        assert first["weight"].ndim == 0 and float(first["weight"]) > 0
        assert all(torch.equal(first[k], second[k]) for k in first)
        rows = np.array([5])
        alone = objective.read(store, rows, chance.keys(0, 0, rows))
        assert all(torch.equal(alone[k][0], first[k][5]) for k in alone if k != "weight")

    def test_its_state_round_trips(self, made, part) -> None:
        """Two steps, then the same loss from a fresh objective that was given the state."""
        objective, model, store = made
        other = part.build(copy.deepcopy(model), objective.processor).train()
        for step in range(2):
            objective(model, batch_of(objective, store, epoch=step)).loss.backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
                    p.grad = None
            objective.after_step(model, (step + 1) / 10)
        twin = copy.deepcopy(model)
        other.load_state_dict(objective.state_dict())
        batch = batch_of(objective, store, epoch=9)
        results = []
        for network, goal in ((model, objective), (twin, other)):
            torch.manual_seed(1)
            results.append(goal(network, batch).loss)
        assert torch.equal(*results)
        assert all(torch.equal(v, objective.state_dict()[k]) for k, v in other.state_dict().items())

    def test_looking_changes_nothing(self, made) -> None:
        """Held-out losses are the same twice, and the state is as before."""
        objective, model, store = made
        objective(model, batch_of(objective, store)).loss.backward()
        objective.after_step(model, 0.1)
        objective.eval(), model.eval()
        state = {k: v.clone() for k, v in objective.state_dict().items()}
        with torch.no_grad():
            once, twice = (objective(model, batch_of(objective, store, epoch=3)) for _ in range(2))
        assert torch.equal(once.loss, twice.loss)
        assert all(torch.equal(state[k], v) for k, v in objective.state_dict().items())
        means = {"loss": float(once.loss), **{k: float(v) for k, v in once.logs.items()}}
        assert objective.summary(means)["loss"] == float(once.loss)

    def test_it_runs_in_bf16(self, made) -> None:
        """As the optimizer lowers it; near the loss in fp32."""
        objective, model, store = made
        exact = objective(model, batch_of(objective, store)).loss.detach()
        both = nn.ModuleDict({"model": model, "objective": objective})
        lowered = Lowered(both, [p for p in both.parameters() if p.requires_grad], torch.bfloat16)
        objective.after_step(model, 0.01)
        rough = objective(model, batch_of(objective, store)).loss
        rough.backward()
        assert rough.dtype == torch.float32 and float(rough.detach()) == pytest.approx(float(exact), rel=0.05, abs=0.05)
        assert all(m.grad is not None and torch.isfinite(m.grad).all() for m in lowered.masters)

    def test_teachers_are_no_parameters(self, made) -> None:
        objective, model, store = made
        assert not any(name.startswith("slow_") for name, p in objective.named_parameters() if p.requires_grad)
        objective(model, batch_of(objective, store)).loss.backward()
        assert all(p.grad is None for name, p in objective.named_parameters() if name.startswith("slow_"))

    def test_views_are_asked_for_where_they_are_needed(self, made, part) -> None:
        objective, model, _ = made
        bare = processor(augmented=False)
        if objective.least_views == 1:
            part.build(model, bare)
        else:
            with pytest.raises(ValueError, match="2 views of a picture, this augment makes 1"):
                part.cls(model, bare, **part.config)


# ---- contrastive


def pairs_of(objective: Any, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    first, second = objective.processor.views(batch)[:2]
    return vectors(model, first), vectors(model, second)


def test_simclr_is_nt_xent_of_projections_and_a_chunk_changes_nothing(digits) -> None:
    """Loss and every gradient, whole and in chunks of an odd size; no pass sees more than a chunk."""
    found = {}
    for chunk in (None, 24):
        objective, model = made(SimCLR, chunk=chunk)
        batch = batch_of(objective, digits, 32)
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
def test_moco_is_its_pseudocode(digits, queue) -> None:
    """Algorithm 1 of MoCo v3: ctr(q1, k2) + ctr(q2, k1), keys from the momentum encoder, 2 * tau outside; a queue appends keys."""
    objective, model = made(MoCo, queue=queue, dim=16)
    held = objective.queue.values.clone() if queue else torch.zeros(0, 16)
    batch = batch_of(objective, digits, 32)
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


def test_byol_is_its_formula_and_its_twin_follows_slowly(digits) -> None:
    objective, model = made(BYOL)
    batch = batch_of(objective, digits)
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


def test_simsiam_is_its_pseudocode(digits) -> None:
    """Algorithm 1: D(p1, z2) / 2 + D(p2, z1) / 2 with z detached; without the stopped gradient it would be another."""
    objective, model = made(SimSiam)
    batch = batch_of(objective, digits)
    z1, z2 = (objective.projector(x) for x in pairs_of(objective, model, batch))
    p1, p2 = objective.predictor(z1), objective.predictor(z2)

    def distance(p: Tensor, z: Tensor) -> Tensor:
        return -(F.normalize(p, dim=1) * F.normalize(z, dim=1)).sum(1).mean()

    stopped = (distance(p1, z2.detach()) + distance(p2, z1.detach())) / 2
    flowing = (distance(p1, z2) + distance(p2, z1)) / 2
    weight = model.second.weight
    ours, theirs, wrong = (torch.autograd.grad(x, weight, retain_graph=True)[0] for x in (objective(model, batch).loss, stopped, flowing))
    assert torch.allclose(ours, theirs, atol=1e-6) and not torch.allclose(ours, wrong, atol=1e-6)


def test_vicreg_and_barlow_twins_weigh_their_terms(digits) -> None:
    objective, model = made(VICReg, invariance=2.0, variance=3.0, covariance=0.5)
    batch = batch_of(objective, digits)
    z = [objective.projector(x) for x in pairs_of(objective, model, batch)]
    invariance, variance, covariance = losses.vicreg_terms(*z)
    assert torch.allclose(objective(model, batch).loss, 2 * invariance + 3 * variance + 0.5 * covariance, rtol=1e-5)
    objective, model = made(BarlowTwins, redundancy=0.1)
    z = [objective.projector(x) for x in pairs_of(objective, model, batch)]
    on, off = losses.barlow_twins(*z)
    assert torch.allclose(objective(model, batch).loss, on + 0.1 * off, rtol=1e-5)


# ---- multi-crop


def test_dino_is_its_pseudocode(digits) -> None:
    """Teacher: whole views, centred, at the temperature of its warm-up. Student: all views. Centre: mean of what the teacher said."""
    objective, model = made(DINO, small=3, prototypes=32, batch_norm=False)
    objective.centre.copy_(torch.randn(32) * 0.1)
    objective.progress = 0.15  # half of the warm-up
    batch, centre = batch_of(objective, digits, 16), objective.centre.clone()
    views = objective.processor.views(batch)
    assert [v.shape[-1] for v in views] == [8, 8, 4, 4, 4]
    said = [objective.head(vectors(model, v)) for v in views]
    expected = 0.0
    for i in range(2):
        t = F.softmax((said[i] - centre) / (0.04 + 0.5 * (0.07 - 0.04)), -1)
        expected += sum(float(-(t * F.log_softmax(said[v] / 0.1, -1)).sum(-1).mean()) for v in range(5) if v != i) / 8
    model.passes.clear()
    output = objective(model, batch)
    assert float(output.loss) == pytest.approx(expected, abs=1e-5)
    assert model.passes == [32, 48] and objective.slow_model.twin.passes[-1:] == [32], "a pass for each size; the teacher sees no crops"
    objective.after_step(model, 0.2)
    mean = torch.cat(said[:2]).mean(0)
    assert torch.allclose(objective.centre, 0.9 * centre + 0.1 * mean, atol=1e-5)


@pytest.mark.parametrize("cls", [DINO, SwAV])
def test_prototypes_wait(digits, cls) -> None:
    objective, model = made(cls, small=2, freeze=0.1)
    batch = batch_of(objective, digits)
    prototypes = objective.head.prototypes if cls is DINO else objective.prototypes
    objective(model, batch).loss.backward()
    assert prototypes.weight.grad is None
    objective.after_step(model, 0.1)
    objective(model, batch).loss.backward()
    assert prototypes.weight.grad is not None


@pytest.mark.parametrize("queue", [None, 48])
def test_swav_is_its_code(digits, queue) -> None:
    objective, model = made(SwAV, small=2, prototypes=12, queue=queue, queue_from=0.0, freeze=0.0)
    batch = batch_of(objective, digits, 32)
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
    assert float(output.loss) == pytest.approx(expected, rel=1e-5)
    objective.after_step(model, 0.1)
    if queue:
        for i, q in enumerate(objective.queues):
            assert torch.allclose(q.values.sort(0)[0], torch.cat([held[i][32:], z[32 * i : 32 * i + 32].detach()]).sort(0)[0], atol=1e-6)


# ---- painting


@pytest.mark.parametrize("normalise", [True, False])
def test_mae_is_the_librarys(digits, normalise) -> None:
    """ViTMAEForPreTraining with its weights copied over, on the same masks: loss, pixels and gradients."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    from sslcli.models.vit import Vit

    torch.manual_seed(0)
    decoder = {
        "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 128,
    }
    network = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "layer_norm_eps": 1e-6}
    pictures = {"image_size": SIZE, "patch_size": 2, "num_channels": 1, "mask_ratio": 0.75, "norm_pix_loss": normalise}
    theirs = ViTMAEForPreTraining(ViTMAEConfig(**network, **decoder, **pictures))
    theirs.decoder.initialize_weights(16)  # its positions, which its constructor leaves at nought
    with torch.no_grad():  # biases and norms begin as noughts and ones: differ, so that a mistake shows
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) * 0.1 if p.requires_grad else 0.0)
    words = processor()
    model = Vit(words, layers=2, width=24, heads=2, inner=48, patch=2, pool="mean", dropout=0.0)
    model.base.load_state_dict(theirs.vit.state_dict())
    objective = MAE(model, words, ratio=0.75, layers=2, width=32, heads=4, normalise=normalise)
    copy_decoder(theirs.decoder, objective)
    batch = batch_of(objective, digits, 16)
    noise = torch.from_numpy(chance.uniform(chance.keys(0, 0, np.arange(16)), 16, stream=1))
    pixels = objective.processor.views(batch)[0]
    expected, output = theirs(pixels, noise=noise), objective(model, batch)
    assert float(output.loss) == pytest.approx(float(expected.loss), abs=1e-5)
    painted = expected.logits.gather(1, batch["hidden"][..., None].expand(-1, -1, 4))
    assert torch.allclose(objective._paint(model, pixels, batch)[1], painted, atol=1e-5)
    output.loss.backward()
    expected.loss.backward()
    for ours, other in zip(model.base.parameters(), theirs.vit.parameters(), strict=True):
        assert other.grad is None or torch.allclose(ours.grad, other.grad, atol=1e-5)
    assert torch.allclose(objective.mask.grad, theirs.decoder.mask_token.grad[0, 0], atol=1e-5)


@torch.no_grad()
def copy_decoder(theirs: Any, ours: MAE) -> None:
    assert torch.allclose(theirs.decoder_pos_embed[0, 1:], ours.positions, atol=1e-6)
    ours.mask.copy_(theirs.mask_token[0, 0])
    moved = [(theirs.decoder_embed, ours.enter), (theirs.decoder_norm, ours.leave[0]), (theirs.decoder_pred, ours.leave[1])]
    for layer, own in zip(theirs.decoder_layers, ours.decoder, strict=True):
        attention = (layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj)
        own.qkv.weight.copy_(torch.cat([x.weight for x in attention]))
        own.qkv.bias.copy_(torch.cat([x.bias for x in attention]))
        moved += [(layer.attention.o_proj, own.out), (layer.mlp.fc1, own.up), (layer.mlp.fc2, own.down)]
        moved += [(layer.layernorm_before, own.before), (layer.layernorm_after, own.after)]
    for old, new in moved:
        new.load_state_dict(old.state_dict())


def test_simmim_is_the_mean_error_of_masked_pixels_and_sees_none_of_them(digits) -> None:
    objective, model = made(SimMIM, vit=True)
    batch = batch_of(objective, digits, 4)
    pixels, masked = objective.processor.views(batch)[0], batch["masked"]
    assert (masked.sum(1) == 12).all() and float(batch["weight"]) == 48, "3 of 4 squares (0.6, rounded up), 4 patches each"
    output = objective(model, batch)
    said = objective.head(model.encode({"pixels": pixels, "masked": masked, "mask_token": objective.mask})[:, 1:])
    image, total, count = unpatched(model, said, pixels), 0.0, 0
    for b in range(4):
        for y in range(8):
            for x in range(8):
                if masked[b, (y // 2) * 4 + x // 2]:
                    total, count = total + abs(float(image[b, 0, y, x]) - float(pixels[b, 0, y, x])), count + 1
    assert float(output.loss) == pytest.approx(total / count, rel=1e-5)
    other = unpatched(model, torch.where(masked[..., None], torch.randn(4, 16, 4), model.patches(pixels)), pixels)
    assert torch.equal(said, objective.head(model.encode({"pixels": other, "masked": masked, "mask_token": objective.mask})[:, 1:]))
    output.loss.backward()
    assert objective.mask.grad.abs().sum() > 0


@pytest.mark.parametrize(("cls", "ratio"), [(MAE, 0.75), (MAE, 0.5), (SimMIM, 0.5)])
def test_what_is_hidden_is_what_was_asked(digits, cls, ratio) -> None:
    objective, _ = made(cls, vit=True, ratio=ratio)
    batch = batch_of(objective, digits, 200)
    masked = batch["masked"] if cls is SimMIM else torch.zeros(200, 16, dtype=torch.bool).scatter(1, batch["hidden"], True)
    assert (masked.float().mean(1) == ratio).all()
    assert ((masked.float().mean(0) - ratio).abs() < 0.13).all(), "every place as often as any other"
    stream = Stream(objective.rows(digits), lambda rows, keys: objective.read(digits, rows, keys), 64, 0)
    assert objective.receipt(stream)["masked"] == {"asked": ratio, "measured": ratio}
    if cls is MAE:
        assert (torch.cat([batch["visible"], batch["hidden"]], 1).sort(1)[0] == torch.arange(16)).all()


@pytest.mark.parametrize(
    ("cls", "changed"), [(MAE, {"normalise": True}), (MAE, {"normalise": False}), (SimMIM, {}), (Autoencoder, {"kl": 0.1})]
)
def test_a_reconstruction_keeps_what_was_seen(digits, cls, changed) -> None:
    objective, model = made(cls, vit=cls is not Autoencoder, **changed)
    objective.eval()
    batch = batch_of(objective, digits, 6)
    original, shown, painted = objective.reconstruct(model, batch)
    assert original.shape == shown.shape == painted.shape == (6, 1, 8, 8)
    assert torch.allclose(original, batch["pixels"] / 255, atol=1e-5) and float(painted.min()) >= 0 and float(painted.max()) <= 1
    if cls is not Autoencoder:
        seen = torch.ones(6, 16, dtype=torch.bool)
        seen = seen.scatter(1, batch["hidden"], False) if cls is MAE else ~batch["masked"]
        where = unpatched(model, seen[..., None].expand(-1, -1, 4).float(), original) > 0
        assert torch.equal(painted[where], original[where]) and torch.equal(shown[where], original[where])
        assert (shown[~where] - 0.3).abs().max() < 1e-6, "grey: the mean of all pictures"


def test_a_plain_autoencoder_is_a_mean_square_and_a_variational_one_adds_the_divergence(digits) -> None:
    objective, model = made(Autoencoder)
    batch = batch_of(objective, digits, 8)
    pixels = objective.processor.views(batch)[0]
    assert torch.allclose(objective(model, batch).loss, (objective.decode(objective.encode(model, pixels)) - pixels).square().mean())
    objective, model = made(Autoencoder, kl=0.5)
    output = objective.eval()(model, batch)
    mean, log_variance = objective.narrow(model.encode({"pixels": pixels}).transpose(1, 2).unflatten(-1, (4, 4))).chunk(2, 1)
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum((1, 2, 3)).mean()
    expected = (objective.decode(mean) - pixels).square().mean() + 2 * 0.5 * divergence / 64
    assert torch.allclose(output.loss, expected, atol=1e-6)
    drawn = [objective.train()(model, batch).loss.item() for _ in range(2)]
    assert drawn[0] != drawn[1], "the latent is drawn"


def test_noise_is_taken_away_again_in_training_only(digits) -> None:
    objective, model = made(Autoencoder, noise=0.5)
    batch = batch_of(objective, digits, 8)
    noisy, plain = objective.train()(model, batch).loss, objective.eval()(model, batch).loss
    assert not torch.equal(noisy, plain) and torch.equal(plain, objective(model, batch).loss)


# ---- ranks


SHARED = (SimCLR, MoCo, VICReg, BarlowTwins, DINO, SwAV)
WITHOUT = {DINO: {"batch_norm": False, "freeze": 0.0}, MoCo: {"queue": 64}, SwAV: {"freeze": 0.0, "queue": 64, "queue_from": 0.0}}


def two_steps(store: Store, rank: int, world: int) -> dict[str, np.ndarray]:
    """Losses of this rank's rows, and all ranks' gradient, of each objective before and after a step; without BatchNorm."""
    found = {}
    for cls in SHARED:
        objective, model = made(cls, small=2 if cls in (DINO, SwAV) else 0, **WITHOUT.get(cls, {}))
        unnormalised(objective)
        if cls is MoCo:
            objective.slow_projector = Teacher(objective.projector)
        for step in range(2):
            rows = np.arange(step * 32, step * 32 + 32)[rank::world]
            output = objective(model, objective.read(store, rows, chance.keys(0, 0, rows)))
            (output.loss / world).backward()
            losses_ = output.loss.detach() / world
            for tensor in (losses_, *(p.grad for p in model.parameters())):
                if world > 1:
                    torch.distributed.all_reduce(tensor)
            found |= {f"{cls.__name__} {step} {n}": p.grad.numpy().copy() for n, p in model.named_parameters()}
            found[f"{cls.__name__} {step} loss"] = losses_.numpy().copy()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.01 * p.grad
                    p.grad = None
            objective.after_step(model, 0.5)
    return found


def one_of_two(rank: int, store: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = two_steps(Store(store), rank, 2)
    if rank == 0:
        np.savez(folder / "found.npz", **found)
    torch.distributed.destroy_process_group()


def test_two_ranks_learn_as_one(digits, tmp_path) -> None:
    """Negatives, correlations, assignments, queues and centres are of all ranks' rows; gradients find their way back."""
    torch.multiprocessing.spawn(one_of_two, (digits.path, tmp_path), nprocs=2)
    alone = two_steps(digits, 0, 1)
    with np.load(tmp_path / "found.npz") as together:
        assert set(together) == set(alone)
        for name, value in alone.items():
            assert np.abs(together[name] - value).max() <= 1e-4 * max(np.abs(value).max(), 1e-2), name


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


def test_pictures_come_back_from_their_patches(digits) -> None:
    model, pixels = TinyVit(processor()), torch.randn(3, 1, 8, 8)
    assert torch.equal(unpatched(model, model.patches(pixels), pixels), pixels)

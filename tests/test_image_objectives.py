"""What every objective of images promises, on one rank and on two."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sslcli.core import Objective
from sslcli.data import chance
from sslcli.data.store import Store
from sslcli.heads import BatchNorm
from sslcli.lowered import Lowered
from sslcli.objectives.barlow_twins import BarlowTwins
from sslcli.objectives.dino import DINO
from sslcli.objectives.moco import MoCo
from sslcli.objectives.simclr import SimCLR
from sslcli.objectives.swav import SwAV
from sslcli.objectives.vicreg import VICReg
from sslcli.teacher import Teacher
from tests.conftest import parts
from tests.planted import a_collapse_shows
from tests.tiny_networks import Conv, TinyVit, batch_of, digits, made, processor

HIDING = ("mae", "simmim")


@pytest.mark.parametrize("part", parts("objective", Objective, "image"))
class TestEveryImageObjective:
    @pytest.fixture
    def made(self, part) -> tuple[Any, Any, Store]:
        torch.manual_seed(0)
        name = part.cls.__module__.rsplit(".", 1)[1]
        words = processor(2 if name in ("dino", "swav") else 0)
        model = TinyVit(words) if name in HIDING else Conv(words)
        return part.build(model, words).train(), model, digits()

    def test_its_loss_is_finite_and_reaches_the_backbone(self, made) -> None:
        objective, model, store = made
        output = objective(model, batch_of(objective, store))
        assert output.loss.ndim == 0 and torch.isfinite(output.loss)
        assert all(v.ndim == 0 and not v.requires_grad and torch.isfinite(v) for v in output.logs.values()), output.logs
        output.loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())

    def test_a_collapse_shows(self, made, monkeypatch) -> None:
        objective, model, store = made
        a_collapse_shows(objective, model, batch_of(objective, store), monkeypatch)

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


SHARED = (SimCLR, MoCo, VICReg, BarlowTwins, DINO, SwAV)
WITHOUT = {DINO: {"batch_norm": False, "freeze": 0.0}, MoCo: {"queue": 64}, SwAV: {"freeze": 0.0, "queue": 64, "queue_from": 0.0}}


def unnormalised(module: nn.Module) -> nn.Module:
    """Without BatchNorm, so that rows and ranks are independent."""
    for name, child in module.named_children():
        setattr(module, name, nn.Identity() if isinstance(child, BatchNorm) else unnormalised(child))
    return module


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


def test_two_ranks_learn_as_one(tmp_path) -> None:
    """Negatives, correlations, assignments, queues and centres are of all ranks' rows; gradients find their way back."""
    torch.multiprocessing.spawn(one_of_two, (digits().path, tmp_path), nprocs=2)
    alone = two_steps(digits(), 0, 1)
    with np.load(tmp_path / "found.npz") as together:
        assert set(together) == set(alone)
        for name, value in alone.items():
            assert np.abs(together[name] - value).max() <= 1e-4 * max(np.abs(value).max(), 1e-2), name

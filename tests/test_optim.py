"""From gradients to weights: schedules, groups, averages, optimizers against references, fp32 masters beside bf16 weights."""

import math

import pytest
import torch
from torch import nn

from sslcli.distributed import World
from sslcli.lowered import Lowered
from sslcli.optim import EMBEDDING, Lion, Optimizer, _depth, default_lr

ALONE = World(0, 1, torch.device("cpu"))


class Net(nn.Module):
    """Named as a backbone with two layers and a head beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embeddings = nn.Embedding(7, 6)
        self.model.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.task = nn.Linear(6, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.model.embeddings(ids)
        for layer in self.model.layers:
            x = torch.tanh(layer(x))
        return self.task(x)


def optimizer(net: nn.Module, precision: torch.dtype = torch.float32, steps: int = 100, **more: object) -> Optimizer:
    options = {
        "kind": "adamw", "lr": 1e-2, "betas": (0.9, 0.98), "weight_decay": 0.0, "schedule": "constant", "warmup": 0.0, "clip": None,
        "layer_decay": 1.0, "ema": None, **more,
    }  # fmt: skip
    made = Optimizer(net, precision, **options)
    made.steps = steps
    return made


def train(net: nn.Module, made: Optimizer, steps: int = 5) -> None:
    for step in range(steps):
        ids = torch.arange(7)[:, None] * (step + 1) % 7
        (net(ids).float().square().sum() + net(ids).float().sum()).backward()
        made.step(ALONE, step)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {9: 1, 50: 1, 99: 1}),
        ("linear", {9: 1, 55: 0.5, 99: 1 / 90}),
        ("cosine", {9: 1, 55: 0.5, 99: 0.5 * (1 + math.cos(math.pi * 89 / 90))}),
        ("wsd", {9: 1, 50: 1, 81: 1, 91: 0.5, 99: 5 / 90}),
    ],
)
def test_schedules(schedule, expected) -> None:
    made = optimizer(Net(), schedule=schedule, warmup=0.1, lr=1.0)
    assert [made.rate(i) for i in range(10)] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert {step: made.rate(step) for step in expected} == pytest.approx(expected)


@pytest.mark.parametrize(("kind", "reference"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)])
def test_adam_is_the_librarys(kind, reference) -> None:
    torch.manual_seed(0)
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())
    made = optimizer(ours, kind=kind, weight_decay=0.1)
    matrices, vectors = ([p for p in theirs.parameters() if (p.ndim > 1) == wide] for wide in (True, False))
    engine = reference([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], 1e-2, betas=(0.9, 0.98))
    for step in range(5):
        ids = torch.arange(7)[:, None] * (step + 1) % 7
        engine.zero_grad()
        (theirs(ids).square().sum() + theirs(ids).sum()).backward()
        engine.step()
    train(ours, made)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_lion_is_its_paper() -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(4, 3))
    engine = Lion([{"params": [p], "weight_decay": 0.1}], 1e-2, (0.9, 0.99), 0.0)
    x, m = p.detach().clone(), torch.zeros(4, 3)
    for i in range(4):
        g = torch.randn(4, 3, generator=torch.Generator().manual_seed(i))
        p.grad = g.clone()
        engine.step()
        x = x * (1 - 1e-2 * 0.1) - 1e-2 * torch.sign(0.9 * m + 0.1 * g)
        m = 0.99 * m + 0.01 * g
    assert torch.allclose(p, x, atol=1e-6)


def test_muon_takes_the_matrices_inside_and_adamw_the_rest() -> None:
    made = optimizer(Net(), kind="muon")
    muon, adam = made.engines
    assert sorted(n for g in muon.param_groups for n in g["names"]) == ["model.layers.0.weight", "model.layers.1.weight"]
    assert "task.weight" in {n for g in adam.param_groups for n in g["names"]}
    assert "model.embeddings.weight" in {n for g in adam.param_groups for n in g["names"]}


def test_layers_far_from_the_head_move_less() -> None:
    made = optimizer(Net(), layer_decay=0.5)
    shares = {n: g["share"] for g in made.engines[0].param_groups for n in g["names"]}
    assert shares["task.weight"] == 1 and shares["model.layers.1.weight"] == 0.5 and shares["model.layers.0.weight"] == 0.25
    assert shares["model.embeddings.weight"] == 0.125


@pytest.mark.parametrize(
    ("name", "depth", "embeds"),
    [
        ("model.base.wte.weight", None, True),
        ("model.base.wpe.weight", None, True),
        ("model.base.h.3.attn.weight", 3, False),
        ("model.bottlenecks.encoder/layer/1/output.down.weight", 1, False),
        ("model.base.embeddings.word_embeddings.weight", None, True),
    ],
)
def test_every_familys_layers_are_known(name: str, depth: int | None, embeds: bool) -> None:
    assert _depth(name) == depth and bool(EMBEDDING.search(name)) == embeds


def test_what_is_frozen_is_kept_as_it_was_before_it_was_lowered() -> None:
    net = nn.ModuleDict({"still": nn.Linear(8, 8), "twin": nn.Linear(8, 8), "learns": nn.Linear(8, 8)})
    for name in ("still", "twin"):
        net[name].requires_grad_(False)
    before = net["still"].weight.detach().clone()
    lowered = Lowered(net, list(net["learns"].parameters()), torch.bfloat16)
    net["twin"].weight.data.mul_(2)  # a teacher's moves
    exact = lowered.exact()
    assert net["still"].weight.dtype == torch.bfloat16 and torch.equal(exact[id(net["still"].weight)], before)
    assert torch.equal(exact[id(net["twin"].weight)], net["twin"].weight.float())


def test_vectors_take_no_decay() -> None:
    made = optimizer(Net(), weight_decay=0.3)
    decay = {n: g["weight_decay"] for g in made.engines[0].param_groups for n in g["names"]}
    assert decay["task.weight"] == 0.3 and decay["task.bias"] == 0 and decay["model.layers.0.bias"] == 0


def test_clipping_is_the_librarys() -> None:
    net = Net()
    made = optimizer(net, clip=0.01, kind="sgd", betas=(0.0, 0.0), lr=1.0)
    before = [p.detach().clone() for p in net.parameters()]
    (net(torch.arange(7)[:, None]).square().sum() * 100).backward()
    made.step(ALONE, 0)
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, net.parameters(), strict=True)]).norm()
    assert float(moved) == pytest.approx(0.01, rel=1e-3)


def test_clipping_is_done_once_whichever_engines_step() -> None:
    """Muon's partner is fused and could clip by itself: what moves is what the gradient clipped once makes of it."""
    moments = {}
    for kind in ("adamw", "muon"):
        torch.manual_seed(0)
        net = Net()
        made = optimizer(net, kind=kind, clip=0.01)
        (net(torch.arange(7)[:, None]).square().sum() * 100).backward()
        made.step(ALONE, 0)
        moments[kind] = made.state()["moments"]["task.weight|exp_avg"]
    assert torch.allclose(moments["adamw"], moments["muon"], rtol=1e-5)


def test_the_average_is_exponential_and_takes_the_weights_place() -> None:
    torch.manual_seed(0)
    net = Net()
    made = optimizer(net, ema=0.9)
    expected = net.task.weight.detach().clone()
    for step in range(4):
        net(torch.arange(7)[:, None]).square().sum().backward()
        made.step(ALONE, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net.task.weight.detach()
    live = net.task.weight.detach().clone()
    with made.averaged():
        assert torch.allclose(net.task.weight, expected, atol=1e-6)
    assert torch.equal(net.task.weight, live) and not torch.allclose(live, expected, atol=1e-4)


def test_bf16_gradients_of_tables_and_norms_are_summed_in_fp32() -> None:
    """Thousands of small gradients of one row, as a frequent token's: summed in bf16 a third of them would be lost."""
    torch.manual_seed(0)

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm = torch.nn.Embedding(4, 32, padding_idx=3), torch.nn.LayerNorm(32)

    ids, weight = torch.randint(0, 4, (4096,)), torch.randn(4096, 32) + 0.3
    low, high = Tiny(), Tiny()
    low.table.weight.data = low.table.weight.data.to(torch.bfloat16).float()  # so that both begin alike
    high.load_state_dict(low.state_dict())
    made = optimizer(low, torch.bfloat16)
    for net in (low, high):
        (net.norm(net.table(ids)).float() * weight.to(torch.bfloat16).float()).sum().backward()
    for name, master, reference in zip(made.names, made.masters, high.parameters(), strict=True):
        difference = (master.grad - reference.grad).norm() / reference.grad.norm()
        assert float(difference) < 0.02, (name, float(difference))
    assert not made.masters[0].grad[3].any(), "the padding row stays"


def test_bf16_weights_follow_fp32_masters() -> None:
    """Steps far below the resolution of bf16 add up in the masters."""
    torch.manual_seed(0)
    low, high = Net(), Net()
    high.load_state_dict(low.state_dict())
    a, b = optimizer(low, torch.bfloat16, lr=1e-4), optimizer(high, lr=1e-4)
    train(low, a, 50)
    train(high, b, 50)
    assert low.task.weight.dtype == torch.bfloat16 and a.masters[0].dtype == torch.float32
    for name, master, parameter in zip(a.names, a.masters, high.parameters(), strict=True):
        assert torch.allclose(master, parameter, atol=1.5e-3), name
    a.release(a.best_weights())
    assert low.task.weight.dtype == torch.float32
    assert torch.equal(low.task.weight, dict(zip(a.names, a.masters, strict=True))["task.weight"])


@pytest.mark.parametrize("kind", ["adamw", "sgd", "lion", "muon"])
def test_not_a_number_moves_nothing(kind) -> None:
    net = Net()
    made = optimizer(net, kind=kind, ema=0.9)
    train(net, made, 2)
    before = {k: v.clone() for group in made.state().values() for k, v in group.items()}
    (net(torch.arange(7)[:, None]).sum() * float("nan")).backward()
    made.step(ALONE, 2)
    after = {k: v for group in made.state().values() for k, v in group.items()}
    assert all(torch.equal(before[k], after[k]) for k in before if not k.endswith("|step")) and int(made.refused) == 1


def test_state_goes_on_exactly() -> None:
    torch.manual_seed(0)
    for kind in ("adamw", "sgd", "lion", "muon"):
        net = Net()
        made = optimizer(net, kind=kind, ema=0.9)
        train(net, made, 3)
        kept = {name: {k: v.clone() for k, v in group.items()} for name, group in made.state().items()}
        train(net, made, 2)
        other = Net()
        again = optimizer(other, kind=kind, ema=0.9)
        again.load(kept)
        train(other, again, 2)
        for a, b in zip(net.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b), kind
        for a, b in zip(made.average, again.average, strict=True):
            assert torch.equal(a, b), kind


def test_narrow_networks_take_larger_steps() -> None:
    wide, narrow = Net(), Net()
    wide.model.dim, narrow.model.dim = 768, 256
    assert default_lr(wide, "adamw") < default_lr(narrow, "adamw") <= 3e-3


def test_a_gentle_objective_does_not_slow_the_task_beside_it() -> None:
    alone, both = Net(), Net()
    for net in (alone, both):
        net.model.dim, net.model.loaded = 768, {"tensors": 1}
        net.objective = torch.nn.Identity()
        net.objective.tuned_times_width = 0.004
    del alone.task
    assert default_lr(both, "adamw") == pytest.approx(10 * default_lr(alone, "adamw"))


def test_a_network_that_bears_more_from_scratch_gets_it_in_a_task_alone() -> None:
    plain, bearing, pretraining, pretrained = Net(), Net(), Net(), Net()
    for net in (bearing, pretraining, pretrained):
        net.model.fresh_rate = 10.0
    del pretraining.task
    pretrained.model.loaded = {"tensors": 1}
    for net in (plain, bearing, pretraining, pretrained):
        net.model.dim = 768
    base = default_lr(plain, "adamw")
    assert default_lr(bearing, "adamw") == pytest.approx(10 * base) and default_lr(pretraining, "adamw") == pytest.approx(base)
    assert default_lr(pretrained, "adamw") < base
    bearing.objective = torch.nn.Identity()
    bearing.objective.lr_times_width = 0.3
    assert default_lr(bearing, "adamw") == pytest.approx(10 * base), "the task's rate alone is multiplied"

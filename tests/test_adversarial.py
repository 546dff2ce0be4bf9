"""Adversaries: each against its formula, noise inside its ball example by example, and runs that use them."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sslcli.core import Adversary, Backbone, Output
from sslcli.errors import BadInput
from sslcli.losses import divergence, symmetric_divergence
from sslcli.models.text import Text
from sslcli.noise import noise_of
from tests.conftest import parts
from tests.tiny_networks import Conv, processor

ADVERSARIES = {p.id: p.values[0] for p in parts("adversarial", Adversary, None)}
HOSTILE = [name for name in ADVERSARIES if name != "plain"]


def adversary(name: str, **changed: Any) -> Any:
    part = ADVERSARIES[name]
    return part.cls(**{**part.config, **changed})


class Means(Backbone):
    """Tokens to vectors to a mean; dropout between, so that passes may differ."""

    def __init__(self, dropout: float = 0.3):
        super().__init__()
        self.dim, self.embedding = 8, nn.Embedding(50, 8)
        self.inner, self.drop = nn.Linear(8, 8), nn.Dropout(dropout)

    def encode(self, batch):
        return torch.tanh(self.inner(self.drop(self.embedding(batch["ids"]))))

    def pool(self, hidden, batch):
        mask = batch["mask"][..., None]
        return (hidden * mask).sum(1) / mask.sum(1)


class Classes(nn.Module):
    def __init__(self, dim: int = 8):
        super().__init__()
        self.head = nn.Linear(dim, 3)

    def forward(self, model, batch):
        logits = self.head(model.pool(model.encode(batch), batch))
        return Output(F.cross_entropy(logits, batch["label"]), {}, logits)


@pytest.fixture
def small():
    torch.manual_seed(0)
    model, objective = Means(), Classes()
    lengths = torch.tensor([3, 9, 5, 9])
    batch = {"ids": torch.randint(0, 50, (4, 9)), "mask": torch.arange(9) < lengths[:, None], "label": torch.tensor([0, 1, 2, 1])}
    return model, objective, batch


def gradient(model: Any, objective: Any, batch: Any, made: Any, seed: int = 5) -> tuple[dict[str, torch.Tensor], Any]:
    """The summed gradient of an adversary's outputs, and its noise handle as it stood at the end."""
    torch.manual_seed(seed)
    model.zero_grad()
    objective.zero_grad()
    noise = noise_of(made, model, objective)
    with noise.around(partial(objective, model, batch)) as forward:
        for output in made(forward, noise):
            output.loss.backward()
        noise.ends = noise.seen(), noise.sizes(), [(p.value.detach().clone(), p) for p in getattr(noise, "places", [])]
    named = [*model.named_parameters(), *objective.named_parameters()]
    return {n: p.grad.clone() for n, p in named if p.grad is not None}, noise


def far(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return float(torch.cat([(a[n] - b[n]).flatten() for n in b]).norm() / torch.cat([b[n].flatten() for n in b]).norm())


@pytest.mark.parametrize("name", HOSTILE)
def test_every_adversary_raises_the_loss_within_its_radius(small, name) -> None:
    model, objective, batch = small
    changed = {"radius": 0.2, "norm": "l2"} if name != "awp" else {"radius": 0.05}
    made = adversary(name, **{k: v for k, v in changed.items() if k != "norm" or name != "awp"})
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    found, noise = gradient(model, objective, batch, made)
    seen, sizes, _ = noise.ends
    assert all(torch.isfinite(g).all() for g in found.values()) and {"inner.weight", "head.weight", "embedding.weight"} <= set(found)
    assert (sizes > 0).all() and (sizes <= made.radius * (1 + 1e-5)).all() and len(sizes) == (2 if name == "awp" else 4)
    assert float(seen["noise"]) == pytest.approx(float(sizes.mean())) and (name in ("smart", "vat") or float(seen["raised"]) > 0)
    assert all((p.detach() == before[n]).all() for n, p in model.named_parameters()), "weights are what they were"
    assert "encode" not in model.__dict__


def test_fgm_is_its_formula(small) -> None:
    """r = radius * |x| * g / |g| over the real tokens of each example; the gradient is that of L(x) + L(x + r)."""
    model, objective, batch = small
    made = adversary("fgm", radius=0.2)
    found, noise = gradient(model, objective, batch, made)
    model.zero_grad()
    objective.zero_grad()

    def loss(r: Any) -> torch.Tensor:
        torch.manual_seed(5)
        x = model.embedding(batch["ids"])
        hidden = torch.tanh(model.inner(model.drop(x + r)))
        return F.cross_entropy(objective.head(model.pool(hidden, batch)), batch["label"])

    zero = torch.zeros(4, 9, 8, requires_grad=True)
    (g,) = torch.autograd.grad(loss(zero), [zero])
    real = batch["mask"][..., None]
    x = model.embedding(batch["ids"]).detach() * real
    r = 0.2 * x.flatten(1).norm(dim=1).view(4, 1, 1) * g / g.flatten(1).norm(dim=1).view(4, 1, 1)
    assert torch.allclose(noise.ends[2][0][0], r, atol=1e-6) and not noise.ends[2][0][0][~batch["mask"]].any()
    (loss(0) + loss(r)).backward()
    expected = {n: p.grad for n, p in (*model.named_parameters(), *objective.named_parameters())}
    assert far(found, expected) < 1e-5


def test_fgm_of_radius_zero_doubles_the_gradient(small) -> None:
    model, objective, batch = small
    plain, _ = gradient(model, objective, batch, adversary("plain"))
    double, _ = gradient(model, objective, batch, adversary("fgm", radius=0.0))
    assert far(double, {n: 2 * g for n, g in plain.items()}) < 1e-6


def test_one_step_of_freelb_is_fgm(small) -> None:
    """From zero, one step of at least the radius ends at FGM's noise; two passes give half of FGM's gradient (their mean, not sum)."""
    model, objective, batch = small
    fgm, one = gradient(model, objective, batch, adversary("fgm", radius=0.2))
    lb, two = gradient(model, objective, batch, adversary("freelb", radius=0.2, steps=2, step_size=0.3))
    assert torch.allclose(one.ends[2][0][0], two.ends[2][0][0], atol=1e-6)
    assert far(lb, {n: g / 2 for n, g in fgm.items()}) < 1e-5


def test_pgd_raises_the_loss_more_than_fgm(small) -> None:
    model, objective, batch = small
    engine = torch.optim.Adam([*model.parameters(), *objective.parameters()], 0.05)
    for _ in range(30):
        engine.zero_grad()
        objective(model, batch).loss.backward()
        engine.step()
    raised = [
        float(gradient(model, objective, batch, made)[1].ends[0]["raised"])
        for made in (adversary("fgm", radius=0.3), adversary("pgd", radius=0.3, steps=10, step_size=0.08))
    ]
    assert raised[1] > raised[0] > 0


def test_smart_and_vat_add_their_divergence(small) -> None:
    model, objective, batch = small
    for name, of in (("smart", symmetric_divergence), ("vat", divergence)):
        made = adversary(name, weight=3.0, radius=0.2)
        torch.manual_seed(5)
        noise = noise_of(made, model, objective)
        with noise.around(partial(objective, model, batch)) as forward:
            total = sum(output.loss for output in made(forward, noise))
            clean, last = noise.clean, noise.last
        compared = of(clean.logits, last.logits)
        assert compared.item() > 1e-6 and torch.allclose(total, clean.loss + 3 * compared, atol=1e-6)


def test_divergences_are_those_of_the_library() -> None:
    a, b = torch.randn(5, 7), torch.randn(5, 7)
    kl = F.kl_div(b.log_softmax(-1), a.softmax(-1), reduction="batchmean")
    assert torch.allclose(divergence(a, b), kl)
    assert torch.allclose(symmetric_divergence(a, b), kl + F.kl_div(a.log_softmax(-1), b.softmax(-1), reduction="batchmean"), atol=1e-6)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("low", [False, True])
def test_packed_tokens_get_the_noise_of_padded_ones(words, norm, low) -> None:
    sizes = {"layers": 1, "width": 32, "heads": 2, "inner": 64, "positions": 64, "dropout": 0.0}
    torch.manual_seed(0)
    model, objective = Text(words[False], architecture="bert", **sizes), Classes(32)
    if low:
        model, objective = model.bfloat16(), objective.bfloat16()
    lengths = torch.tensor([3, 30, 9, 4, 17, 30])
    batch = {"ids": torch.randint(5, 300, (6, 30)), "mask": torch.arange(30) < lengths[:, None], "label": torch.tensor([0, 1, 2, 0, 1, 2])}
    assert model.pack()
    noises = []
    for packs in (True, False):
        model.packing = packs
        _, noise = gradient(model, objective, batch, adversary("fgm", radius=0.1, norm=norm))
        ((value, place),) = noise.ends[2]
        assert place.size(value, norm).tolist() == pytest.approx([0.1] * 6, rel=1e-3)
        assert noise.ends[1].tolist() == pytest.approx([0.1] * 6, rel=0.1 if low else 1e-3), "as the network saw it"
        noises.append(value[0, : lengths.sum()] if packs else value[batch["mask"]])
        assert not packs or not value[0, lengths.sum() :].any(), "none on padding"
    agree = F.cosine_similarity(noises[0].flatten(), noises[1].flatten(), dim=0)
    assert float(agree) > (0.9 if low or norm == "linf" else 0.9999)


def test_pixels_stay_in_their_range_and_teachers_are_left_alone() -> None:
    torch.manual_seed(0)
    words = processor(augmented=False)
    model = Conv(words)

    class Looks(Classes):
        processor = words

        def forward(self, model, batch):
            with torch.no_grad():
                self.alone = model.encode({"pixels": self.processor.plain(batch["pixels"])})
            logits = self.head(model.pool(model.encode({"pixels": self.processor.plain(batch["pixels"])}), batch))
            return Output(F.cross_entropy(logits, batch["label"]), {}, logits)

    objective = Looks(24)
    pixels = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8)
    pixels[0] = 0
    pixels[1] = 255
    batch = {"pixels": pixels, "label": torch.tensor([0, 1, 2, 0, 1, 2])}
    for name in ("fgm", "pgd", "vat"):
        for norm in ("l2", "linf"):
            _, noise = gradient(model, objective, batch, adversary(name, on="input", norm=norm, radius=0.3))
            ((value, _),) = noise.ends[2]
            moved = pixels / 255 + value
            assert float(moved.min()) >= -1e-6 and float(moved.max()) <= 1 + 1e-6 and value.abs().max().item() > 0.01
            assert (noise.ends[1] <= 0.3 + 1e-4).all()
    assert torch.equal(objective.alone, model.encode({"pixels": words.plain(pixels)}).detach())


def test_batchnorm_remembers_clean_passes_only() -> None:
    torch.manual_seed(0)
    words = processor(augmented=False)
    model = Conv(words)
    model.second = nn.Sequential(nn.BatchNorm2d(16), model.second)
    model.second.weight = model.second[1].weight

    class Looks(Classes):
        processor = words

        def forward(self, model, batch):
            logits = self.head(model.pool(model.encode({"pixels": self.processor.plain(batch["pixels"])}), batch))
            return Output(F.cross_entropy(logits, batch["label"]), {}, logits)

    objective = Looks(24)
    batch = {"pixels": torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8), "label": torch.tensor([0, 1, 2, 0, 1, 2])}
    means = []
    for name in ("plain", "pgd"):
        model.second[0].reset_running_stats()
        gradient(model, objective, batch, adversary(name))
        means.append(model.second[0].running_mean.clone())
    assert torch.equal(means[0], means[1]) and model.second[0].momentum == 0.1


def test_what_cannot_be_perturbed_is_refused(small) -> None:
    model, objective, batch = small
    with pytest.raises(BadInput, match=r"adversarial\.on=input"):
        noise_of(adversary("fgm", on="input"), model, objective)
    model.requires_grad_(False)
    with pytest.raises(BadInput, match="adversarial=awp"):
        noise_of(adversary("awp"), model, objective)
    found, noise = gradient(model, objective, batch, adversary("fgm", radius=0.2))
    assert set(found) == {"head.weight", "head.bias"} and (noise.ends[1] > 0).all(), "a frozen network's embedding is perturbed as well"

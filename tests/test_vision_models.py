"""Networks for pictures: against transformers, with some patches hidden, and in bf16."""

import copy

import pytest
import torch
import transformers
from torch import nn

from sslcli.core import Backbone
from sslcli.data.pixels import Pixels
from sslcli.lowered import Lowered
from sslcli.models.resnet import Resnet
from sslcli.models.vit import Vit, _fitting
from tests.conftest import parts

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}


def processor(size: int = 16, channels: int = 3) -> Pixels:
    return Pixels(size, channels, [0.5] * channels, [0.25] * channels, True)


def vit(**keys) -> Vit:
    torch.manual_seed(0)
    sizes = {"layers": 2, "width": 32, "heads": 2, "inner": 64, "patch": 4, "pool": "mean", "dropout": 0.0}
    return Vit(processor(keys.pop("size", 16)), **{**sizes, **keys}).eval()


def resnet(**keys) -> Resnet:
    """With statistics of its own, as after training."""
    torch.manual_seed(0)
    model = Resnet(processor(keys.pop("size", 32)), **{"depth": 18, "width": 8, "stem": "auto", **keys}).train()
    for _ in range(3):
        model.encode({"pixels": pixels(32, 8) * 2 + 1})
    return model.eval()


def pixels(size: int = 16, count: int = 3, channels: int = 3) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(count + size))


@pytest.mark.parametrize("part", parts("model", Backbone, "image"))
def test_every_model_of_the_list_encodes_and_pools(part) -> None:
    if part.config.get("width", 64) > 200 or part.config.get("layers", 0) > 6:
        part.config |= {"layers": 1}
    model = part.build(processor(32)).eval()
    hidden = model.encode({"pixels": pixels(32)})
    side = model.grid(32)
    assert hidden.shape[0] == 3 and hidden.shape[2] == model.dim and hidden[:, -side * side :].shape[1] == side * side
    assert model.pool(hidden, {}).shape == (3, model.dim)
    assert all(p.is_contiguous() for p in model.parameters()), "fused optimizers walk through moments in the order of memory"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "millions"), [("vit_tiny", 5.5), ("vit_small", 21.7), ("vit_base", 85.8), ("resnet18", 11.2), ("resnet50", 23.5)]
)
def test_the_sizes_are_those_of_the_papers(name, millions) -> None:
    (part,) = (p.values[0] for p in parts("model", Backbone, "image") if p.id == name)
    assert sum(p.numel() for p in part.build(processor(224)).parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_vit_computes_what_transformers_does() -> None:
    model, x = vit(), pixels()
    reference = transformers.ViTModel(model.base.config, add_pooling_layer=False).eval()
    reference.load_state_dict(model.base.state_dict())
    assert torch.allclose(model.encode({"pixels": x}), reference(pixel_values=x).last_hidden_state, atol=1e-5)
    larger = pixels(24)
    expected = reference(pixel_values=larger, interpolate_pos_encoding=True).last_hidden_state
    assert torch.allclose(model.encode({"pixels": larger}), expected, atol=1e-5), "positions are interpolated as there"


def test_patches_are_cut_as_mae_cuts_them() -> None:
    model, x = vit(), pixels()
    theirs = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**SIZES, intermediate_size=64, decoder_hidden_size=32))
    assert torch.equal(model.patches(x), theirs.patchify(x))
    assert model.patches(x).shape == (3, 16, 48) and model.grid(16) == 4


def test_visible_patches_alone_are_encoded() -> None:
    model, x = vit(), pixels()
    every = torch.arange(16).expand(3, -1)
    assert torch.allclose(model.encode({"pixels": x, "visible": every}), model.encode({"pixels": x}), atol=1e-6)
    order = torch.stack([torch.randperm(16) for _ in range(3)])
    shuffled = model.encode({"pixels": x, "visible": order})
    assert torch.allclose(shuffled[:, 1:], model.encode({"pixels": x})[:, 1:].gather(1, order[..., None].expand(-1, -1, 32)), atol=1e-5)
    few = order[:, :4]
    before = model.encode({"pixels": x, "visible": few})
    hidden = torch.ones(3, 16, dtype=torch.bool).scatter(1, few, False)
    other = x.unflatten(-1, (4, 4)).unflatten(-3, (4, 4)) + 9 * hidden.view(3, 1, 4, 1, 4, 1)
    assert before.shape == (3, 5, 32)
    assert torch.equal(model.encode({"pixels": other.flatten(2, 3).flatten(3, 4), "visible": few}), before), "nothing leaks"


def test_a_mask_token_stands_for_masked_patches() -> None:
    model, x = vit(), pixels()
    token, masked = torch.randn(32), torch.rand(3, 16) < 0.5
    reference = transformers.ViTModel(model.base.config, add_pooling_layer=False, use_mask_token=True).eval()
    reference.load_state_dict({**model.base.state_dict(), "embeddings.mask_token": token.view(1, 1, -1)})
    expected = reference(pixel_values=x, bool_masked_pos=masked).last_hidden_state
    assert torch.allclose(model.encode({"pixels": x, "masked": masked, "mask_token": token}), expected, atol=1e-5)


def test_patch_auto_makes_about_64() -> None:
    assert [_fitting(s) for s in (28, 32, 64, 96, 128, 224)] == [4, 4, 8, 12, 16, 16]
    with pytest.raises(ValueError, match="patch=5 does not divide"):
        vit(patch=5)


@pytest.mark.parametrize("make", [vit, lambda: vit(size=32, patch=4), resnet])
def test_gradients_of_bf16_weights_are_as_good_as_those_of_autocast(make) -> None:
    """Whose sums are fp32 sums: what a gradient loses is rounding, not addends."""
    model, x = make().train(), pixels(32, 64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    low, cast = copy.deepcopy(model), copy.deepcopy(model)
    target = torch.randn(64, model.dim)
    lowered = Lowered(low, list(low.parameters()), torch.bfloat16)
    before = {n: b.clone() for n, b in low.named_buffers()}
    for network in (model, low, cast):
        with torch.autocast("cpu", torch.bfloat16, enabled=network is cast):
            vectors = network.pool(network.encode({"pixels": x}), {})
        (vectors.float() - target).square().mean().backward()
    assert all(b.dtype != torch.bfloat16 for b in low.buffers()) and all(p.dtype == torch.bfloat16 for p in low.parameters())
    for (name, p), ours, theirs in zip(model.named_parameters(), lowered.masters, cast.parameters(), strict=True):
        if "k_proj.bias" not in name:  # the same for all keys: its gradient is zero
            error, allowed = ((q.grad - p.grad).norm() / p.grad.norm() for q in (ours, theirs))
            assert error < 1.2 * allowed + 0.01, (name, float(error), float(allowed))
    for name, buffer in model.named_buffers():
        assert torch.allclose(dict(low.named_buffers())[name].float(), buffer.float(), rtol=0.05, atol=0.05), name
        assert not torch.equal(before[name], buffer), "running statistics moved"
    low.eval()
    assert low.pool(low.encode({"pixels": x}), {}).dtype == torch.bfloat16
    lowered.undo()
    assert not any("forward" in vars(m) for m in low.modules())


def test_batch_norm_in_bf16_sums_in_fp32() -> None:
    norm, x, grad = nn.BatchNorm2d(16), torch.randn(64, 16, 16, 16) + 0.5, torch.randn(64, 16, 16, 16) * 0.01 + 0.002
    x, grad = x.bfloat16(), grad.bfloat16()
    low = copy.deepcopy(norm)
    lowered = Lowered(low, list(low.parameters()), torch.bfloat16)
    low(x).backward(grad)
    norm(x.float()).backward(grad.float())
    for p, master in zip(norm.parameters(), lowered.masters, strict=True):
        assert torch.allclose(p.grad, master.grad, rtol=2**-7)
    assert torch.allclose(low.running_var, norm.running_var, atol=1e-6) and int(low.num_batches_tracked) == 1
    low.eval()
    norm.eval()
    assert torch.allclose(low(x).float(), norm(x.float()), atol=0.05)


@pytest.mark.parametrize("make", [vit, resnet])
def test_gradient_checkpointing_and_compilation_change_nothing(make, monkeypatch) -> None:
    model, x = make(), pixels(32, 4)
    again = copy.deepcopy(model)
    again.checkpoint_gradients()
    for network in (model, again):
        network.train()
        network.pool(network.encode({"pixels": x}), {}).square().sum().backward()
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-5)
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiled.append(type(self).__name__))
    type(model).compile(model, dynamic=True)
    assert len(compiled) == (2 if isinstance(model, Vit) else 8)

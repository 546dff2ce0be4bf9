"""Masked and plain autoencoders of pictures against the library and their formulas."""

from typing import Any

import numpy as np
import pytest
import torch

from sslcli.data import chance
from sslcli.data.stream import Stream
from sslcli.heads import unpatched
from sslcli.models.vit import Vit
from sslcli.objectives.autoencoder import Autoencoder
from sslcli.objectives.mae import MAE
from sslcli.objectives.simmim import SimMIM
from tests.tiny_networks import SIZE, TinyVit, batch_of, digits, made, processor


@pytest.mark.parametrize("normalise", [True, False])
def test_mae_is_the_librarys(normalise) -> None:
    """ViTMAEForPreTraining with its weights copied over, on the same masks: loss, pixels and gradients."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

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
    batch = batch_of(objective, digits(), 16)
    noise = torch.from_numpy(chance.uniform(chance.keys(0, 0, np.arange(16)), 16, stream=1))
    pixels = objective.processor.views(batch)[0]
    expected, output = theirs(pixels, noise=noise), objective(model, batch)
    assert float(output.loss.detach()) == pytest.approx(float(expected.loss), abs=1e-5)
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


def test_simmim_is_the_librarys() -> None:
    """ViTForMaskedImageModeling with its weights copied over, on the same masks."""
    from transformers import ViTConfig, ViTForMaskedImageModeling

    torch.manual_seed(0)
    network = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "layer_norm_eps": 1e-6}
    theirs = ViTForMaskedImageModeling(ViTConfig(**network, image_size=SIZE, patch_size=2, num_channels=1, encoder_stride=2))
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    words = processor()
    model = Vit(words, layers=2, width=24, heads=2, inner=48, patch=2, pool="mean", dropout=0.0)
    model.base.load_state_dict({k: v for k, v in theirs.vit.state_dict().items() if k != "embeddings.mask_token"})
    objective = SimMIM(model, words, ratio=0.6, square=1)
    with torch.no_grad():
        objective.mask.copy_(theirs.vit.embeddings.mask_token[0, 0])
        objective.head.weight.copy_(theirs.decoder[0].weight[:, :, 0, 0])  # of one channel, both lay out a patch row by row
        objective.head.bias.copy_(theirs.decoder[0].bias)
    batch = batch_of(objective, digits(), 16)
    output = objective(model, batch)
    expected = theirs(words.views(batch)[0], bool_masked_pos=batch["masked"]).loss
    assert float(output.loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    output.loss.backward()
    expected.backward()
    assert torch.allclose(objective.mask.grad, theirs.vit.embeddings.mask_token.grad[0, 0], atol=1e-5)


def test_simmim_is_the_mean_error_of_masked_pixels_and_sees_none_of_them() -> None:
    objective, model = made(SimMIM, vit=True)
    batch = batch_of(objective, digits(), 4)
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
    assert float(output.loss.detach()) == pytest.approx(total / count, rel=1e-5)
    other = unpatched(model, torch.where(masked[..., None], torch.randn(4, 16, 4), model.patches(pixels)), pixels)
    assert torch.equal(said, objective.head(model.encode({"pixels": other, "masked": masked, "mask_token": objective.mask})[:, 1:]))
    output.loss.backward()
    assert objective.mask.grad.abs().sum() > 0


@pytest.mark.parametrize(("cls", "ratio"), [(MAE, 0.75), (MAE, 0.5), (SimMIM, 0.5)])
def test_what_is_hidden_is_what_was_asked(cls, ratio) -> None:
    objective, _ = made(cls, vit=True, ratio=ratio)
    batch = batch_of(objective, digits(), 200)
    masked = batch["masked"] if cls is SimMIM else torch.zeros(200, 16, dtype=torch.bool).scatter(1, batch["hidden"], True)
    assert (masked.float().mean(1) == ratio).all()
    assert ((masked.float().mean(0) - ratio).abs() < 0.13).all(), "every place as often as any other"
    stream = Stream(objective.rows(digits()), lambda rows, keys: objective.read(digits(), rows, keys), 64, 0)
    assert objective.receipt(stream)["masked"] == {"asked": ratio, "measured": ratio}
    if cls is MAE:
        assert (torch.cat([batch["visible"], batch["hidden"]], 1).sort(1)[0] == torch.arange(16)).all()


@pytest.mark.parametrize(
    ("cls", "changed"), [(MAE, {"normalise": True}), (MAE, {"normalise": False}), (SimMIM, {}), (Autoencoder, {"kl": 0.1})]
)
def test_a_reconstruction_keeps_what_was_seen(cls, changed) -> None:
    objective, model = made(cls, vit=cls is not Autoencoder, **changed)
    objective.eval()
    batch = batch_of(objective, digits(), 6)
    original, shown, painted = objective.reconstruct(model, batch)
    assert original.shape == shown.shape == painted.shape == (6, 1, 8, 8)
    assert torch.allclose(original, batch["pixels"] / 255, atol=1e-5) and float(painted.min()) >= 0 and float(painted.max()) <= 1
    if cls is not Autoencoder:
        seen = torch.ones(6, 16, dtype=torch.bool)
        seen = seen.scatter(1, batch["hidden"], False) if cls is MAE else ~batch["masked"]
        where = unpatched(model, seen[..., None].expand(-1, -1, 4).float(), original) > 0
        assert torch.equal(painted[where], original[where]) and torch.equal(shown[where], original[where])
        assert (shown[~where] - 0.3).abs().max() < 1e-6, "grey: the mean of all pictures"


def test_a_plain_autoencoder_is_a_mean_square_and_a_variational_one_adds_the_divergence() -> None:
    objective, model = made(Autoencoder)
    batch = batch_of(objective, digits(), 8)
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


def test_noise_is_taken_away_again_in_training_only() -> None:
    objective, model = made(Autoencoder, noise=0.5)
    batch = batch_of(objective, digits(), 8)
    noisy, plain = objective.train()(model, batch).loss, objective.eval()(model, batch).loss
    assert not torch.equal(noisy, plain) and torch.equal(plain, objective(model, batch).loss)


def test_pictures_come_back_from_their_patches() -> None:
    model, pixels = TinyVit(processor()), torch.randn(3, 1, 8, 8)
    assert torch.equal(unpatched(model, model.patches(pixels), pixels), pixels)

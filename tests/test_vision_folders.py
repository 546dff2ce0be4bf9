"""What networks for pictures save and read: the same numbers in transformers and in ours."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from sslcli.core import Backbone
from sslcli.data.tokenizer import quiet_transformers
from sslcli.errors import BadCheckpoint, BadInput, Unsafe
from sslcli.hf import vision
from sslcli.models.resnet import Resnet
from sslcli.models.vit import Vit
from tests.test_vision_models import SIZES, pixels, processor, resnet, vit

LABELS = ["ant", "bee", "cat", "dog", "eel"]


def plain(auto, folder: Path, **options):
    with quiet_transformers():
        return auto.from_pretrained(folder, local_files_only=True, **options).eval()


def logits(model: Backbone, head: nn.Module, x: torch.Tensor) -> torch.Tensor:
    batch = {"pixels": x}
    return head(model.pool(model.encode(batch), batch))


@pytest.mark.parametrize("pool", ["mean", "class"])
@pytest.mark.parametrize("task", [False, True])
def test_vit_loads_in_transformers(pool, task, tmp_path) -> None:
    model, head, x = vit(pool=pool), nn.Linear(32, 5), pixels()
    model.save(tmp_path, head if task else None, LABELS if task else None)
    full = plain(transformers.AutoModelForImageClassification if task else transformers.AutoModel, tmp_path)
    output = full(pixel_values=x)
    assert torch.allclose(output.logits, logits(model, head, x), atol=1e-4) if task else True
    assert list(full.config.id2label.values()) == LABELS if task else isinstance(full, transformers.ViTModel)
    body = plain(transformers.AutoModel, tmp_path)
    assert torch.allclose(body(pixel_values=x).last_hidden_state, model.encode({"pixels": x}), atol=1e-4)


@pytest.mark.parametrize("make", [lambda: vit(pool="mean"), lambda: vit(pool="class"), resnet, lambda: resnet(stem="standard", depth=50)])
@pytest.mark.parametrize("task", [False, True])
def test_what_is_saved_comes_back(make, task, tmp_path) -> None:
    model, x = make(), pixels(32)
    head = nn.Linear(model.dim, 5)
    model.save(tmp_path, head if task else None, LABELS if task else None)
    cls = vision.vision_backbone(tmp_path)
    assert cls is type(model)
    again = cls.load(tmp_path, None, None, native=True).eval()
    assert torch.allclose(again.encode({"pixels": x}), model.encode({"pixels": x}), atol=1e-6)
    assert (
        again.loaded["new"] == [] and again.loaded["body_new"] == 0 and again.pool(again.encode({"pixels": x}), {}).shape == (3, model.dim)
    )
    assert (again.head_state is not None) == task
    if task:
        head.load_state_dict(again.head_state)
        assert torch.allclose(logits(again, head, x), logits(model, head, x), atol=1e-5)
    further = cls.load(tmp_path, None, 0.1, random=True).eval()
    assert further.head_state is None and not torch.allclose(further.encode({"pixels": x}), model.encode({"pixels": x}), atol=0.1)


def test_heads_that_no_class_holds_are_kept_beside(tmp_path) -> None:
    model = vit()
    head = nn.Sequential(nn.Linear(32, 7), nn.ReLU())
    model.save(tmp_path, head, LABELS)
    assert isinstance(plain(transformers.AutoModel, tmp_path), transformers.ViTModel)
    head.load_state_dict(Vit.load(tmp_path, None, None, native=True).head_state)
    model.save(tmp_path / "pretrained", head, None)
    assert not (tmp_path / "pretrained" / vision.HEAD).exists(), "what only pretraining used is left out"


def test_resnet_loads_in_transformers(tmp_path) -> None:
    x = pixels(64)
    for depth in (18, 50):
        model, folder = resnet(size=96, depth=depth), tmp_path / str(depth)
        head = nn.Linear(model.dim, 5)
        model.save(folder, head, LABELS)
        assert torch.allclose(
            plain(transformers.AutoModelForImageClassification, folder)(pixel_values=x).logits, logits(model, head, x), atol=1e-4
        )
        whole = plain(transformers.AutoModel, folder)(pixel_values=x)
        hidden = model.encode({"pixels": x})
        assert torch.allclose(whole.last_hidden_state.flatten(2).transpose(1, 2), hidden, atol=1e-4)
        assert torch.allclose(whole.pooler_output.flatten(1), model.pool(hidden, {}), atol=1e-4) and hidden.shape[1] == model.grid(64) ** 2


def test_a_small_stem_is_a_format_of_ours(tmp_path) -> None:
    model = resnet()
    assert model.base.config.stem == "small" and model.encode({"pixels": pixels(32)}).shape == (3, 16, 64)
    model.save(tmp_path, nn.Linear(64, 5), LABELS)
    processor(32).save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == vision.OWN
    graph = vision.vision_graph(tmp_path, "image_classification")
    assert graph.auto is None and graph.module(pixels(32)).shape == (3, 5)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(BadCheckpoint, match="cannot be loaded"):
        Resnet.load(tmp_path, None, None)


@pytest.mark.parametrize("make", [vit, lambda: resnet(stem="standard"), resnet])
def test_an_export_is_the_model(make, tmp_path) -> None:
    model = make()
    head = nn.Linear(model.dim, 5)
    model.save(tmp_path, head, LABELS)
    processor(16).save(tmp_path)
    graph = vision.vision_graph(tmp_path, "image_classification")
    x = pixels(16, 5)
    assert torch.allclose(graph.trace().module()(x), logits(model, head, x), atol=1e-5), "batch size is free"
    model.save(tmp_path, _votes(), LABELS)
    with pytest.raises(BadInput, match="vote of neighbours"):
        vision.vision_graph(tmp_path, "image_classification")


def _votes() -> nn.Module:
    votes = nn.Module()
    votes.register_buffer("bank", torch.zeros(4, 2))
    return votes


def test_dinov2_and_mae_are_read_as_vit(tmp_path) -> None:
    x = pixels()
    dino = transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, mlp_ratio=2, layerscale_value=0.3)).eval()
    dino.save_pretrained(tmp_path / "dino")
    mae = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(**SIZES, intermediate_size=64, decoder_hidden_size=32, mask_ratio=0.0)
    )
    mae.save_pretrained(tmp_path / "mae")
    for name, expected in (("dino", dino(pixel_values=x).last_hidden_state), ("mae", None)):
        assert vision.vision_backbone(tmp_path / name) is Vit
        model = Vit.load(tmp_path / name, None, None).eval()
        assert model.loaded["body_new"] == 0 and model.pooling == ("class" if name == "dino" else "mean")
        if expected is not None:
            assert torch.allclose(model.encode({"pixels": x}), expected, atol=1e-5)
            continue
        output = mae.vit.eval()(pixel_values=x)
        inverse = output.ids_restore[..., None].expand(-1, -1, 32)
        restored = output.last_hidden_state[:, 1:].gather(1, inverse)
        assert torch.allclose(model.encode({"pixels": x})[:, 1:], restored, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        transformers.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[1, 2], window_size=4),
        transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32),
        transformers.BeitConfig(**SIZES, intermediate_size=64),
        transformers.Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2),
        transformers.SiglipVisionConfig(**SIZES, intermediate_size=64),
    ],
    ids=lambda c: c.model_type,
)
def test_any_encoder_of_transformers(config, tmp_path) -> None:
    torch.manual_seed(0)
    x = pixels(config.image_size)
    reference = transformers.AutoModel.from_config(config).eval()
    reference.save_pretrained(tmp_path / "given")
    cls = vision.vision_backbone(tmp_path / "given")
    model = cls.load(tmp_path / "given", None, None).eval()
    hidden, head = model.encode({"pixels": x}), nn.Linear(model.dim, 5)
    last = reference(pixel_values=x).last_hidden_state
    assert torch.allclose(hidden[:, 1:], last if last.ndim == 3 else last.flatten(2).transpose(1, 2), atol=1e-5)
    assert model.loaded["body_new"] == 0 and hidden.shape[1] > model.grid(config.image_size) ** 2
    model.save(tmp_path / "trained", head, LABELS)
    again = cls.load(tmp_path / "trained", None, None, native=True).eval()
    assert torch.allclose(F.linear(again.pool(again.encode({"pixels": x}), {}), **again.head_state), logits(model, head, x), atol=1e-5)
    if not (tmp_path / "trained" / vision.HEAD).exists():
        full = plain(transformers.AutoModelForImageClassification, tmp_path / "trained")
        assert torch.allclose(full(pixel_values=x).logits, logits(model, head, x), atol=1e-4)


def test_folders_that_are_no_pictures_model_are_refused(tmp_path) -> None:
    model = vit()
    model.save(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    for broken, kind in (({**said, "auto_map": {"AutoModel": "x.Y"}}, Unsafe), ({"hidden_size": 3}, BadCheckpoint), ([], BadCheckpoint)):
        (tmp_path / "config.json").write_text(json.dumps(broken))
        with pytest.raises(kind):
            vision.vision_backbone(tmp_path)
    text = transformers.BertModel(transformers.BertConfig(vocab_size=9, **{k: SIZES[k] for k in list(SIZES)[:3]}, intermediate_size=32))
    text.save_pretrained(tmp_path / "text")
    with pytest.raises(BadCheckpoint, match="does not look at pictures"):
        vision.vision_backbone(tmp_path / "text").load(tmp_path / "text", None, None)

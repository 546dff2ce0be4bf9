"""Networks for pictures as transformers keeps them: which of our classes reads a folder, ViT under its other names, and classifiers in
the class of plain transformers that computes the same."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.export import Dim
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    PretrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from sslcli.data.pixels import Pixels
from sslcli.data.tokenizer import quiet_transformers
from sslcli.errors import BadCheckpoint, BadInput, at
from sslcli.hf.graph import Graph
from sslcli.hf.pretrained import pretrained, read_config
from sslcli.hf.screen import screen

VITS = {"vit": "class", "vit_mae": "mean", "dinov2": "class"}  # families that are a ViT, and how they pool where nothing says so
OWN = "sslcli_resnet"  # our model_type for what transformers has no class for
HEAD = "head.safetensors"  # a head that no class of transformers can hold
BLOCK = {"norm1": "layernorm_before", "norm2": "layernorm_after"}  # DINOv2's names, ViT's names


def vision_backbone(folder: Path) -> Any:
    """The class of our models that loads this folder: Vit, Resnet, or Vision for all other encoders of pictures."""
    from sslcli.models.resnet import Resnet
    from sslcli.models.vision import Vision
    from sslcli.models.vit import Vit

    said = settings(folder)
    family = said.get("model_type")
    if family in ("resnet", OWN):
        return Resnet
    square = all(isinstance(said.get(k, 1), int) for k in ("image_size", "patch_size"))
    return Vit if family in VITS and square and not said.get("use_swiglu_ffn") else Vision


def settings(folder: Path) -> dict[str, Any]:
    """A model folder's config.json as it stands, refused where it would run code."""
    screen(folder)
    found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(found, dict) or "model_type" not in found:
        raise BadCheckpoint(f"{at(folder / 'config.json')}: names no model_type; this is not a model of transformers")
    return found


def classifies(folder: Path) -> bool:
    """Whether the model in this folder is a classifier of transformers, with its last layer."""
    return any(str(name).endswith("ForImageClassification") for name in settings(folder).get("architectures") or ())


def fits(head: nn.Module | None, labels: Sequence[str] | None) -> bool:
    """Whether the head is one score a label, linear in the pooled vector: what a classifier of transformers can say."""
    return isinstance(head, nn.Linear) and labels is not None and head.out_features == len(labels)


def write(
    folder: Path, full: PreTrainedModel, head: nn.Module | None, labels: Sequence[str] | None, multi: bool, own: str | None = None
) -> None:
    """In fp32, label names set. `head`: what `full` does not hold (of a task; what only pretraining used is left out). `own`: model_type
    of a network that looks like transformers' and is not."""
    if labels is not None:
        full.config.id2label = dict(enumerate(labels))
        full.config.label2id = {label: i for i, label in enumerate(labels)}
        full.config.problem_type = "multi_label_classification" if multi else "single_label_classification"
    full.config._attn_implementation = "sdpa"
    with quiet_transformers():
        full.float().eval().save_pretrained(folder)
    if own:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(
            json.dumps({**said, "model_type": own, "architectures": None}, indent=2) + "\n", encoding="utf-8"
        )
    if head is not None and labels is not None:
        save_file({k: v.detach().cpu().contiguous() for k, v in head.state_dict().items()}, folder / HEAD)


def read_head(folder: Path, classifier: nn.Linear | None) -> dict[str, Tensor] | None:
    """The state of a delivered model's head."""
    if (folder / HEAD).is_file():
        return load_file(folder / HEAD)
    return None if classifier is None else {k: v.detach().clone() for k, v in classifier.state_dict().items()}


def read_vit(folder: Path, dropout: float | None, random: bool, native: bool) -> tuple[ViTModel, dict[str, Any], Any]:
    """(network, receipt, state of the head of a delivered, `native` model). DINOv2 scales its residual branches: the scales are multiplied
    into their last layers."""
    config = read_config(folder)
    config.pool = getattr(config, "pool", VITS[config.model_type])
    sizes = _as_vit(config, dropout)
    dino = config.model_type == "dinov2"
    with_head = native and classifies(folder)
    if with_head:
        auto: Any = Dinov2ForImageClassification if dino else ViTForImageClassification
        sizes.num_labels = config.num_labels
    else:
        auto = Dinov2Model if dino else ViTModel
    options = {} if dino or with_head else {"add_pooling_layer": False}
    full, loaded = pretrained(auto, folder, config if dino else sizes, random, **options)
    classifier: nn.Linear | None = full.classifier if with_head else None
    if not dino:
        return full.base_model, loaded, read_head(folder, classifier) if native else None
    base = ViTModel(sizes, add_pooling_layer=False)
    base.load_state_dict(_from_dino(full.base_model.state_dict()))
    if classifier is not None:  # of class token and mean of the patches, side by side
        first, mean = classifier.weight.detach().chunk(2, 1)
        classifier.weight = nn.Parameter((first if config.pool == "class" else mean).clone())
    return base, loaded, read_head(folder, classifier) if native else None


@torch.no_grad()
def write_vit(folder: Path, base: ViTModel, head: nn.Module | None, labels: Sequence[str] | None, multi: bool) -> None:
    """Without a linear head of these labels as ViTModel; with one as ViTForImageClassification, which looks at the class token, or, for
    the mean of the patches, as Dinov2ForImageClassification: the same blocks, and a classifier that sees that mean too."""
    state = {name: tensor.detach().float().cpu() for name, tensor in base.state_dict().items()}
    config, width = copy.deepcopy(base.config), base.config.hidden_size
    in_words = fits(head, labels) and (config.pool == "class" or config.intermediate_size % width == 0)
    config.num_labels = len(labels) if in_words and labels is not None else config.num_labels
    if not in_words:
        full: Any = ViTModel(config, add_pooling_layer=False)
        full.load_state_dict(state)
        return write(folder, full, head, labels, multi)
    assert isinstance(head, nn.Linear)
    if config.pool == "class":
        full = ViTForImageClassification(config)
        full.vit.load_state_dict(state)
        full.classifier.load_state_dict({k: v.float() for k, v in head.state_dict().items()})
    else:
        full = Dinov2ForImageClassification(_as_dino(config))
        full.dinov2.load_state_dict(_to_dino(state, full.dinov2.state_dict()))
        full.classifier.weight.copy_(torch.cat([torch.zeros_like(head.weight), head.weight], 1))
        full.classifier.bias.copy_(head.bias)
    return write(folder, full, None, labels, multi)


def _as_vit(config: PretrainedConfig, dropout: float | None) -> ViTConfig:
    inner = getattr(config, "intermediate_size", None) or int(config.hidden_size * config.mlp_ratio)
    rates = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    return ViTConfig(
        intermediate_size=inner,
        **{k: getattr(config, k) for k in (*_SHARED, "pool")},
        **{k: getattr(config, k) if dropout is None else dropout for k in rates},
    )


def _as_dino(config: ViTConfig) -> Dinov2Config:
    shared = {k: getattr(config, k) for k in (*_SHARED, "pool", "num_labels")}
    return Dinov2Config(mlp_ratio=config.intermediate_size // config.hidden_size, use_mask_token=False, **shared)


_SHARED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
)


def _from_dino(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in state.items():
        if "mask_token" in name or "layer_scale" in name:
            continue
        block, _, part = name.partition(".attention.o_proj.") if ".attention.o_proj." in name else name.partition(".mlp.fc2.")
        if part:  # the last layer of a branch
            scale = state[f"{block}.layer_scale{1 if 'o_proj' in name else 2}.lambda1"]
            tensor = tensor * (scale[:, None] if part == "weight" else scale)
        for theirs, ours in BLOCK.items():
            name = name.replace(f".{theirs}.", f".{ours}.")
        found[name.replace("encoder.layer.", "layers.")] = tensor
    return found


def _to_dino(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {name: torch.ones_like(tensor) for name, tensor in like.items() if "layer_scale" in name}
    for name, tensor in state.items():
        for theirs, ours in BLOCK.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        found[f"encoder.layer.{name.removeprefix('layers.')}" if name.startswith("layers.") else name] = tensor
    return found


class _Whole(nn.Module):
    """pixel_values [B, C, S, S] -> logits [B, labels], or hidden states [B, T, D] of a network without a head."""

    def __init__(self, model: Any):
        super().__init__()
        self.model, self.layer = model, None
        if model.head_state is not None:
            if set(model.head_state) != {"weight", "bias"}:
                raise BadInput("export: a vote of neighbours is no layer that could be exported; fine-tune with task.tune=probe")
            self.layer = nn.Linear(*reversed(model.head_state["weight"].shape))
            self.layer.load_state_dict(model.head_state)

    def forward(self, pixel_values: Tensor) -> Tensor:
        batch = {"pixels": pixel_values}
        hidden = self.model.encode(batch)
        return hidden if self.layer is None else self.layer(self.model.pool(hidden, batch))


def vision_graph(folder: Path, kind: str | None, module: nn.Module | None = None) -> Graph:
    """A delivered model, for exports: batch size free. No class of transformers where it is ours alone, or its head is, or where the
    folder is not all of it (`module` is)."""
    processor = Pixels.load(folder)
    model = vision_backbone(folder).load(folder, kind, None, native=True)
    auto: Any = AutoModelForImageClassification if model.head_state is not None else AutoModel
    if settings(folder)["model_type"] == OWN or (folder / HEAD).is_file() or module is not None:
        auto = None
    example = (torch.zeros(2, processor.channels, processor.size, processor.size),)
    free = ({0: Dim("batch", min=1, max=4096)},)
    beside = ("preprocessor_config.json", "calibration.json")
    return Graph((module or _Whole(model)).eval(), example, free, ("pixel_values",), folder, auto, beside)

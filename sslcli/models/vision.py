"""Any encoder of pictures that transformers knows, behind Backbone."""

import copy
import inspect
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from sslcli.core import Backbone, Batch
from sslcli.errors import BadCheckpoint, printable
from sslcli.hf import vision
from sslcli.hf.pretrained import pretrained, read_config, set_dropout


class Vision(Backbone):
    """Hidden states: first the vector of a picture that the family's classifier is linear in, then its last states or map, place by
    place. Where a family has no such vector, the mean of the places stands for it."""

    def __init__(self, full: PreTrainedModel, loaded: dict[str, Any]):
        super().__init__()
        config, self.base, self.loaded = full.config, full.base_model, loaded
        self.family = str(config.model_type)
        channels, size = getattr(config, "num_channels", 3), _side(config)
        self.resizes = size if "interpolate_pos_encoding" in inspect.signature(self.base.forward).parameters else None
        self.eval()
        with torch.no_grad():
            places = _places(self.base(pixel_values=torch.zeros(1, channels, size, size)).last_hidden_state)
        self.dim, self.stride = places.shape[-1], size / math.isqrt(places.shape[1])
        name, last = _classifier(full)
        self.top = _Top(full, name) if last is not None and last.in_features == self.dim else None
        self.head_state: dict[str, Tensor] | None = None

    @classmethod
    def load(cls, folder: Path, kind: str | None, dropout: float | None, random: bool = False, native: bool = False) -> "Vision":
        """`random`: the architecture with untrained weights; `native`: a delivered model, whose head is then in `head_state`."""
        config = read_config(folder)
        if dropout is not None:
            set_dropout(config, dropout)
        full, loaded = _network(folder, config, random)
        last = _classifier(full)[1] if vision.classifies(folder) else None
        self = cls(full, loaded)
        self.head_state = vision.read_head(folder, last if self.top is not None else None) if native else None
        return self

    @property
    def embedding(self) -> nn.Module:  # type: ignore[override]
        try:
            return self.base.get_input_embeddings()
        except (NotImplementedError, AttributeError):
            return next(self.base.children())

    def grid(self, size: int) -> int:
        """Places a side of a picture of `size` pixels a side."""
        return math.ceil(size / self.stride)

    def encode(self, batch: Batch) -> Tensor:
        """[B, 1 + places, D]"""
        pixels = batch["pixels"].to(next(self.base.parameters()).dtype)
        other = self.resizes not in (None, pixels.shape[-1])
        output = self.base(pixel_values=pixels, **({"interpolate_pos_encoding": True} if other else {}))
        places = _places(output.last_hidden_state)
        first = self.top(pixels, output) if self.top is not None else places.mean(1)
        return torch.cat([first[:, None], places], 1)

    def pool(self, hidden: Tensor, batch: Batch) -> Tensor:
        return hidden[:, 0]

    def checkpoint_gradients(self) -> None:
        if not self.base.supports_gradient_checkpointing:
            return super().checkpoint_gradients()
        return self.base.activation_checkpointing_enable({"use_reentrant": False})

    def compile(self, **options: Any) -> None:
        self.base.compile(**{**options, "dynamic": None})

    def save(self, folder: Path, head: nn.Module | None = None, labels: list[str] | None = None, multi: bool = False) -> None:
        """The family's own class, if need be with its classifier; a head that this cannot hold in a file beside."""
        if self.top is None or not vision.fits(head, labels):
            return vision.write(folder, copy.deepcopy(self.base), head, labels, multi)
        assert isinstance(head, nn.Linear)
        return vision.write(folder, self.top.whole(self.base, head), None, labels, multi)


class _Top(nn.Module):
    """What a family's classifier does between the network and its last layer."""

    def __init__(self, full: PreTrainedModel, last: str):
        super().__init__()
        self.full, self.last, self.prefix = full, last, full.base_model_prefix
        setattr(full, self.prefix, _Given())
        full.set_submodule(last, nn.Identity())

    def forward(self, pixels: Tensor, output: Any) -> Tensor:
        """[B, D], of the network's output on `pixels`"""
        given = getattr(self.full, self.prefix)
        given.output = output
        try:
            return self.full(pixel_values=pixels).logits
        finally:
            given.output = None

    def whole(self, base: nn.Module, head: nn.Linear) -> PreTrainedModel:
        full = copy.deepcopy(self.full)
        setattr(full, self.prefix, copy.deepcopy(base))
        full.set_submodule(self.last, copy.deepcopy(head))
        return full


class _Given(nn.Module):
    """Stands where the network stood: returns the output that was handed over."""

    output: Any = None

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.output


def _network(folder: Path, config: PretrainedConfig, random: bool) -> tuple[PreTrainedModel, dict[str, Any]]:
    """With the family's classifier around it, where there is one."""
    if config.model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        full, loaded = pretrained(AutoModelForImageClassification, folder, config, random)
        if full.base_model is not full:
            return full, loaded
    full, loaded = pretrained(AutoModel, folder, config, random)
    if full.main_input_name != "pixel_values":
        what = f"a model of the {printable(config.model_type)} family does not look at pictures alone"
        raise BadCheckpoint(f"from={printable(folder)}: {what}; choose an encoder of pictures")
    return full, loaded


def _classifier(full: PreTrainedModel) -> tuple[str, nn.Linear | None]:
    """The one linear layer outside the network, and its name."""
    outside = [(n, m) for n, m in full.named_modules() if isinstance(m, nn.Linear) and not n.startswith(f"{full.base_model_prefix}.")]
    if full.base_model is full or len(outside) != 1:
        return "", None
    return outside[0]


def _places(hidden: Tensor) -> Tensor:
    """[B, T, D] as it is, a map [B, D, h, w] place by place."""
    return hidden if hidden.ndim == 3 else hidden.flatten(2).transpose(1, 2)


def _side(config: PretrainedConfig) -> int:
    size = getattr(config, "image_size", 224)
    return int(size if isinstance(size, int) else size[0])

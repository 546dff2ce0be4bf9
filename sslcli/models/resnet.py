"""Residual networks (He et al. 2016), with the first layer of their authors or one for small pictures."""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel

from sslcli.core import Backbone, Batch
from sslcli.data.pixels import Pixels
from sslcli.errors import BadCheckpoint, printable
from sslcli.hf import vision
from sslcli.hf.pretrained import pretrained, read_config, receipt

SMALL = 64  # pixels a side up to which stem=auto takes the small one
DEPTHS: dict[int, tuple[list[int], str]] = {
    18: ([2, 2, 2, 2], "basic"),
    34: ([3, 4, 6, 3], "basic"),
    50: ([3, 4, 6, 3], "bottleneck"),
}


class Resnet(Backbone):
    """`stem`: standard halves the picture twice before the first block (7x7 convolution, max-pool); small does not (3x3, stride 1), as
    is usual for CIFAR. `width`: channels of the first stage, 64 in the paper. Hidden states are the last map, place by place."""

    fresh_rate = 10.0  # BatchNorm bears it; at a tenth, what begins from scratch is far from learnt in a few hundred steps

    def __init__(
        self,
        processor: Pixels,
        *,
        depth: Literal[18, 34, 50],
        width: Annotated[int, Field(ge=8)],
        stem: Literal["auto", "small", "standard"],
    ):
        super().__init__()
        blocks, layer = DEPTHS[depth]
        config = ResNetConfig(
            num_channels=processor.channels,
            embedding_size=width,
            hidden_sizes=[width * (4 if layer == "bottleneck" else 1) * 2**i for i in range(4)],
            depths=blocks,
            layer_type=layer,
        )
        config.stem = ("small" if processor.size <= SMALL else "standard") if stem == "auto" else stem
        self._adopt(_network(config))
        self.loaded: dict[str, Any] = {"tensors": 0, "new": len(list(self.base.parameters())), "unused": [], "from": None}
        self.head_state: dict[str, Tensor] | None = None

    @classmethod
    def load(cls, folder: Path, kind: str | None, dropout: float | None, random: bool = False, native: bool = False) -> "Resnet":
        """From a model folder of transformers' ResNet or of ours. `random`: its architecture with untrained weights; `native`: a
        delivered model, whose head is then in `head_state`."""
        self = cls.__new__(cls)
        Backbone.__init__(self)
        with_head = native and vision.classifies(folder)
        classifier: nn.Linear | None = None
        said = vision.settings(folder)
        if said["model_type"] == vision.OWN:
            config = ResNetConfig.from_dict({k: v for k, v in said.items() if k != "model_type"})
            base, self.loaded = _own(folder, config, random)
        else:
            auto = ResNetForImageClassification if with_head else ResNetModel
            full, self.loaded = pretrained(auto, folder, read_config(folder), random)
            base, classifier = full.base_model, full.classifier[1] if with_head else None
            base.config.stem = "standard"
        self._adopt(base)
        self.head_state = vision.read_head(folder, classifier) if native else None
        return self

    def _adopt(self, base: ResNetModel) -> None:
        for module in base.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = True
        self.base = base
        self.dim, self.family, self.checkpointing = base.config.hidden_sizes[-1], "resnet", False
        self.halvings = 3 if base.config.stem == "small" else 5

    @property
    def embedding(self) -> nn.Module:  # type: ignore[override]
        return self.base.embedder

    def grid(self, size: int) -> int:
        """Places a side of the last map, of a picture of `size` pixels a side."""
        return -(-size // 2**self.halvings)

    def encode(self, batch: Batch) -> Tensor:
        """[B, places, D]. Maps are channels-last, which is faster; weights are not, which costs nothing (measured): a fused optimizer
        would mix up their moments where these come from a checkpoint in the other format."""
        pixels = batch["pixels"].to(self.base.embedder.embedder.convolution.weight.dtype, memory_format=torch.channels_last)
        hidden = self.base.embedder(pixels)
        for stage in self.base.encoder.stages:
            for layer in stage.layers:
                again = self.checkpointing and torch.is_grad_enabled()
                hidden = checkpoint(layer, hidden, use_reentrant=False) if again else layer(hidden)
        return hidden.permute(0, 2, 3, 1).flatten(1, 2)

    def pool(self, hidden: Tensor, batch: Batch) -> Tensor:
        return hidden.mean(1)

    def checkpoint_gradients(self) -> None:
        """Block by block. BatchNorm's running statistics then take in each batch twice."""
        self.checkpointing = True

    def compile(self, **options: Any) -> None:
        """Block by block. Pictures come in few sizes: each is worth a program of its own."""
        for stage in self.base.encoder.stages:
            for layer in stage.layers:
                layer.compile(**{**options, "dynamic": None})

    @torch.no_grad()
    def save(self, folder: Path, head: nn.Module | None = None, labels: list[str] | None = None, multi: bool = False) -> None:
        """With the standard stem what plain transformers loads; with the small one a format of ours, and the head in a file beside."""
        state = {name: tensor.detach().cpu() for name, tensor in self.base.state_dict().items()}
        config = type(self.base.config).from_dict(self.base.config.to_dict())
        own, linear = config.stem == "small", vision.fits(head, labels)
        if own or not linear:
            full: Any = _network(config)
            full.load_state_dict(state)
        else:
            assert isinstance(head, nn.Linear) and labels is not None
            config.num_labels = len(labels)
            full = ResNetForImageClassification(config)
            full.resnet.load_state_dict(state)
            full.classifier[1].load_state_dict(head.state_dict())
        vision.write(folder, full, head if own or not linear else None, labels, multi, vision.OWN if own else None)


def _network(config: ResNetConfig) -> ResNetModel:
    base = ResNetModel(config)
    if config.stem == "small":
        stem = base.embedder
        stem.embedder.convolution = nn.Conv2d(config.num_channels, config.embedding_size, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.embedder.convolution.weight, mode="fan_out", nonlinearity="relu")
        stem.pooler = nn.Identity()
    return base


def _own(folder: Path, config: ResNetConfig, random: bool) -> tuple[ResNetModel, dict[str, Any]]:
    base = _network(config)
    if random:
        return base, receipt(folder, base, {}, True)
    try:
        missing, unexpected = base.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    except (OSError, RuntimeError) as error:  # no such file; a tensor of another shape
        raise BadCheckpoint(f"{printable(folder)}: cannot be loaded: {printable(str(error), 200)}") from error
    return base, receipt(folder, base, {"missing_keys": missing, "unexpected_keys": unexpected}, False)

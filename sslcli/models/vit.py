"""Vision transformers (ViT, Dosovitskiy et al. 2021): transformers' layers, fed with all patches of a picture or with some."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from sslcli.core import Backbone, Batch
from sslcli.data.pixels import Pixels
from sslcli.heads import sincos_positions
from sslcli.hf import attention, vision

TOKENS, LARGEST = 8, 16  # patches a side that patch=auto aims at, and the largest patch that it takes for that
MOST = 4096  # patches of a picture


class Vit(Backbone):
    """Class token, learnt positions, pre-norm blocks, final norm. Other picture sizes than the trained one: positions are interpolated.

    `pool`: mean of the patches, or the class token. A batch may hold `visible` [B, V], numbers of the patches that are encoded at all
    (MAE), or `masked` [B, N] (bool) and `mask_token` [D], which then stands for those patches (SimMIM).
    """

    def __init__(
        self,
        processor: Pixels,
        *,
        layers: Annotated[int, Field(ge=1)],
        width: Annotated[int, Field(ge=8)],
        heads: Annotated[int, Field(ge=1)],
        inner: Annotated[int, Field(ge=8)],
        patch: Annotated[int, Field(ge=1)] | Literal["auto"],
        pool: Literal["mean", "class"],
        dropout: Annotated[float, Field(ge=0, lt=1)],
    ):
        super().__init__()
        config = ViTConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=inner,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            layer_norm_eps=1e-6,
            image_size=processor.size,
            patch_size=_fitting(processor.size) if patch == "auto" else patch,
            num_channels=processor.channels,
            pool=pool,
        )
        if config.image_size % config.patch_size:
            raise ValueError(f"patch={patch} does not divide pictures of {processor.size} pixels a side; change it or data.size")
        if (config.image_size // config.patch_size) ** 2 > MOST:
            raise ValueError(f"patch={patch} cuts pictures of {processor.size} pixels a side into more than {MOST:,} patches; raise it")
        self._adopt(ViTModel(config, add_pooling_layer=False))
        self._start()
        self.loaded: dict[str, Any] = {"tensors": 0, "new": len(list(self.base.parameters())), "unused": [], "from": None}
        self.head_state: dict[str, Tensor] | None = None

    @staticmethod
    def contradiction(keys: Mapping[str, Any]) -> str | None:
        width, heads = keys["width"], keys["heads"]
        if width % 4:
            return f"width={width} is not divisible by 4, as sine and cosine positions need"
        return f"width={width} is not divisible by heads={heads}; {heads} heads need a multiple of {heads}" if width % heads else None

    @classmethod
    def load(cls, folder: Path, kind: str | None, dropout: float | None, random: bool = False, native: bool = False) -> "Vit":
        """From a model folder of ViT, ViT-MAE or DINOv2. `random`: its architecture with untrained weights; `native`: a delivered
        model, whose head is then in `head_state`."""
        self = cls.__new__(cls)
        Backbone.__init__(self)
        base, self.loaded, self.head_state = vision.read_vit(folder, dropout, random, native)
        self._adopt(base)
        if random:
            self._start()
        return self

    def _adopt(self, base: ViTModel) -> None:
        config = base.config
        attention.register()
        base.set_attn_implementation("sslcli")
        self.dim, self.family, self.patch, self.pooling = config.hidden_size, "vit", config.patch_size, config.pool
        self.side = config.image_size // config.patch_size
        patches = base.embeddings.patch_embeddings
        patches.projection = _Projection(config.num_channels * config.patch_size**2, patches.projection)
        self.base = base

    @property
    def embedding(self) -> nn.Module:  # type: ignore[override]
        return self.base.embeddings.patch_embeddings.projection

    @torch.no_grad()
    def _start(self) -> None:
        """As MAE begins: matrices by their width, positions as waves; what it keeps fixed is learnt from there."""
        for module in self.base.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        nn.init.xavier_uniform_(self.embedding.get_parameter("weight").flatten(1))
        nn.init.normal_(self.base.embeddings.cls_token, std=0.02)
        positions: Tensor = self.base.embeddings.position_embeddings
        positions.zero_()[0, 1:] = sincos_positions(self.side, self.dim)

    def grid(self, size: int) -> int:
        """Patches a side of a picture of `size` pixels a side."""
        return size // self.patch

    def patches(self, pixels: Tensor) -> Tensor:
        """[B, C, s, s] -> [B, N, patch * patch * C], row by row; inside a patch too, the channels of a pixel side by side."""
        side, patch = self.grid(pixels.shape[-1]), self.patch
        pixels = pixels[..., : side * patch, : side * patch]
        cut = pixels.unflatten(-1, (side, patch)).unflatten(-3, (side, patch))  # [B, C, side, patch, side, patch]
        return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def encode(self, batch: Batch) -> Tensor:
        """[B, 1 + N, D] (or 1 + V): the class token first."""
        table = self.base.embeddings.position_embeddings
        patches = self.patches(batch["pixels"].to(table.dtype))
        positions = self._positions(math.isqrt(patches.shape[1]))
        here = positions[:, 1:]
        if "visible" in batch:
            patches, here = _taken(patches, batch["visible"]), _taken(here.expand(patches.shape[0], -1, -1), batch["visible"])
        tokens = self.embedding(patches)
        if "masked" in batch:
            tokens = torch.where(batch["masked"][..., None], batch["mask_token"].to(tokens.dtype), tokens)
        first = self.base.embeddings.cls_token + positions[:, :1]
        hidden = self.base.embeddings.dropout(torch.cat([first.expand(tokens.shape[0], -1, -1), tokens + here], 1))
        for layer in self.base.layers:
            hidden = layer(hidden)
        return self.base.layernorm(hidden)

    def _positions(self, side: int) -> Tensor:
        """[1, 1 + side * side, D]"""
        table = self.base.embeddings.position_embeddings
        if side == self.side:
            return table
        square = table[:, 1:].float().unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        square = F.interpolate(square, (side, side), mode="bicubic", align_corners=False)
        return torch.cat([table[:, :1], square.flatten(2).transpose(1, 2).to(table.dtype)], 1)

    def pool(self, hidden: Tensor, batch: Batch) -> Tensor:
        return hidden[:, 0] if self.pooling == "class" else hidden[:, 1:].mean(1)

    def checkpoint_gradients(self) -> None:
        self.base.activation_checkpointing_enable({"use_reentrant": False})

    def compile(self, **options: Any) -> None:
        """Block by block. Pictures come in few sizes: each is worth a program of its own."""
        for layer in self.base.layers:
            layer.compile(**{**options, "dynamic": None})

    def save(self, folder: Path, head: nn.Module | None = None, labels: list[str] | None = None, multi: bool = False) -> None:
        """What plain transformers loads: see hf.vision.write_vit."""
        vision.write_vit(folder, self.base, head, labels, multi)


class _Projection(nn.Conv2d):
    """The convolution that embeds patches, under its own name and shape, as the one matrix product that it is: [B, N, P] -> [B, N, D]."""

    def __init__(self, inputs: int, old: nn.Conv2d):
        super().__init__(old.in_channels, old.out_channels, old.kernel_size, old.stride, device="meta")  # type: ignore[arg-type]
        self.inputs, self.weight, self.bias = inputs, old.weight, old.bias

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches, self.weight.permute(0, 2, 3, 1).reshape(-1, self.inputs), self.bias)


def _taken(rows: Tensor, places: Tensor) -> Tensor:
    """[B, N, D] at [B, V] -> [B, V, D]."""
    return rows.gather(1, places[..., None].expand(-1, -1, rows.shape[-1]))


def _fitting(size: int) -> int:
    """The patch that cuts `size` pixels into about TOKENS parts (larger pictures: into more, of LARGEST pixels)."""
    wanted = min(max(size / TOKENS, 2), LARGEST)  # one pixel is no patch
    return min((p for p in range(1, size + 1) if size % p == 0), key=lambda p: abs(math.log(p / wanted)))

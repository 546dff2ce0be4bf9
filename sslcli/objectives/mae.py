"""Most patches are left out; from the few that the encoder sees, a small decoder paints them (MAE, He et al. 2022)."""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from sslcli.core import Backbone, Batch, Output
from sslcli.data import chance
from sslcli.data.store import Store
from sslcli.heads import ImageObjective, Layer, sincos_positions, unpatched
from sslcli.losses import spread

Count = Annotated[int, Field(ge=1)]


class MAE(ImageObjective):
    """`ratio` of the patches is hidden. The loss is the squared error of hidden patches alone, each (`normalise`) with mean 0 and
    deviation 1, which asks for structure instead of brightness."""

    lr_times_width = 0.2
    batch_size = 256

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        ratio: Annotated[float, Field(gt=0, lt=1)],
        layers: Count,
        width: Count,
        heads: Count,
        normalise: bool,
    ):
        if not hasattr(model, "patches"):
            raise ValueError("mae hides patches from a vision transformer, this network has none; use model=vit_tiny")
        super().__init__(processor)
        side, content = model.grid(processor.size), processor.channels * model.patch**2
        if normalise and content == 1:
            raise ValueError("normalise=true divides by the spread inside a patch, and a patch is one value here; use a larger model.patch")
        self.ratio, self.normalise, self.patches = ratio, normalise, side * side
        self.seen = max(1, int(self.patches * (1 - ratio)))
        self.enter, self.leave = nn.Linear(model.dim, width), nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Linear(width, content))
        self.decoder = nn.ModuleList(Layer(width, heads, 4 * width) for _ in range(layers))
        self.mask = nn.Parameter(torch.zeros(width))
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(side, width), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask, std=0.02)

    @staticmethod
    def contradiction(keys: Mapping[str, Any]) -> str | None:
        width, heads = keys["width"], keys["heads"]
        if width % 4:
            return f"width={width} is not divisible by 4, as the decoder's sine and cosine positions need"
        return f"width={width} is not divisible by heads={heads}; {heads} heads need a multiple of {heads}" if width % heads else None

    def read(self, store: Store, rows: np.ndarray, keys: np.ndarray) -> Batch:
        """Adds `visible` [B, V] and `hidden` [B, N - V], numbers of patches."""
        order = torch.from_numpy(np.argsort(chance.uniform(keys, self.patches, stream=1), 1))
        visible, hidden = order[:, : self.seen].contiguous(), order[:, self.seen :].contiguous()
        return {**super().read(store, rows, keys), "visible": visible, "hidden": hidden}

    def forward(self, model: Any, batch: Batch) -> Output:
        pixels = self.views(batch)[0]
        encoded, painted = self._paint(model, pixels, batch)
        target = _taken(model.patches(pixels), batch["hidden"])
        loss = (painted - (_normalised(target) if self.normalise else target)).square().mean()
        vector = encoded.detach().mean(1)
        return Output(loss, {"spread": spread(vector)}, seen={"first": vector})

    def _paint(self, model: Backbone, pixels: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(what the encoder makes of the visible patches, the hidden ones [B, N - V, P] as the decoder paints them)."""
        visible, hidden = batch["visible"], batch["hidden"]
        encoded = model.encode({"pixels": pixels, "visible": visible})
        tokens = self.enter(encoded)
        first = tokens.shape[1] - visible.shape[1]  # the class token, which has no place
        # attention does not look at the order of its tokens: each gets its place's position, nothing is put back in order
        places = torch.cat([visible, hidden], 1)
        patches = torch.cat([tokens[:, first:], self.mask.to(tokens.dtype).expand(*hidden.shape, -1)], 1)
        patches = patches + self.positions.to(tokens.dtype)[places]
        tokens = torch.cat([tokens[:, :first], patches], 1)
        for layer in self.decoder[:-1]:
            tokens = layer(tokens)
        return encoded, self.leave(self.decoder[-1](tokens, hidden.shape[1])).float()  # nobody asks for the visible ones

    @torch.no_grad()
    def reconstruct(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(original, with hidden patches grey, with hidden patches painted), [B, C, S, S] between 0 and 1."""
        pixels, hidden = self.processor.plain(batch["pixels"]), batch["hidden"]
        patches, painted = model.patches(pixels), self._paint(model, pixels, batch)[1]
        if self.normalise:  # brightness and contrast of a patch were not asked for: they are lent by the original
            target = _taken(patches, hidden)
            painted = painted * _deviation(target) + target.mean(-1, keepdim=True)
        where = hidden[..., None].expand(-1, -1, patches.shape[-1])
        grey, whole = patches.scatter(1, where, torch.zeros_like(painted)), patches.scatter(1, where, painted)
        return self.picture(pixels), self.picture(unpatched(model, grey, pixels)), self.picture(unpatched(model, whole, pixels))

    def receipt(self, stream: Any) -> dict[str, Any]:
        batch = stream.batches(0)[0]
        hidden = batch["hidden"].shape[1] / self.patches
        assert abs(hidden - self.ratio) <= 1 / self.patches + 1e-6, f"{hidden:.3f} of the patches are hidden, not {self.ratio}"
        return {"masked": {"asked": self.ratio, "measured": round(hidden, 4)}}


def _taken(patches: Tensor, places: Tensor) -> Tensor:
    """[B, N, P] at [B, M] -> [B, M, P]."""
    return patches.gather(1, places[..., None].expand(-1, -1, patches.shape[-1]))


def _deviation(patches: Tensor) -> Tensor:
    return (patches.var(-1, keepdim=True) + 1e-6).sqrt()


def _normalised(patches: Tensor) -> Tensor:
    return (patches - patches.mean(-1, keepdim=True)) / _deviation(patches)

"""Squares of a picture are masked, the whole is encoded, and one linear layer says the missing pixels (SimMIM, Xie et al. 2022)."""

import math
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from sslcli.core import Backbone, Batch, Output
from sslcli.data import chance
from sslcli.data.store import Store
from sslcli.heads import ImageObjective, unpatched
from sslcli.losses import spread


class SimMIM(ImageObjective):
    """`ratio` of the picture is masked in squares of `square` patches a side. The loss is the mean absolute error of masked pixels."""

    lr_times_width = 0.2
    batch_size = 256

    def __init__(self, model: Any, processor: Any, *, ratio: Annotated[float, Field(gt=0, lt=1)], square: Annotated[int, Field(ge=1)]):
        if not hasattr(model, "patches"):
            raise ValueError("simmim masks patches of a vision transformer, this network has none; use model=vit_tiny")
        super().__init__(processor)
        self.ratio, self.square, self.side = ratio, square, model.grid(processor.size)
        self.squares = -(-self.side // square)  # a side; those at the edge may be cut
        self.masked = max(1, math.ceil(round(self.squares**2 * ratio, 6)))  # up, as the authors round
        if self.masked == self.squares**2:
            raise ValueError(f"square={square}: none of {self.squares}x{self.squares} squares would be seen; lower square or ratio")
        self.head = nn.Linear(model.dim, processor.channels * model.patch**2)
        self.mask = nn.Parameter(torch.zeros(model.dim))
        nn.init.trunc_normal_(self.mask, std=0.02)

    def read(self, store: Store, rows: np.ndarray, keys: np.ndarray) -> Batch:
        """Adds `masked` [B, N], bool; the weight is their number."""
        order = np.argsort(chance.uniform(keys, self.squares**2, stream=1), 1)
        masked = np.zeros(order.shape, bool)
        np.put_along_axis(masked, order[:, : self.masked], True, 1)
        squares = masked.reshape(-1, self.squares, self.squares).repeat(self.square, 1).repeat(self.square, 2)
        patches = torch.from_numpy(squares[:, : self.side, : self.side].reshape(len(rows), -1))
        return {**super().read(store, rows, keys), "masked": patches, "weight": patches.sum().float()}

    def forward(self, model: Any, batch: Batch) -> Output:
        pixels, masked = self.views(batch)[0], batch["masked"]
        hidden, said = self._say(model, pixels, masked)
        error = (said - model.patches(pixels)).abs().mean(-1)  # [B, N]
        vector = hidden.detach().mean(1)
        return Output((error * masked).sum() / masked.sum(), {"spread": spread(vector)}, seen={"first": vector})

    def _say(self, model: Backbone, pixels: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """(hidden states, pixels of every patch [B, N, P])."""
        hidden = model.encode({"pixels": pixels, "masked": masked, "mask_token": self.mask})
        return hidden, self.head(hidden[:, -masked.shape[1] :]).float()

    @torch.no_grad()
    def reconstruct(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(original, with masked squares grey, with masked squares as they are said), [B, C, S, S] between 0 and 1."""
        pixels, masked = self.processor.plain(batch["pixels"]), batch["masked"][..., None]
        patches, said = model.patches(pixels), self._say(model, pixels, batch["masked"])[1]
        grey, whole = patches.masked_fill(masked, 0), torch.where(masked, said, patches)
        return self.picture(pixels), self.picture(unpatched(model, grey, pixels)), self.picture(unpatched(model, whole, pixels))

    def receipt(self, stream: Any) -> dict[str, Any]:
        measured = float(stream.batches(0)[0]["masked"].float().mean())
        assert abs(measured - self.ratio) < 0.05 + 1 / self.squares**2, f"{measured:.3f} of the patches are masked, not {self.ratio}"
        return {"masked": {"asked": self.ratio, "measured": round(measured, 4)}}

"""Learnt keys and values before those of every attention (prefix tuning, Li and Liang 2021; Liu et al. 2022)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sslcli.errors import BadCheckpoint, printable
from sslcli.hf.targets import ATTENTION
from sslcli.hf.tuning import Learnt


class Prefix(Learnt):
    """They begin as those of `tokens` random words (or patches) of an input: Li and Liang found that to matter with few labels.

    Attention itself (hf.attention) puts them in, so hidden states keep their places, and padding may be skipped.
    """

    type = "PREFIX_TUNING"
    said: ClassVar[Mapping[str, str]] = {"num_virtual_tokens": "tokens"}
    part = ATTENTION
    merges = False

    def __init__(self, *, tokens: Annotated[int, Field(ge=1, le=512)], load: str | None):
        super().__init__(None, load)
        self.tokens = tokens

    def _take(self, folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        if "num_layers" in settings:  # which the library writes and this tool does not
            what = (
                "was made by the library peft, which counts a prefix among the positions; here it takes none, and would say something else"
            )
            raise BadCheckpoint(f"peft.load={printable(folder)}: {what}. Train it here, or use the library for it")
        super()._take(folder, settings, tensors)

    def put(self, model: Any) -> None:
        if model.base.config._attn_implementation != "sslcli":
            raise ValueError(f"models of the {model.family} family compute attention in a way that takes no prefix; use peft=lora")
        layers = [model.base.get_submodule(n) for n in self.names]
        seen = _Seen()
        for layer in layers:
            layer.__dict__["prefix"] = seen
        with torch.no_grad():
            model.eval().encode(_some(model, self.tokens))
        if len(seen.found) != len(layers) or seen.found[0].shape[3] < self.tokens:
            raise ValueError(f"tokens={self.tokens}: more than a picture of this size has patches; lower it")
        model.prefixes = nn.ModuleList(_Prefix(x[:, 0, :, : self.tokens]) for x in seen.found)
        for layer, prefix in zip(layers, model.prefixes, strict=True):
            layer.__dict__["prefix"] = prefix

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "task_type": "FEATURE_EXTRACTION"}

    def tensors(self) -> dict[str, Tensor]:
        """As the library has them: [n, layers * 2 * D]"""
        rows = [x.weight.detach().permute(2, 0, 1, 3).flatten(1) for x in self.model.prefixes]
        return {"prompt_embeddings": torch.cat(rows, 1)}

    @torch.no_grad()
    def set(self, tensors: Mapping[str, Tensor]) -> None:
        for prefix, rows in zip(self.model.prefixes, tensors["prompt_embeddings"].chunk(len(self.model.prefixes), 1), strict=True):
            _, heads, n, width = prefix.weight.shape
            prefix.weight.copy_(rows.view(n, 2, heads, width).permute(1, 2, 0, 3))


class _Prefix(nn.Module):
    """weight [2, H, n, d]: keys and values"""

    def __init__(self, start: Tensor):
        super().__init__()
        self.weight = nn.Parameter(start.clone())

    def forward(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H, T, d] -> [B, H, n + T, d]"""
        first, second = self.weight.to(key.dtype)[:, None].expand(-1, key.shape[0], -1, -1, -1)
        return torch.cat([first, key], 2), torch.cat([second, value], 2)


class _Seen:
    """Stands where a prefix will be, and takes down the keys and values that go by."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def __call__(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self.found.append(torch.stack([key, value]))  # [2, B, H, T, d]
        return key, value


def _some(model: Any, tokens: int) -> dict[str, Tensor]:
    """An input of so many random words, or of noise."""
    if hasattr(model, "patches"):
        config = model.base.config
        return {"pixels": torch.randn(1, config.num_channels, config.image_size, config.image_size)}
    return {"ids": torch.randint(len(model.embedding.weight), (1, tokens))}

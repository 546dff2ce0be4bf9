"""A finished model as a function of tensors: what exports write down."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import AutoModel

from sslcli.data.tokenizer import quiet_transformers
from sslcli.hf.pooling import embedding


@dataclass
class Graph:
    module: nn.Module  # positional tensors in; logits [B, labels] or [B, T, labels], hidden states [B, T, D] or their vectors [B, D] out
    example: tuple[Tensor, ...]
    shapes: tuple[dict[int, Any], ...]  # which axes of the inputs are free
    names: Sequence[str]  # of the inputs, as transformers calls them
    model: Path  # the folder that it was read from
    auto: Any  # the class of plain transformers that loads this folder; None: there is none
    beside: Sequence[str] = field(default_factory=tuple)  # files of that folder that a user of the export needs
    pooling: str | None = None  # how the states of a text become its vector (hf.pooling), where that is what comes out

    def trace(self) -> ExportedProgram:
        logging.getLogger("torch.export").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(self.module, self.example, dynamic_shapes=(*self.shapes,), strict=False)


class Plain(nn.Module):
    """A text model of plain transformers: (input_ids, attention_mask) -> one tensor."""

    def __init__(self, model: Path, auto: Any, pooling: str | None = None):
        super().__init__()
        with quiet_transformers():
            self.full = (auto or AutoModel).from_pretrained(model, local_files_only=True, attn_implementation="sdpa").eval()
        self.decodes = bool(getattr(self.full.config, "use_cache", False)) and (auto is not None or pooling is not None)
        self.pooling = pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        options = {"use_cache": False} if self.decodes else {}
        more = {"output_hidden_states": True} if self.pooling == "first_last" else {}
        return said(self.full(input_ids=input_ids, attention_mask=attention_mask, **options, **more), attention_mask, self.pooling)


def said(output: Any, mask: Tensor | None, pooling: str | None) -> Tensor:
    """Of all that a model of transformers returned, what an export gives."""
    if pooling is not None and mask is not None:
        return embedding(output, mask, pooling)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


class Through(nn.Module):
    """A network and a task of ours: (input_ids, attention_mask) or (pixel_values) -> the task's logits."""

    def __init__(self, model: Any, goal: Any):
        super().__init__()
        self.model, self.goal = model, goal
        if hasattr(model, "packing"):
            model.packing = False  # a program has one path

    def forward(self, first: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.goal.logits(self.model, {"pixels": first} if mask is None else {"ids": first, "mask": mask.bool()})


def text_graph(model: Path, auto: Any, longest: int, pooling: str | None = None, module: nn.Module | None = None) -> Graph:
    """`module`: the network where `model` alone is not all of it."""
    example = (torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long))
    shape = {0: Dim("batch", min=1, max=4096), 1: Dim("length", min=2, max=longest)}
    names = ["input_ids", "attention_mask"]
    beside = ("tokenizer.json", "tokenizer_config.json", "calibration.json")
    known = None if module is not None else auto or AutoModel
    return Graph(module or Plain(model, auto, pooling), example, (shape, shape), names, model, known, beside, pooling)

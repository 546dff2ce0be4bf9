"""A Hugging Face model as a graph: a function of (input_ids, attention_mask) with one result, batch size and length free."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import AutoModel

from sslcli.core import Batch
from sslcli.data.tokenizer import quiet_transformers


class Plain(nn.Module):
    """Positional inputs, one tensor out: logits [B, labels] or [B, T, labels], else hidden states [B, T, D]."""

    def __init__(self, model: Path, auto: Any):
        super().__init__()
        with quiet_transformers():
            self.full = (auto or AutoModel).from_pretrained(model, local_files_only=True, attn_implementation="sdpa").eval()
        self.decodes = bool(getattr(self.full.config, "use_cache", False)) and auto is not None

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        options = {"use_cache": False} if self.decodes else {}
        output = self.full(input_ids=input_ids, attention_mask=attention_mask, **options)
        return output.logits if hasattr(output, "logits") else output.last_hidden_state


def trace(model: Path, auto: Any, longest: int) -> tuple[ExportedProgram, Plain]:
    plain = Plain(model, auto)
    example = (torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long))
    shape = {0: Dim("batch", min=1, max=4096), 1: Dim("length", min=2, max=longest)}
    logging.getLogger("torch.export").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(plain, example, dynamic_shapes=(shape, shape), strict=False), plain


def inputs(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch["ids"], batch["mask"].long()

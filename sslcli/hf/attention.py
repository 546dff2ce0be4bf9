"""Attention for bf16 on CPUs, under the name `sslcli` of the transformers library.

PyTorch's fused kernel there is slow in bf16 (measured on two avx512_bf16 cores, 32 x 4 heads x 128 x 64, forward and backward: 47 ms;
two batched products with a softmax between them: 11 ms), so short sequences take the plain way. All else goes to the library's own.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sslcli.dropout import dropout

PADDED = 0.1  # of a batch's places: with more of them, layers are fed the real tokens alone
LONGEST = 1024  # beyond this the [T, T] scores cost more memory than the product saves time


GROUPS, LEAST = 4, 8  # groups of rows alike in length that attention looks at apart, and rows of a group at least
ROUND = 32  # tokens of a packed batch are a multiple of that, as far as there is padding: oneDNN makes, and keeps, programs for every shape

_layout: list[list[tuple[Tensor, Tensor]]] = []  # of the batch on its way through a network: see `packed`


@contextlib.contextmanager
def packed(mask: Tensor) -> Iterator[None]:
    """Inside, networks get the real tokens of a batch padded as `mask` [B, T] says as one row [1, N, D], some padding after them; only
    attention sees the rows they come from, in groups of (mask of the group, numbers of its true places)."""
    rows = max(LEAST, -(-len(mask) // GROUPS))
    cut = [part[:, : int(part.any(0).nonzero().max()) + 1] for part in mask.split(rows)]
    _layout.append([(part, part.flatten().nonzero()[:, 0]) for part in cut])
    try:
        yield
    finally:
        _layout.pop()


def _apart(module: nn.Module, states: list[Tensor], options: dict[str, Any]) -> tuple[Tensor, None]:
    together = torch.stack([x[0].transpose(0, 1) for x in states])  # [3, N, H, D]
    sizes = [len(places) for _, places in _layout[-1]]
    *parts, rest = together.split([*sizes, together.shape[1] - sum(sizes)], 1)
    found = []
    for (mask, places), part in zip(_layout[-1], parts, strict=True):
        rows = part.new_zeros(3, mask.numel(), *part.shape[2:]).index_copy(1, places, part)
        query, key, value = rows.unflatten(1, mask.shape).transpose(2, 3)
        mixed, _ = _attend(module, query, key, value, mask[:, None, None], **options)
        found.append(mixed.flatten(0, 1)[places])
    return torch.cat([*found, torch.zeros_like(rest[0])])[None], None


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """query, key, value [B, H, T, D] -> [B, T, H, D]."""
    if _layout:
        return _apart(module, [query, key, value], options)
    return _attend(module, query, key, value, attention_mask, **options)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    if (prefix := module.__dict__.get("prefix")) is not None:
        key, value, attention_mask = _prefixed(
            prefix, key, value, attention_mask, options.get("is_causal", getattr(module, "is_causal", False))
        )
    short = query.shape[2] <= LONGEST and key.shape[2] <= LONGEST
    plain = query.dtype == torch.bfloat16 and query.device.type == "cpu" and query.shape[1] == key.shape[1]
    causal = options.get("is_causal", getattr(module, "is_causal", False))
    if not (short and plain) or options.get("position_bias") is not None or options.get("cache") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    scores = (query * options.get("scaling", query.shape[-1] ** -0.5)) @ key.transpose(2, 3)
    if attention_mask is None and causal and query.shape[2] > 1:
        attention_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask
    weights = torch.softmax(scores, -1)
    weights = dropout(weights, options.get("dropout", 0.0), module.training)
    return (weights @ value).transpose(1, 2).contiguous(), None


def _prefixed(
    prefix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], key: Tensor, value: Tensor, mask: Tensor | None, sees_all: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys and values with a module's learnt ones before them, which every query sees (peft=prefix)."""
    length = key.shape[2]
    if mask is None and not sees_all and length > 1:
        mask = torch.ones(length, length, dtype=torch.bool, device=key.device).tril()
    key, value = prefix(key, value)
    if mask is not None:
        mask = F.pad(mask, (key.shape[2] - length, 0), value=1 if mask.dtype == torch.bool else 0)
    return key, value, mask


def _mask(*arguments: Any, **options: Any) -> Tensor | None:
    """The library's [B, 1, T, T]; none of a packed batch, whose rows attention knows (that mask would grow with its square)."""
    return None if _layout else sdpa_mask(*arguments, **options)


def register() -> None:
    if "sslcli" not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register("sslcli", attend)
        ALL_MASK_ATTENTION_FUNCTIONS.register("sslcli", _mask)

"""From the hidden states of a text to its one vector, and how a model folder says so: as the library sentence-transformers does."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sslcli.errors import BadCheckpoint, at, printable

Pooling = Literal["mean", "cls", "max", "last", "first_last"]

FILE = "1_Pooling/config.json"
MODES = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "last": "lasttoken"}  # theirs, as keys of the file have them
WORDS = {**{word: word for word in (*MODES, "first_last")}, "lasttoken": "last", "mean_sqrt_len_tokens": "mean"}
LAYERS = ("Transformer", "Pooling")
MODULES = [
    {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
    for i, kind in enumerate(LAYERS)
]


def pooled(hidden: Tensor, mask: Tensor | None, how: str, first: Tensor | None = None) -> Tensor:
    """hidden [B, T, D], mask [B, T] of the real tokens (padding follows them; None: all are) -> [B, D].

    mean of all tokens; cls: the first one; last: the last one; max over the tokens of each feature; first_last: the mean over the tokens
    of the mean of the first layer's states, `first` [B, T, D], and the last's (Su et al. 2021, Gao et al. 2021).
    """
    if how == "first_last":
        assert first is not None
        hidden = (hidden + first) / 2
    if how == "cls":
        return hidden[:, 0]
    if how == "last":
        places = -1 if mask is None else mask.sum(1).long() - 1
        return hidden[torch.arange(len(hidden), device=hidden.device), places]
    if how == "max":
        return (hidden if mask is None else hidden.masked_fill(~mask[..., None].bool(), -torch.inf)).amax(1)
    if mask is None:
        return hidden.mean(1)
    weight = mask[..., None].to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1)


def embedding(output: Any, mask: Tensor, how: str) -> Tensor:
    """The same of what a network of transformers returned (with its hidden states, where `first_last` looks at them)."""
    return pooled(output.last_hidden_state, mask, how, output.hidden_states[1] if how == "first_last" else None)


def read_pooling(folder: Path) -> str | None:
    """What a model folder says of it, ours or one of sentence-transformers; None where it says nothing."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        modes = [m for m in (*MODES.values(), "mean_sqrt_len_tokens", "weightedmean_tokens") if said.get(f"pooling_mode_{m}")]
        word = said.get("pooling_mode") or {v: k for k, v in MODES.items()}.get(modes[0], modes[0])
    except (ValueError, AttributeError, IndexError, OSError) as error:
        raise BadCheckpoint(f"{at(path)}: does not say how texts are pooled; mend it, or remove it for the mean") from error
    found = WORDS.get(word)  # a sum over the root of the length points where the mean does
    if found is None or len(modes) > 1:
        what = printable(" and ".join(modes) or word)
        raise BadCheckpoint(f"{at(path)}: pools by {what}, which is not known here; choose with pooling=mean")
    return found


def write_pooling(folder: Path, how: str, width: int, longest: int, whole: bool) -> None:
    """`whole`: the folder is a model of vectors, not a classifier, so that SentenceTransformer(folder) may load it."""
    (folder / FILE).parent.mkdir(exist_ok=True)
    modes = {f"pooling_mode_{mode}": how == word for word, mode in MODES.items()}
    more = {"pooling_mode": how} if how not in MODES else {}
    _write(folder / FILE, {"word_embedding_dimension": width, **modes, **more, "include_prompt": True})
    if whole and how in MODES:  # it has no layer that takes the mean of two
        _write(folder / "modules.json", MODULES)
        _write(folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})
        _write(folder / "config_sentence_transformers.json", {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"})


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

"""From checked configuration to the objects of a run."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sslcli.core import Backbone, Objective
from sslcli.data.store import built
from sslcli.data.text import TextData
from sslcli.data.tokenizer import Recipe, Tokenizer, sample
from sslcli.errors import BadCheckpoint, BadInput
from sslcli.hf.folder import model_folder
from sslcli.models.text import Text
from sslcli.schema import Part

LEAST_LOADED = 0.9  # of the network's tensors; below this a pretrained model is not that model


class Modules(nn.Module):
    """Everything that has weights or state: the network, and what objectives own beside it."""

    def __init__(self, model: Backbone, **objectives: Objective):
        super().__init__()
        self.model = model
        for name, objective in objectives.items():
            self.add_module(name, objective)


def tokenizer_of(
    source: str | None,
    recipe: Part[Recipe],
    data: TextData,
    model: Part[Backbone] | None,
    roles: Sequence[str],
    say: Callable[[str], None],
) -> Tokenizer:
    """The pretrained model's own, or one trained on the training text (kept, so that a second run finds it)."""
    if source is not None:
        return Tokenizer.load(model_folder(source))
    decoder = bool(model and model.config.get("architecture") == "gpt2")
    reader = data.reader("train", roles)
    assert reader is not None
    key = {
        "kind": "tokenizer",
        "files": reader.source.fingerprint(),
        "columns": reader.columns,
        "reading": [data.encoding, data.delimiter, data.on_bad_record, data.allow_empty],
        "recipe": recipe.config,
        "decoder": decoder,
    }

    def make(making: Path) -> None:
        kind = Recipe.settled(recipe.config["kind"], decoder)
        say(f"training a {kind} tokenizer of {recipe.config['vocabulary']:,} tokens on the corpus")
        chosen = sample(e["text"] if "text" in e else " ".join(e["tokens"]) for _, _, e in reader)
        reader.finish()
        recipe.build().train(chosen, decoder).save(making)

    return Tokenizer.load(built(key, make))


def backbone_of(
    source: str | None,
    model: Part[Backbone] | None,
    tokenizer: Tokenizer,
    kind: str | None,
    seed: int,
    dropout: float | None = None,
    random: bool = False,
) -> Text:
    """The network with seeded weights; a pretrained one must really be loaded, and must fit its tokenizer."""
    torch.manual_seed(seed)
    if source is None:
        if model is None:
            raise BadInput("model: nothing to start from; give from=<run, folder or hub name>, or model=<name> to train from scratch")
        chosen = model if dropout is None else Part(model.path, model.cls, {**model.config, "dropout": dropout})
        backbone: Text = chosen.build(tokenizer)  # type: ignore[assignment]
    else:
        if model is not None:
            raise BadInput("model: from= brings its own model; leave model= out")
        backbone = Text.load(model_folder(source), kind, dropout, random)
        _check_loaded(backbone.loaded, source, random)
    rows = len(backbone.base.get_input_embeddings().weight)
    if tokenizer.size > rows:
        raise BadCheckpoint(
            f"from={source}: its tokenizer has {tokenizer.size:,} tokens, its model only {rows:,}; they do not belong together"
        )
    return backbone


def _check_loaded(loaded: Mapping[str, Any], source: str, random: bool) -> None:
    body, new = loaded["body_tensors"], loaded["body_new"]
    if not random and body and (body - new) / body < LEAST_LOADED:
        names = ", ".join(loaded["first_lost"][:3])
        raise BadCheckpoint(
            f"from={source}: only {body - new} of the network's {body} tensors are in it (missing {names}, ...); is it the right folder?"
        )


def length_of(data: TextData, model: Text, default: int) -> int:
    """Tokens of a row: what the user asked, within what the model can place."""
    if data.max_length is not None and data.max_length > model.positions:
        raise BadInput(f"data.max_length={data.max_length} is more than the model's {model.positions} positions; lower it")
    return min(data.max_length or default, model.positions)


def parameters(modules: nn.Module) -> dict[str, int]:
    every = list(modules.parameters())
    trainable = sum(p.numel() for p in every if p.requires_grad)
    return {"parameters": sum(p.numel() for p in every), "trainable": trainable}


class Moved:
    """How far training moved the weights, block by block, from a sample of each tensor's values."""

    SAMPLE = 2048

    def __init__(self, modules: nn.Module):
        self.before = {n: self._sample(p) for n, p in modules.named_parameters()}

    def _sample(self, p: torch.Tensor) -> torch.Tensor:
        flat = p.detach().flatten()
        return flat[:: max(1, math.ceil(len(flat) / self.SAMPLE))].float().cpu().clone()

    def receipt(self, modules: nn.Module) -> dict[str, float]:
        """Block -> relative change, |after - before| / |before|."""
        sums: dict[str, list[float]] = {}
        for name, p in modules.named_parameters():
            before = self.before[name]
            held = sums.setdefault(_block(name), [0.0, 0.0])
            held[0] += float((self._sample(p) - before).square().sum())
            held[1] += float(before.square().sum())
        return {k: round(math.sqrt(a / b) if b else math.sqrt(a), 6) for k, (a, b) in sums.items()}


def _block(name: str) -> str:
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: i + 1])
    return ".".join(parts[:3])

"""Weights from a model folder, and a receipt of what was in it."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from sslcli.data.tokenizer import quiet_transformers
from sslcli.errors import BadCheckpoint, printable
from sslcli.hf.screen import screen


def read_config(folder: Path) -> PretrainedConfig:
    """A model folder's config.json, refused where it would run code."""
    screen(folder)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise BadCheckpoint(f"{printable(folder)}: its config.json cannot be used: {printable(str(error).splitlines()[0], 200)}") from error


def pretrained(auto: Any, folder: Path, config: PretrainedConfig, random: bool, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """(network in fp32, receipt). `auto`: the class that loads it; `random`: its architecture with untrained weights."""
    with quiet_transformers():
        if random:
            make = auto.from_config if hasattr(auto, "from_config") else auto
            full = make(config, **options)
            return full, receipt(folder, full, {}, True)
        strict = {"output_loading_info": True, "use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
        try:
            full, info = auto.from_pretrained(folder, config=config, dtype=torch.float32, **strict, **options)
        except Exception as error:  # the library and safetensors raise whatever fits them
            raise BadCheckpoint(f"{printable(folder)}: cannot be loaded: {printable(str(error).splitlines()[0], 200)}") from error
    return full, receipt(folder, full, info, False)


def receipt(folder: Path, full: PreTrainedModel, info: Any, random: bool) -> dict[str, Any]:
    """Which of the network's tensors came from the folder, which are new, what in it was not used."""
    names = list(full.state_dict())
    missing = sorted(info.get("missing_keys", []))
    mismatched = sorted(str(k[0] if isinstance(k, tuple) else k) for k in info.get("mismatched_keys", []))
    new = names if random else [*missing, *mismatched]
    base = set(full.base_model.state_dict())
    prefix = f"{full.base_model_prefix}."
    own = [n for n in names if n.removeprefix(prefix) in base and (n.startswith(prefix) or full is full.base_model)]
    lost = [n for n in new if n in own and ".pooler." not in f".{n}"]
    return {
        "from": str(folder),
        "tensors": len(names) - len(new),
        "of": len(names),
        "new": new[:50],
        "unused": sorted(info.get("unexpected_keys", []))[:50],
        "body_tensors": len(own),
        "body_new": len(lost),
        "first_lost": lost[:10],
    }


def set_dropout(config: PretrainedConfig, rate: float) -> None:
    for name in vars(config.get_text_config()):
        if ("dropout" in name or "_pdrop" in name) and isinstance(getattr(config, name, None), (int, float)):
            setattr(config, name, rate)

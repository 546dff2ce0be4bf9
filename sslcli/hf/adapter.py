"""A folder with an adapter: adapter_config.json and adapter_model.safetensors, as the library `peft` writes them. It is untrusted data:
only fields that a method understands are read, nothing in it names code, and no pickle is opened."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sslcli.errors import BadCheckpoint, BadInput, Unsafe, at, printable
from sslcli.hf.screen import PICKLES, check_header

CONFIG, WEIGHTS, HEAD = "adapter_config.json", "adapter_model.safetensors", "head.safetensors"
PREFIX = "base_model.model."
MARKS = (".lora_", ".ia3_", ".vera_", ".oft_", ".ln_tuning_layers", ".bottleneck")  # what follows a module's name in a tensor's
HEADS = ("classifier", "score", "pooler")  # of classes of transformers; ours are in HEAD
# fields that say nothing of how an adapter computes
NOTES = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "target_modules"),
    *("modules_to_save", "init_weights", "init_lora_weights", "init_ia3_weights", "fan_in_fan_out", "feedforward_modules", "megatron_core"),
    *("total_step", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "target_r", "base_model_class", "exclude_modules"),
    *("d_initial", "projection_prng_key", "save_projection", "module_dropout", "num_layers", "token_dim", "num_attention_heads"),
    *("num_transformer_submodules", "encoder_hidden_size", "prompt_tuning_init", "layers_pattern", "bias", "use_cayley_neumann"),
    *("num_cayley_neumann_terms", "ensure_weight_tying"),
}
UNMERGED = {"BOTTLENECK": "adapter", "PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt"}
MOST = 4096  # of a rank, of virtual tokens


def folder(load: str) -> Path:
    """What `peft.load` names: an adapter folder, or a run with one."""
    path = Path(load).expanduser()
    path = path / "adapter" if (path / "config.yaml").is_file() else path
    if not path.is_dir():
        near = sorted(str(p.parent) for p in path.parent.parent.glob(f"*/adapter/{CONFIG}"))[:3] if path.parent.parent.is_dir() else []
        known = f"; there are {printable(', '.join(near))}" if near else ""
        raise BadCheckpoint(f"peft.load={printable(load)}: no adapter folder there{known}")
    return path


def beside(source: str | None) -> str | None:
    """The method whose adapter `from=` a run leaves out: one that could not be merged into its model/."""
    path = Path(source or "").expanduser()
    if not (path / "config.yaml").is_file() or not (path / "adapter" / CONFIG).is_file():
        return None
    return UNMERGED.get(read(path / "adapter")[0]["peft_type"])


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(settings, tensors) of a screened folder."""
    path = folder / CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadCheckpoint(f"{at(path)}: missing; peft.load takes a folder with {CONFIG} and {WEIGHTS}, or a run with peft") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{at(path)}: not JSON: {printable(error, 120)}") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("peft_type"), str):
        raise BadCheckpoint(f"{at(path)}: names no peft_type; it is not an adapter's configuration")
    _refuse_code(path, settings)
    weights = folder / WEIGHTS
    if not weights.is_file():
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        if pickled:
            raise Unsafe(f"{at(folder / pickled[0])}: is pickled, which can run code; convert it to {WEIGHTS}")
        raise BadCheckpoint(f"{at(weights)}: missing; copy it beside {CONFIG}")
    check_header(weights)
    return settings, load(weights)


def load(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except Exception as error:  # safetensors raises its own, and what the file system does
        raise BadCheckpoint(f"{at(path)}: cannot be loaded: {printable(error, 120)}") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise BadCheckpoint(f"{at(path)}: {printable(name)} is {tensor.dtype}; adapters of float32, float16 or bfloat16 are read")
        if not bool(torch.isfinite(tensor).all()):
            raise BadCheckpoint(f"{at(path)}: {printable(name)} holds values that are not finite; the adapter is damaged or diverged")
    return {name: tensor.float() for name, tensor in tensors.items()}


def _refuse_code(path: Path, settings: Mapping[str, Any]) -> None:
    """`megatron_core` names a package; what earlier releases wrote there by default does nothing without its configuration."""
    plain = settings.get("megatron_core") in (None, "megatron.core") and not settings.get("megatron_config")
    named = [k for k in ("auto_mapping", "auto_map", "megatron_core", "trust_remote_code") if settings.get(k)]
    for key in named:
        if key != "megatron_core" or not plain:
            raise Unsafe(f"{at(path)}: {key} would import code that the adapter names; it is never imported. Remove the field")
    if settings.get("megatron_config"):
        raise Unsafe(f"{at(path)}: megatron_config would import code that the adapter names; it is never imported. Remove the field")


def checked(
    folder: Path, settings: Mapping[str, Any], said: Mapping[str, str], usual: Mapping[str, Any], unset: Mapping[str, Any]
) -> dict[str, Any]:
    """Attribute -> value of the fields that a method understands, each of the type of its `usual` value. Others may be there when they say
    nothing: when they are empty, or as `unset` by this release of the library; else they change what an adapter computes."""
    path = folder / CONFIG
    for key, value in settings.items():
        if key not in said and key not in NOTES and value not in (None, False, [], {}, "", 0) and value != unset.get(key):
            what = f"{printable(key)}={printable(value, 60)} is not understood here"
            raise BadCheckpoint(f"{at(path)}: {what}; it changes what the adapter computes: merge it where it was made")
    if settings.get("bias", "none") != "none":
        raise BadCheckpoint(f"{at(path)}: bias={printable(settings['bias'], 20)}: adapters that bring biases are not read; use bias=none")
    start = settings.get("init_lora_weights", True)
    if not isinstance(start, bool) and start != "gaussian":
        raise BadCheckpoint(f"{at(path)}: init_lora_weights={printable(start, 20)} changed the base; save the adapter as plain LoRA first")
    found = {}
    for field, name in said.items():
        old, value = usual[name], settings.get(field)
        value = _UNSAID.get(field, old) if value is None else value
        number = isinstance(old, (int, float)) and not isinstance(old, bool)
        right = isinstance(value, (int, float)) and not isinstance(value, bool) if number else isinstance(value, type(old))
        if not right or (number and not 0 <= value <= MOST):
            raise BadCheckpoint(f"{at(path)}: {field}={printable(value, 40)}: expected {type(old).__name__} as in {field}={old}")
        found[name] = value
    return found


# what fields meant before they were
_UNSAID = dict.fromkeys(("use_rslora", "use_dora", "prefix_projection", "norms"), False) | {"lora_dropout": 0.0, "lora_alpha": 8}


def renamed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """By the names of the bare network: without the class around it that an adapter may have been trained in, and without its head."""
    found = {}
    for name, tensor in tensors.items():
        inner = name.removeprefix(PREFIX)
        if prefix and inner.startswith(f"{prefix}."):
            name = PREFIX + inner.removeprefix(f"{prefix}.")
        elif inner != name and inner.startswith(HEADS):
            continue
        found[name] = tensor
    return found


def modules(tensors: Mapping[str, Tensor]) -> list[str]:
    """Which modules an adapter is for, as its tensors say: no pattern of a stranger is matched."""
    marked = ((n, m) for n in tensors for m in MARKS if n.startswith(PREFIX) and m in n)
    return list(dict.fromkeys(n.partition(m)[0].removeprefix(PREFIX) for n, m in marked))


def check_same(what: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """The same names and shapes, or one line that lists what differs."""
    odd = [f"{n} is {tuple(found[n].shape)}, not {tuple(t.shape)}" for n, t in expected.items() if n in found and found[n].shape != t.shape]
    odd += [f"{n} is missing" for n in expected if n not in found]
    odd += [f"{n} is unexpected" for n in found if n not in expected]
    if odd:
        raise BadCheckpoint(f"peft.load={printable(what)}: does not fit this network: {printable('; '.join(odd[:10]), 900)}")


def write(folder: Path, settings: str, tensors: Mapping[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(settings + "\n", encoding="utf-8")
    save(folder / WEIGHTS, tensors)


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({n: t.detach().float().cpu().contiguous().clone() for n, t in tensors.items()}, path, {"format": "pt"})


def fill(module: torch.nn.Module, tensors: Mapping[str, Tensor], what: Sequence[str]) -> None:
    """Named parameters and buffers of a module, from tensors of the same names."""
    known = module.state_dict(keep_vars=True)
    with torch.no_grad():
        for name in what:
            if name not in tensors or name not in known or known[name].shape != tensors[name].shape:
                raise BadInput(f"{name}: not in the saved head, or of another shape")
            known[name].copy_(tensors[name])

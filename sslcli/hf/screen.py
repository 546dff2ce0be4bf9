"""A model folder is data: what in it would run code, or hide that it is damaged, is refused before anything is loaded."""

import json
import struct
from pathlib import Path
from typing import Any

from sslcli.errors import BadCheckpoint, Unsafe, at, printable

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy")
MAX_HEADER = 100_000_000


def screen(folder: Path) -> None:
    if not folder.is_dir():
        raise BadCheckpoint(f"from={printable(folder)}: no such folder")
    config = folder / "config.json"
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        if pickled:
            raise Unsafe(
                f"{printable(folder)}: its weights are pickled ({printable(pickled[0])}), which can run code; convert them to safetensors"
            )
    if not config.is_file():
        raise BadCheckpoint(f"{at(config)}: missing; from= takes a run folder, or a model folder with config.json and *.safetensors")
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{at(config)}: not JSON: {printable(error, 120)}") from error
    _refuse_code(config, values)
    if not weights:
        raise BadCheckpoint(f"{printable(folder)}: no *.safetensors weights in it")
    for path in weights:
        check_header(path)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        named = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        missing = sorted(n for n in named if not (folder / n).is_file() or "/" in n)
        if missing:
            raise BadCheckpoint(f"{at(index)}: names {printable(missing[0])}, which is not in the folder; fetch it")


def _refuse_code(path: Path, values: Any, depth: int = 0) -> None:
    if not isinstance(values, dict) or depth > 8:
        return
    for key, value in values.items():
        implementation = str(key) in ("_attn_implementation_internal", "_attn_implementation", "attn_implementation")
        if key in ("auto_map", "custom_pipelines") or (key == "trust_remote_code" and value) or (implementation and "/" in str(value)):
            raise Unsafe(
                f"{at(path)}: {printable(key)} would run code that comes with the model; it is never run. Use a model of a known family"
            )
        _refuse_code(path, value, depth + 1)


def check_header(path: Path) -> None:
    """safetensors has no checksum, but its header must account for every byte."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start[:8] == b"version ":
            raise BadCheckpoint(f"{at(path)}: is a Git LFS pointer, not the weights; run git lfs pull")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(MAX_HEADER, size - 8):
            raise BadCheckpoint(f"{at(path)}: not a safetensors file (a header of {length} bytes in {size}); fetch it again")
        try:
            header = json.loads(file.read(length))
            spans = sorted((int(v["data_offsets"][0]), int(v["data_offsets"][1])) for k, v in header.items() if k != "__metadata__")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise BadCheckpoint(f"{at(path)}: its header is damaged; fetch it again") from error
    end = 0
    for start_at, stop in spans:
        if start_at != end or stop < start_at:
            raise BadCheckpoint(f"{at(path)}: its tensors overlap or leave gaps; fetch it again")
        end = stop
    if end != size - 8 - length:
        raise BadCheckpoint(f"{at(path)}: {size - 8 - length - end:+d} bytes against its header; it is cut off or damaged: fetch it again")

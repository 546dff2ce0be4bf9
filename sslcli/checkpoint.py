"""Commit and find checkpoints. A checkpoint is whole, or it is not there.

Written to a temporary folder beside its place, every file fsynced and hashed, the manifest last, then renamed, the parent fsynced, and
only then are older ones removed. Readers take the newest whose manifest verifies. Tensors are safetensors, the rest JSON: no pickle.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sslcli.errors import BadCheckpoint, printable
from sslcli.run import sync_folder

FORMAT = 1
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass
class Found:
    """A verified checkpoint, and the newer ones that were refused, each with its reason."""

    path: Path
    step: int
    state: dict[str, Any]
    refused: list[str] = field(default_factory=list)

    def tensors(self, name: str) -> dict[str, Tensor]:
        with safe_open(self.path / f"{name}.safetensors", "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)


def save(root: Path, step: int, run_id: str, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Commit `tensors` (one safetensors file a name) and `state` as `root/step-...`. Raises OSError with nothing half made."""
    final = root / f"step-{step:08d}"
    temporary = root / f".tmp-{step:08d}-{run_id}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        files = {}
        for name, group in tensors.items():
            files[f"{name}.safetensors"] = _write(temporary / f"{name}.safetensors", _serialised(group))
        files["state.json"] = _write(temporary / "state.json", [json.dumps(state, indent=1).encode()])
        manifest = {"format": FORMAT, "run": run_id, "step": step, "files": files}
        _write(temporary / "manifest.json", [_sealed(manifest)])
        sync_folder(temporary)
        if final.exists():  # the same step again, after a resume that refused it
            shutil.rmtree(final)
        temporary.rename(final)
        sync_folder(root)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def rotate(root: Path, run_id: str, keep: int, best: int | None) -> None:
    """Remove old checkpoints of this run: never the newest `keep`, never the best, never another run's."""
    own = [p for p in _folders(root) if _run_of(p) == run_id]
    for path in own[keep:]:
        if _step(path) != best:
            shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        for path in root.glob(".tmp-*"):
            if path.name.endswith(run_id):
                shutil.rmtree(path, ignore_errors=True)


def newest(root: Path) -> Found | None:
    """The newest checkpoint that verifies; None if there never was one; BadCheckpoint if there are some and all are damaged."""
    refused: list[str] = []
    for path in _folders(root):
        try:
            return Found(path, _step(path), verify(path), refused)
        except BadCheckpoint as error:
            refused.append(str(error))
    if refused:
        raise BadCheckpoint("no usable checkpoint:\n" + "\n".join(refused))
    return None


def exact(path: Path) -> Found:
    return Found(path, _step(path), verify(path))


def verify(path: Path) -> dict[str, Any]:
    """Every file's size and hash against the manifest, before one tensor reaches the model. Returns the state."""
    manifest = _manifest(path)
    expected = {"manifest.json", *manifest["files"]}
    for name, record in manifest["files"].items():
        file = path / name
        if file.is_symlink() or not file.is_file():
            raise BadCheckpoint(f"{printable(file)}: missing from the checkpoint")
        try:
            size, digest = _digest(file)
        except OSError as error:
            raise BadCheckpoint(f"{printable(file)}: cannot be read: {error.strerror}") from error
        if size != record["bytes"]:
            raise BadCheckpoint(f"{printable(file)}: {size} bytes instead of {record['bytes']}; the checkpoint is damaged")
        if digest != record["sha256"]:
            raise BadCheckpoint(f"{printable(file)}: its content differs from what was written; the checkpoint is damaged")
    surplus = sorted(p.name for p in path.iterdir() if p.name not in expected)
    if surplus:
        raise BadCheckpoint(f"{printable(path / surplus[0])}: does not belong to the checkpoint")
    return json.loads((path / "state.json").read_text(encoding="utf-8"))


def _manifest(path: Path) -> dict[str, Any]:
    if path.is_symlink() or not path.is_dir():
        raise BadCheckpoint(f"{printable(path)}: not a checkpoint folder")
    try:
        raw = (path / "manifest.json").read_bytes()
        manifest = json.loads(raw)
        files = manifest["files"]
        sound = manifest["step"] == _step(path) and all(re.fullmatch(r"[a-z_]+\.(safetensors|json)", n) for n in files)
        sound = sound and raw == _sealed({k: v for k, v in manifest.items() if k != "seal"})  # a flipped bit may still parse
        sound = sound and all(isinstance(r["bytes"], int) and len(r["sha256"]) == 64 for r in files.values())
    except OSError as error:
        raise BadCheckpoint(f"{printable(path / 'manifest.json')}: {error.strerror}; the checkpoint was never finished") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint(f"{printable(path / 'manifest.json')}: damaged") from error
    if manifest.get("format") != FORMAT:
        raise BadCheckpoint(f"{printable(path)}: format {printable(manifest.get('format'))}; this version reads {FORMAT}: upgrade sslcli")
    if not sound:
        raise BadCheckpoint(f"{printable(path / 'manifest.json')}: damaged")
    return manifest


def _sealed(manifest: dict[str, Any]) -> bytes:
    seal = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    return json.dumps({**manifest, "seal": seal}, indent=1).encode()


def _folders(root: Path) -> list[Path]:
    """Checkpoints, newest first."""
    found = [p for p in root.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name)] if root.is_dir() else []
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-")) if re.fullmatch(r"step-\d{8,}", path.name) else -1


def _run_of(path: Path) -> str | None:
    try:
        return json.loads((path / "manifest.json").read_text())["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, parts: Iterable[Any]) -> dict[str, Any]:
    """Write, flush, fsync; size and hash are those of the bytes that were handed over."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for part in parts:
            digest.update(part)
            size += len(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _serialised(tensors: Mapping[str, Tensor]) -> Iterable[Any]:
    """The safetensors format, one tensor in host memory at a time."""
    header: dict[str, Any] = {}
    end = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in sorted(tensors):
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data if flat.numel() else b""


def _digest(path: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 22), b""):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()

"""What `from=` may name: a run folder, a model folder, or a model of the Hugging Face hub; all become a folder of plain data."""

import re
from pathlib import Path

from sslcli.errors import BadCheckpoint, BadInput, Unsafe, printable

# weights, settings, vocabularies: never code, never pickles
PATTERNS = ["*.safetensors", "*.json", "vocab.txt", "merges.txt", "*.model", "*.spm"]


def model_folder(source: str, key: str = "from") -> Path:
    """`key`: of the configuration, for error messages."""
    path = Path(source).expanduser()
    if (path / "config.yaml").is_file():
        if not (path / "model" / "config.json").is_file():
            raise BadCheckpoint(
                f"{key}={printable(source)}: that run has no model yet; finish it with run.dir={printable(source)} resume=auto"
            )
        return path / "model"
    if path.is_dir():
        if any(path.glob("*.distcp")):
            what = "is a distributed checkpoint of torch, whose index is pickled, which can run code; it is never opened"
            raise Unsafe(f"{key}={printable(source)}: {what}: convert it to safetensors where it was made")
        return path
    if path.exists():
        raise BadInput(f"{key}={printable(source)}: is a file; name the folder that holds the model and its tokenizer")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or source.startswith((".", "/", "runs/")):
        near = sorted(str(p.parent) for p in path.parent.glob("*/config.yaml"))[-3:] if path.parent.is_dir() else []
        raise BadInput(f"{key}={printable(source)}: no such folder" + (f"; runs there: {printable(', '.join(near))}" if near else ""))
    return _download(source, key)


def _download(name: str, key: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=PATTERNS))
    except Exception as error:  # the hub's client raises its own, the network's and the cache's errors alike
        reason = printable(str(error).splitlines()[0] if str(error) else type(error).__name__, 160)
        raise BadInput(f"{key}={printable(name)}: no such folder, and not to be had from the hub: {reason}") from error

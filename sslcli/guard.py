"""What a YAML file may hold, before anything else looks at it: plain values, few, shallow. Broken files, bombs, names of code end here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sslcli.errors import BadInput, Unsafe, printable

MAX_BYTES, MAX_ALIASES, MAX_NODES, MAX_DEPTH = 1_000_000, 50, 20_000, 32


def guard_folder(folder: Path) -> dict[str, str]:
    """Check a user's YAML files; returns dotted key -> `file:line`, so that an error can point at the line."""
    if not folder.is_dir():
        raise BadInput(f"--config-dir {printable(folder)}: no such folder")
    places: dict[str, str] = {}
    for path in sorted(folder.rglob("*.yaml")):
        root = guard(path)
        relative = path.relative_to(folder).parts
        is_global = "@package _global_" in path.read_text(encoding="utf-8")[:400]
        prefix = () if is_global or len(relative) == 1 else relative[:-1]
        _index(root, prefix, f"{path.relative_to(folder)}", places)
    return places


def guard(path: Path) -> yaml.Node:
    """Refuse, before OmegaConf sees it, a YAML file that is broken, a bomb, or that names code."""
    try:
        raw = path.read_bytes()
        if len(raw) > MAX_BYTES:
            raise BadInput(f"{path}: {len(raw)} bytes of YAML, more than {MAX_BYTES}; a configuration is small")
        text = raw.decode("utf-8-sig")
        aliases = "*" in text and sum(isinstance(e, yaml.AliasEvent) for e in yaml.parse(text, Loader=yaml.SafeLoader))
        if aliases > MAX_ALIASES:
            raise BadInput(f"{path}: {aliases} YAML aliases, more than {MAX_ALIASES}; write the values out")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        what = (error.problem or "not YAML").replace("found character '\\t' that cannot start any token", "a tab; indent with spaces")
        raise BadInput(f"{path}{place}: {what}") from error
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: {printable(error)}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} (byte {error.start}): not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error
    if root is None:
        raise BadInput(f"{path}: the file is empty; delete it or give it keys")
    if not isinstance(root, yaml.MappingNode):
        raise BadInput(f"{path}: holds a {root.id}; expected keys and values")
    _guard_node(path, root, 0, {})
    return root


def refuse_targets(tree: Any, path: str = "") -> None:
    """No key may name code, at any depth, wherever it came from."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if str(key).startswith("_") and "target" in str(key):
                raise Unsafe(f"{path}{key}: a configuration may not name code to run; choose a `kind` instead")
            refuse_targets(value, f"{path}{key}.")
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            refuse_targets(value, f"{path}{i}.")


def _guard_node(path: Path, node: yaml.Node, depth: int, sizes: dict[int, int]) -> int:
    """Size of the node with its aliases written out; refuses tags, code names, depth and sheer size."""
    if id(node) in sizes:
        return sizes[id(node)]
    line = node.start_mark.line + 1
    if not node.tag.startswith("tag:yaml.org,2002:") or ":python" in node.tag:
        raise Unsafe(f"{path}:{line}: the tag {printable(node.tag)} would make an object; plain values only")
    if depth > MAX_DEPTH:
        raise BadInput(f"{path}:{line}: nested deeper than {MAX_DEPTH}")
    size = 1
    if isinstance(node, yaml.ScalarNode) and node.style is None and node.tag.endswith(":int") and node.value.lstrip("+-").startswith("0"):
        digits = node.value.lstrip("+-")
        if digits.isdigit() and len(digits) > 1:
            raise BadInput(f"{path}:{line}: {node.value} is octal in YAML ({int(digits, 8)}); write it without the leading zero, or quoted")
    if isinstance(node, yaml.SequenceNode):
        size += sum(_guard_node(path, item, depth + 1, sizes) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name = str(key.value)
            if name.startswith("_") and "target" in name:
                raise Unsafe(f"{path}:{line}: {printable(name)} would name code to run; choose a `kind` instead")
            if depth == 0 and name.split("/")[0] == "hydra":
                raise Unsafe(f"{path}:{line}: a file may not configure Hydra itself")
            if name in seen and name != "<<":
                raise BadInput(f"{path}:{key.start_mark.line + 1}: the key {printable(name)} stands twice (first in line {seen[name]})")
            seen[name] = key.start_mark.line + 1
            size += _guard_node(path, key, depth + 1, sizes) + _guard_node(path, value, depth + 1, sizes)
    if size > MAX_NODES:
        raise BadInput(f"{path}:{line}: more than {MAX_NODES} values once its aliases are written out")
    sizes[id(node)] = size
    return size


def _index(node: yaml.Node, prefix: Sequence[str], name: str, places: dict[str, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            dotted = (*prefix, str(key.value))
            places[".".join(dotted)] = f"{name}:{key.start_mark.line + 1}"
            _index(value, dotted, name, places)

"""Runs that an earlier version made: keys that their config.yaml does not know have the values that new runs get."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sslcli.help import home

KINDS = {"augment": "views"}  # of nodes whose YAML files said none


def completed(tree: Mapping[str, Any], verb: str) -> dict[str, Any]:
    """The tree with what its nodes lack, from the YAML that ships for their kind."""
    found = dict(tree)
    for group, node in tree.items():
        if not isinstance(node, Mapping) or not (home() / group).is_dir():
            continue
        kind = node.get("kind") or KINDS.get(group)
        shipped = _node(home() / group / f"{verb}.yaml") if kind is None else _of_kind(home() / group, str(kind))
        if shipped is not None:
            found[group] = {**{k: v for k, v in shipped.items() if k not in ("defaults", "modality")}, **node}
    return found


def _of_kind(folder: Path, kind: str) -> dict[str, Any] | None:
    """The YAML that is called like its kind, else the first of that kind."""
    files = [folder / f"{kind}.yaml", *sorted(folder.glob("*.yaml"))]
    return next((node for path in files if path.is_file() and (node := _node(path)) is not None and node.get("kind") == kind), None)


def _node(path: Path) -> dict[str, Any] | None:
    node = OmegaConf.to_container(OmegaConf.load(path), resolve=False) if path.is_file() else None
    return {str(k): v for k, v in node.items()} if isinstance(node, dict) else None

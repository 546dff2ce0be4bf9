"""Which primary configuration a run is composed from: that of the one modality to which all that the user named belongs.

A YAML of group `data` says its modality by its `kind`, others by a key `modality` (a text's say nothing). `finetune from=<run>` goes on
with that run's.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from sslcli.help import home

TEXT, AUTO = "text", "auto"
SPEAKING = ("objective", "task", "model", "data", "augment", "tokenizer", "experiment")  # groups that belong to a modality


def primary(verb: str, named: Iterable[tuple[str, Any]], source: str | None, folder: Path | None) -> str:
    """`named`: (group, choice) as on the command line. The first that speaks decides; whether the others agree is checked later."""
    for group, choice in named:
        found = modality_of(group, choice, folder)
        if found is not None and group in SPEAKING:
            return _file(verb, found)
    return _file(verb, (_of_run(source) if source else None) or TEXT)


def way(verb: str, chosen: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """`evaluate` has two: a finished run, or (with from= or task=) a pretrained model as it is. `pretrain` too: one objective, or
    (objective=auto, or going on with such a run) several to choose among."""
    if verb == "evaluate":
        return "untrained" if "from" in given or "task" in chosen else verb
    undecided = given.get("resume") and _of_run(str(given.get("run.dir")), "objective") == AUTO
    return "scout" if verb == "pretrain" and (chosen.get("objective") == AUTO or undecided) else verb


def written(choice: Override) -> str:
    """As Hydra takes it: `peft=null`, none of a group, is `~peft` there."""
    none = choice.value() is None and not choice.is_delete()
    return f"~{choice.key_or_group}" if none else str(choice.input_line)


def own_data(primary_name: str, chosen: Iterable[str], train: Any) -> list[str]:
    """The choice of `data` that naming own pictures implies: the embedded ones bring settings (no mirroring) with them."""
    if primary_name.endswith("_image") and "data" not in chosen and train is not None and not str(train).startswith("digits"):
        return ["data=images"]
    return []


def modality_of(group: str, choice: Any, folder: Path | None) -> str | None:
    for root in filter(None, (home(), folder)):
        path = root / group / f"{choice}.yaml"
        if path.is_file():
            return _said(OmegaConf.to_container(OmegaConf.load(path), resolve=False), group)
    return None


def disagreement(tree: Mapping[str, Any]) -> str | None:
    """A sentence about two parts of unlike modality, if there are."""
    said = {g: _said(tree[g], g) for g in SPEAKING if isinstance(tree.get(g), Mapping)}
    data = said.get("data")
    odd = next((g for g, m in said.items() if data is not None and m is not None and m != data), None)
    if odd is None:
        return None
    return f"{odd}={tree[odd].get('kind', '')}: is for {said[odd]} data, data.kind={data} is not; choose both of one modality"


def plain(tree: dict[str, Any]) -> dict[str, Any]:
    """Without the keys that only this file reads."""
    nodes = {k: v for k, v in tree.items() if k != "modality"}
    return {k: _silent(v) if k in SPEAKING else v for k, v in nodes.items()}


def _silent(node: Any) -> Any:
    """A node, and those inside it, without the key that says its modality."""
    if not isinstance(node, dict):
        return node
    return {k: _silent(v) if isinstance(v, dict) and "kind" in v else v for k, v in node.items() if k != "modality"}


def _said(node: Any, group: str) -> str | None:
    if not isinstance(node, Mapping):
        return None
    if group == "data":
        return node.get("kind")
    return node.get("modality", TEXT if group in ("objective", "task", "model", "tokenizer") and "kind" in node else None)


def _of_run(source: str, group: str = "data") -> str | None:
    path = Path(source).expanduser() / "config.yaml"
    if not path.is_file():
        return None
    try:
        return str(getattr(OmegaConf.load(path), group).kind)
    except Exception:  # a damaged file is told where it is read for good
        return None


def _file(verb: str, modality: str) -> str:
    name = f"{verb}_{modality}"
    return name if modality != TEXT and (home() / f"{name}.yaml").is_file() else verb

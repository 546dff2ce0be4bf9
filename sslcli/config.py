"""Compose a run's configuration: YAML groups and shell overrides in, one plain tree out, with every problem named at once.

Hydra composes; it instantiates nothing. A file may choose among kinds, never name code, read the environment or switch off a check.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException, UnsupportedInterpolationType

from sslcli.composing import allow_resolvers, chosen_of, put
from sslcli.errors import BadInput, Unsafe, printable
from sslcli.guard import guard, guard_folder, refuse_targets
from sslcli.help import home
from sslcli.primary import disagreement, own_data, plain, primary, way, written
from sslcli.schema import suggest

FOREIGN = re.compile(r"[^\s,:\[\]{}()\"]*[^\x00-\x7f\s][^\s,:\[\]{}()\"]*")  # a word inside a list or table
# what may differ when a run goes on: where and how fast it runs, not what it computes
FREE = (
    "run.",
    "resume",
    "trainer.devices",
    "trainer.micro_batch_size",
    "trainer.time_limit",
    "trainer.save_every",
    "trainer.log_every",
    "trainer.on_collapse",
    "data.allow_changed",
)


@dataclass
class Composed:
    config: DictConfig  # unresolved: what is written to the run folder, so that nothing read from the environment is
    tree: dict[str, Any]  # resolved, plain
    problems: list[str] = field(default_factory=list)
    verb: str = ""  # what runs it: a module and a function of commands/


def compose(verb: str, overrides: Sequence[str], folder: Path | None = None) -> Composed:
    """The tree of `ssl <verb> overrides...`; `folder` holds the user's own YAML (`--config-dir`)."""
    if folder:
        guard_folder(folder)
    problems: list[str] = []
    parsed = _parse(overrides, problems)
    groups = _groups(folder)
    searched = [f"hydra.searchpath=[file://{folder.resolve()}]"] if folder else []
    choices = [o for o in parsed if o.key_or_group in groups and _choice_exists(o, groups, problems)]
    values = [o for o in parsed if o.key_or_group not in groups]
    given = {o.key_or_group: o.value() for o in values}
    stored = Path(str(given.get("run.dir"))) / "config.yaml"
    source = given.get("run.dir") if given.get("resume") and stored.is_file() else given.get("from")
    verb = way(verb, {o.key_or_group: o.value() for o in choices}, given)
    name = primary(verb, [(o.key_or_group, o.value()) for o in choices], str(source) if source else None, folder)
    chosen = [written(o) for o in choices] + own_data(name, {o.key_or_group for o in choices}, given.get("data.train"))
    with initialize_config_dir(str(home()), version_base="1.3"):
        allow_resolvers()
        config = chosen_of(name, searched + chosen, own_files=folder is None)
        base: Any = OmegaConf.to_container(config, resolve=False)
        known = [o for o in values if _key_exists(o, base, groups, problems)]
        put(config, known)
        tree = _resolve(config, problems)
    refuse_targets(tree)
    problems += [p for p in (disagreement(tree),) if p]
    tree = plain(tree)
    if tree.get("plugins") and not any(o.key_or_group == "plugins" for o in known):
        raise Unsafe("plugins: only the command line may name packages to import, never a file")
    return Composed(config, tree, problems, verb)


def places(folder: Path | None) -> dict[str, str]:
    """Dotted key -> `file:line` in the user's own YAML, for error messages."""
    return guard_folder(folder) if folder else {}


def as_yaml(composed: Composed) -> str:
    """Unresolved, but for the run folder's name: `${now:}` is fixed once."""
    shown = composed.config.copy()
    if isinstance(composed.tree.get("run"), dict):
        OmegaConf.update(shown, "run.dir", composed.tree["run"]["dir"])
    return OmegaConf.to_yaml(shown)


def resumed(composed: Composed, overrides: Sequence[str], name: str = "config.yaml") -> tuple[dict[str, Any], str]:
    """The tree to run and its YAML: with `resume=auto` and a run to go on with, that run's own; else the composed one."""
    tree, run = composed.tree, composed.tree.get("run")
    stored = Path(str(run["dir"])) / name if tree.get("resume") and isinstance(run, dict) else None
    if stored is None or not stored.is_file():
        return tree, as_yaml(composed)
    before, now = load(stored), dict(_leaves(tree))
    verb, own = ("finetune" if "task" in node else "pretrain" if "objective" in node else "" for node in (tree, before))
    if verb and own and verb != own:
        place = printable(stored.parent)
        raise BadInput(f"run.dir={place}: is a run of ssl {own}; ssl {own} run.dir={place} resume=auto goes on with it")
    if before.get("plugins") and before["plugins"] != tree.get("plugins"):
        raise Unsafe(f"{stored}: names plugins; only the command line may: add plugins={printable(before['plugins'])}")
    given = {text.lstrip("+~").partition("=")[0] for text in overrides}
    for key, value in list(_leaves(before)):
        if not any(key == g or key.startswith(f"{g}.") for g in given):
            continue
        if key.startswith(FREE):
            _put(before, key, now.get(key))
        elif now.get(key) != value:
            remedy = "leave it out, or begin a new run with from= this one"
            composed.problems.append(f"{key}={printable(now.get(key))}: the run to resume has {printable(value)}; {remedy}")
    had = dict(_leaves(before))
    for word in sorted(given):  # a group that the run does not have
        new = [k for k in now if (k == word or k.startswith(f"{word}.")) and k not in had and not k.startswith(FREE)]
        if any(now[key] is not None for key in new):
            composed.problems.append(f"{word}: the run to resume has none; leave it out, or begin a new run with from= this one")
    return before, stored.read_text(encoding="utf-8")


def load(path: Path) -> dict[str, Any]:
    """A run's own config.yaml, under the same guards as a stranger's."""
    guard(path)
    allow_resolvers()
    try:
        config = OmegaConf.load(path)
    except OmegaConfBaseException as error:
        raise BadInput(f"{path}: {error.full_key or 'a value'}: {printable(str(error).splitlines()[0])}") from error
    problems: list[str] = []
    tree = _resolve(config, problems)  # type: ignore[arg-type]
    if problems:
        raise BadInput(f"{path}: " + "; ".join(problems))
    refuse_targets(tree)
    return plain(tree)


def parse(parser: OverridesParser, text: str) -> Override:
    """One override. Hydra's grammar knows no letters beyond ASCII outside quotes: words that have some, and plain values, are quoted for
    the user."""
    try:
        return parser.parse_override(text)
    except HydraException:
        key, equals, value = text.partition("=")
        if not equals or value[:1] in tuple("\"'") or "'" in value:
            raise
        end = {"[": "]", "{": "}", "(": ")"}.get(value[:1])
        if end and end in value and not value.endswith(end):  # "{text} It was ..." begins with a bracket, and is no list or table
            end = None
        quoted = FOREIGN.sub(r"'\g<0>'", value) if end else f"'{value}'"
        if quoted == value:
            raise
        return parser.parse_override(f"{key}={quoted}")


def _parse(overrides: Sequence[str], problems: list[str]) -> list[Override]:
    parser, parsed = OverridesParser.create(), []
    for text in overrides:
        try:
            parsed.append(parse(parser, text))
        except HydraException:
            key, equals, value = text.partition("=")
            if not equals:
                remedy = f"write {printable(key.strip() or 'key')}=<value>"
            else:
                remedy = f"quote the value for the shell and for Hydra: '{printable(key)}=\"{printable(value.strip(chr(39) + chr(34)))}\"'"
            problems.append(f"{printable(text)}: not an override; {remedy}")
            continue
        if parsed[-1].key_or_group.split(".")[0].split("/")[0] == "hydra":
            raise Unsafe(f"{printable(text)}: Hydra itself is not configurable here")
        if parsed[-1].is_sweep_override():
            problems.append(f"{printable(text)}: several values; add -m to sweep over them, or quote the value")
            parsed.pop()
        elif parsed[-1].key_or_group == "compare":
            problems.append(f"{printable(text)}: a comparison is several runs; add -m")
            parsed.pop()
    return parsed


def _groups(folder: Path | None) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for root in filter(None, (home(), folder)):
        for path in root.glob("*/*.yaml"):
            found.setdefault(path.parent.name, set()).add(path.stem)
    return found


def _choice_exists(override: Override, groups: dict[str, set[str]], problems: list[str]) -> bool:
    group, options = override.key_or_group, groups[override.key_or_group]
    value = override.value()
    if override.is_delete() or value is None or value in options:
        return True
    problems.append(f"{group}={printable(value)}: no such {group}{suggest(str(value), options)} (one of {', '.join(sorted(options))})")
    return False


def _key_exists(override: Override, base: dict[str, Any], groups: Iterable[str], problems: list[str]) -> bool:
    if override.is_add() and not override.is_force_add():
        return True  # a new key: the schema will say whether it means anything
    key, node, path = override.key_or_group, base, ""
    for name in key.split("."):
        if not isinstance(node, dict) or name not in node:
            unchosen = node is None and path in groups
            remedy = (
                f"no {path} is chosen; add {path}=<name>"
                if unchosen
                else f"no such key{suggest(key, [*groups, *(k for k, _ in _leaves(base))])}"
            )
            problems.append(f"{key}: {remedy}")
            return False
        node, path = node[name], f"{path}.{name}".lstrip(".")
    return True


def _resolve(config: DictConfig, problems: list[str]) -> dict[str, Any]:
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        problems += [f"{key}: missing; give {key}=<value>" for key in missing]
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    except UnsupportedInterpolationType as error:
        raise Unsafe(f"{error.full_key}: only ${{now:}}, ${{oc.env:SSL_...}} and references to other keys are allowed") from error
    except InterpolationResolutionError as error:
        if "Unsafe raised" in str(error):  # OmegaConf keeps the message of what a resolver raised, not the exception
            raise Unsafe(f"{error.full_key}: {printable(str(error).splitlines()[0].partition(': ')[2])}") from error
        problems.append(f"{error.full_key}: {printable(str(error).splitlines()[0])}")
    except RecursionError:
        problems.append("an interpolation refers to itself in a circle")
    except OmegaConfBaseException as error:
        problems.append(f"{error.full_key}: {printable(str(error).splitlines()[0])}")
    return OmegaConf.to_container(config, resolve=False)  # type: ignore[return-value]


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *path, leaf = key.split(".")
    for name in path:
        tree = tree[name]
    tree[leaf] = value

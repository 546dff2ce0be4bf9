"""Signatures are the schema: a keyword-only parameter is a configuration key, its annotation is type and range.

The verb's own signature describes the top of the tree; a parameter annotated `Part[X]` is a node that X's constructor describes, at any
depth.
Positional parameters are what only a running program knows (data, vocabulary, device); they never come from a file. Values that are
each right and contradict each other are told by the class's `contradiction(keys)`, where it has one.
"""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from sslcli.errors import BadInput, printable

T = TypeVar("T")


class Part(Generic[T]):
    """A checked node: a class and the configuration it will be built with."""

    def __init__(self, path: str, cls: type[T], config: dict[str, Any]):
        self.path, self.cls, self.config = path, cls, config

    def build(self, *given: Any, **known: Any) -> T:
        """Construct with what is known by now. A rule across keys, raised as ValueError by the constructor, names this node."""
        clash = known.keys() & self.config.keys()
        if clash:
            raise TypeError(f"{self.path}: {clash} are configuration, not run-time arguments")
        try:
            return self.cls(*given, **known, **self.config)
        except ValueError as error:
            raise BadInput(f"{self.path}: {error}") from error


def suggest(word: str, options: Iterable[str]) -> str:
    """`; did you mean x?` for the nearest option, else nothing."""
    options = list(options)
    leaf = word.rsplit(".", 1)[-1]
    same_leaf = [o for o in options if o.rsplit(".", 1)[-1] == leaf]
    near = difflib.get_close_matches(word, options, n=1, cutoff=0.6) or same_leaf
    if not near:
        by_leaf = {o.rsplit(".", 1)[-1]: o for o in options}
        near = [by_leaf[m] for m in difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.75)]
    return f"; did you mean {near[0]}?" if near else ""


def check(verb: Callable, tree: Mapping[str, Any], found: Iterable[str] = (), places: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The verb's keyword arguments out of a composed tree, or one BadInput that lists every problem at once.

    `found`: problems that composing met already; `places`: key -> `file:line` where the user's own YAML set it.
    """
    problems: list[str] = list(found)
    arguments = _check_keys("", verb, tree, tree.get("plugins") or (), problems)
    if problems:
        places = places or {}
        raise BadInput("\n".join(f"{p} ({places[k]})" if (k := _key_of(p)) in places else p for p in problems))
    return arguments


def _check_keys(path: str, function: Callable, tree: Mapping[str, Any], plugins: Iterable[str], problems: list[str]) -> dict[str, Any]:
    """Parameter name -> value, of a verb or of a node at `path`: nodes inside it are checked in their turn."""
    keys, hints = _keys(function)
    arguments: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for key, hint in hints.items():
        node, part, full = tree.get(key), _part_of(hint), f"{path}.{key}".lstrip(".")
        if part is None:
            plain[key] = hint
        elif isinstance(node, Mapping):
            arguments[keys[key]] = _check_part(full, part, node, plugins, problems)
        elif node is None and type(None) in get_args(hint):
            arguments[keys[key]] = None
        else:
            chosen = f"{part.group}@{full}=<name>" if path and hasattr(part, "group") else f"{full}=<name>"
            problems.append(f"{full}: choose one with {chosen}" if node is None else f"{full}={printable(node)}: expected a group of keys")
    rest = {k: v for k, v in tree.items() if k in plain or k not in hints}
    values = _validate(path, _model(function, plain, keys), rest, problems)
    return arguments | {keys[k]: v for k, v in values.items()}


def _key_of(problem: str) -> str:
    return problem.split(":")[0].split("=")[0]


def rooms(room: str, plugins: Iterable[str] = ()) -> dict[str, str]:
    """The kinds of a room: file name -> dotted module. The product's own come first; a plugin cannot replace them."""
    found: dict[str, str] = {}
    for package in ("sslcli", *plugins):
        try:
            home = importlib.import_module(f"{package}.{room}")
        except ModuleNotFoundError as error:
            if package == "sslcli" or not f"{package}.{room}".startswith(error.name or ""):
                raise
            continue
        for module in pkgutil.iter_modules(home.__path__):
            found.setdefault(module.name, f"{package}.{room}.{module.name}")
    return found


def find(abstract: type, key: str, kind: Any, plugins: Iterable[str] = ()) -> type:
    """The class that `kind` names in a room, or BadInput with what there is."""
    kinds = rooms(abstract.room, plugins)  # type: ignore[attr-defined]
    if kind not in kinds:
        raise BadInput(
            f"{key}={printable(kind)}: no such {key.split('.')[0]}{suggest(str(kind), kinds)} (one of {', '.join(sorted(kinds))})"
        )
    return public_class(importlib.import_module(kinds[kind]), abstract)


def public_class(module: ModuleType, abstract: type | None = None) -> type:
    """The one public class of a module: what `kind: <file name>` means."""
    own = [c for n, c in vars(module).items() if inspect.isclass(c) and c.__module__ == module.__name__ and not n.startswith("_")]
    if abstract is not None and inspect.isclass(abstract) and len(own) > 1:
        own = [c for c in own if issubclass(c, abstract)]
    if len(own) != 1:
        raise BadInput(f"{module.__name__}: expected one public class, found {', '.join(c.__name__ for c in own) or 'none'}")
    return own[0]


def _part_of(hint: Any) -> type | None:
    for option in (hint, *get_args(hint)):
        if get_origin(option) is Part:
            return get_args(option)[0]
    return None


def _keys(function: Callable) -> tuple[dict[str, str], dict[str, Any]]:
    """Configuration key -> parameter name (`from` is a Python keyword, so its parameter is `from_`), and key -> annotation."""
    hints = get_type_hints(function, include_extras=True)
    names = {n.rstrip("_"): n for n, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}
    return names, {key: hints.get(name, Any) for key, name in names.items()}


def _check_part(path: str, abstract: type, node: Mapping, plugins: Iterable[str], problems: list[str]) -> Part | None:
    cls: type = abstract
    if hasattr(abstract, "room"):
        try:
            cls = find(abstract, f"{path}.kind", node.get("kind"), plugins)
        except BadInput as error:
            problems.append(str(error))
            return None
        node = {k: v for k, v in node.items() if k != "kind"}
    known = len(problems)
    values = _check_keys(path, cls.__init__, node, plugins, problems)  # type: ignore[misc]
    if len(problems) == known and hasattr(cls, "contradiction") and (reason := cls.contradiction(values)):
        problems.append(f"{path}: {reason}")
    return Part(path, cls, values)


def _model(function: Callable, hints: Mapping[str, Any], names: Mapping[str, str]) -> Any:
    parameters = inspect.signature(function).parameters
    fields: dict[str, Any] = {}
    for key, hint in hints.items():
        default = parameters[names[key]].default
        fields[key] = (hint, ... if default is inspect.Parameter.empty else default)
    return create_model("Keys", __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=()), **fields)


def _validate(path: str, model: Any, values: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    try:
        checked = model.model_validate(values)
        return {k: getattr(checked, k) for k in model.model_fields}
    except ValidationError as error:
        seen = set()
        for item in error.errors():
            # a union reports once per member: the first location is enough
            where = [str(x) for x in item["loc"] if not (isinstance(x, str) and ("[" in x or x in _TYPE_NAMES))]
            key = ".".join([path, *where] if path else where)
            if key not in seen:
                seen.add(key)
                problems.append(_sentence(key, path, item, model))
    return {}


_TYPE_NAMES = {"int", "float", "str", "bool", "none", "dict", "list", "literal", "constrained-int", "constrained-float"}


def _sentence(key: str, path: str, item: Any, model: Any) -> str:
    kind, value = item["type"], item.get("input")
    if kind == "extra_forbidden":
        options = [f"{path}.{k}" if path else k for k in model.model_fields]
        return f"{key}: no such key{suggest(key, options)}"
    if kind == "missing":
        return f"{key}: missing; give {key}=<value>"
    message = item["msg"][0].lower() + item["msg"][1:]
    message = message.replace("input should be", "expected").replace("value error, ", "")
    hint = " (YAML reads no, off and n as false: put it in quotes)" if value is False and "string" in kind else ""
    return f"{key}={printable(value)}: {message}{hint}"

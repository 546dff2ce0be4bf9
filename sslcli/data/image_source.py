"""From what a user names (folders, a glob, files, lists, parquet, IDX, `hf:`, `digits`) to pictures that nobody has opened yet."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sslcli.data.header import OTHER_SUFFIXES, SUFFIXES, kind_of
from sslcli.data.lines import Bad
from sslcli.data.source import FORMATS, resolve
from sslcli.data.store import contents_hash
from sslcli.errors import BadInput, printable

SPLITS = {"train", "training", "valid", "val", "validation", "dev", "test", "testing", "t10k"}


@dataclass(frozen=True, slots=True)
class Picture:
    file: str  # as the user named it: of the picture, or of the file that holds or lists it
    record: int | None
    image: str | bytes | np.ndarray  # a path, the bytes of a file, or values [H, W] or [H, W, 3]
    label: Any = None
    root: str | None = None  # links that lead out of this folder are not followed
    name: str = ""  # of the file that the bytes were

    @property
    def input(self) -> str:
        return self.image if isinstance(self.image, str) else self.file if self.record is None else f"{self.file}#{self.record}"


class Pictures(Protocol):
    columns: dict[str, Any]  # role -> where it stands; without `label` there are none

    def __iter__(self) -> Iterator[Picture | tuple[str, Bad]]: ...

    def fingerprint(self) -> list[dict[str, Any]]:
        """What the data is made of: names, sizes, content hashes."""

    def unlabelled(self) -> str:
        """Why there are no labels, and how to give them."""

    def counted(self) -> dict[str, int]:
        """What was left aside without being a record, by kind."""


def open_pictures(
    key: str, spec: str | Sequence[str], *, columns: Mapping[str, Any], encoding: str, delimiter: str | None, policy: Any
) -> Pictures:
    """`key` is the configuration key, for error messages."""
    from sslcli.data.image_table import Table

    if embedded(spec):
        from sslcli.data.digits import Digits

        return Digits(key, str(spec))
    if isinstance(spec, str) and spec.startswith("hf:"):
        from sslcli.data.hub import Hub

        return Table(key, Hub(key, spec), columns, policy)
    specs = [spec] if isinstance(spec, str) else list(spec)
    if "-" in specs:
        raise BadInput(f"{key}=-: pictures cannot be read from standard input; name a folder, a glob or a list of them")
    named = [_expanded(key, s) for s in specs]
    kinds = {kind for kind, _, _ in named}
    if len(kinds) > 1:
        raise BadInput(f"{key}: names {' and '.join(sorted(kinds))} together; name one kind of thing")
    kind = kinds.pop()
    if kind == "pictures":
        return Folder([(root, files) for _, root, files in named])
    paths = [Path(p) for _, _, files in named for p in files]
    if kind == "IDX files":
        from sslcli.data.idx import Idx

        return Idx(key, paths)
    from sslcli.data.source import Files

    return Table(key, Files(paths, encoding, delimiter, False), columns, policy)


def embedded(spec: Any) -> bool:
    return isinstance(spec, str) and (spec == "digits" or spec.startswith("digits:"))


def _expanded(key: str, spec: str) -> tuple[str, str | None, list[str]]:
    """(pictures, IDX files or tables; the folder they were looked for in; paths)."""
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        files = [str(p) for p in resolve(key, spec)]
        kinds = {_kind(f) for f in files}
        if len(kinds) > 1:
            raise BadInput(f"{key}={printable(spec)}: names {' and '.join(sorted(kinds))} together; name one kind of thing")
        return kinds.pop(), None, files
    if next(walk(str(folder)), None) is not None:
        return "pictures", str(folder), []
    idx = [str(p) for p in sorted(folder.rglob("*idx[34]-ubyte*")) if p.is_file()]
    tables = [str(p) for p in resolve(key, spec)] if not idx and _has_tables(folder) else []
    found = idx or tables
    if not found:
        known = " ".join(sorted(SUFFIXES))
        raise BadInput(f"{key}={printable(spec)}: no pictures in this folder (looked for {known}, parquet, IDX files and lists)")
    parts = {p for f in found if (p := Path(f).name.lower().replace("_", "-").split("-")[0].split(".")[0]) in SPLITS}
    if len(parts) > 1:
        names = printable(", ".join(Path(f).name for f in found[:5]))
        raise BadInput(f"{key}={printable(spec)}: holds several splits ({names}); name the file of one")
    return "IDX files" if idx else "tables", str(folder), found


def _has_tables(folder: Path) -> bool:
    return any(p.suffix.lower() in FORMATS or p.with_suffix("").suffix.lower() in FORMATS for p in folder.rglob("*"))


def _kind(path: str) -> str:
    from sslcli.data.idx import is_idx

    suffixes = [s.lower() for s in Path(path).suffixes if s.lower() not in (".gz", ".zst")]
    if suffixes and suffixes[-1] in FORMATS:
        return "tables"
    return "IDX files" if is_idx(Path(path)) else "pictures"


def walk(root: str) -> Iterator[str | tuple[str, Bad]]:
    """Pictures below a folder by their suffix (those without one by content), in order; what only looks like one is bad."""
    failed: list[OSError] = []
    for base, folders, files in os.walk(root, onerror=failed.append):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in list(folders):
            path = os.path.join(base, name)
            if os.path.islink(path):
                yield path, Bad(None, "is a link to a folder and is not followed; name that folder beside this one, data.train=[a,b]")
            elif os.path.splitext(name)[1].lower() in SUFFIXES:
                folders.remove(name)
                yield path, Bad(None, "is a folder named as a picture; rename it or remove it")
        for name in sorted(f for f in files if not f.startswith(".")):
            path, suffix = os.path.join(base, name), os.path.splitext(name)[1].lower()
            if suffix in SUFFIXES or suffix in OTHER_SUFFIXES or (not suffix and _begins_as_one(path)):
                yield path
    for error in failed:
        yield str(error.filename), Bad(None, f"cannot be read: {error.strerror}")


def _begins_as_one(path: str) -> bool:
    if os.path.islink(path) or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return kind_of(file.read(16)) is not None


class Folder:
    """Pictures as files of their own. The folder that a picture lies in, right below the one that was named, is its label."""

    def __init__(self, groups: Sequence[tuple[str | None, list[str]]]):
        self.odd: list[tuple[str, Bad]] = []
        self.groups = [(root, self._found(root) if root is not None else files) for root, files in groups]
        own = [root for root, _ in self.groups]
        parents = [os.path.abspath(p) for root, files in self.groups for p in ([root] if root is not None else map(os.path.dirname, files))]
        together = [os.path.commonpath(parents)] * len(own)
        self.bases = next((bases for bases in (own, together) if self._labelled(bases)), None)
        self.columns: dict[str, Any] = {"image": "file", "label": "folder"} if self.bases else {"image": "file"}

    def __iter__(self) -> Iterator[Picture | tuple[str, Bad]]:
        yield from self.odd
        for base, (root, files) in zip(self.bases or [""] * len(self.groups), self.groups, strict=True):
            for path in files:
                yield Picture(path, None, path, _class(path, base) if base else None, root)

    def _found(self, root: str) -> list[str]:
        files = []
        for item in walk(root):
            if isinstance(item, tuple):
                self.odd.append(item)
            else:
                files.append(item)
        return files

    def _labelled(self, bases: Sequence[str | None]) -> bool:
        """Whether every picture lies in a folder below its base, and these folders are not those of splits."""
        seen: set[str] = set()
        for base, (_, files) in zip(bases, self.groups, strict=True):
            seen.update({"" if base is None else _class(f, base) for f in files})
        return bool(seen) and "" not in seen and not {s.lower() for s in seen} <= SPLITS

    def fingerprint(self) -> list[dict[str, Any]]:
        return self._prints

    @cached_property
    def _prints(self) -> list[dict[str, Any]]:
        found = []
        for root, files in self.groups:
            digest = contents_hash(partial(_named, files, root))
            name = os.path.basename(os.path.abspath(root)) if root else os.path.basename(files[0])
            found.append({"file": name, "pictures": len(files), "sha256": digest})
        return [*found, *({"file": os.path.basename(path), "sha256": bad.reason} for path, bad in self.odd)]

    def unlabelled(self) -> str:
        names = {_class(f, root) for root, files in self.groups if root is not None for f in files}
        if names and {n.lower() for n in names} <= SPLITS:
            return f"{printable(', '.join(sorted(names)))} are folders of splits; name one for each of data.train, data.valid, data.test"
        outside = next((f for root, files in self.groups if root is not None for f in files if not _class(f, root)), None)
        if outside is not None and len(names) > 1:
            return f"{printable(outside)} lies in none of the folders of classes; move it into one"
        return "put the pictures of each class in a folder of their own, or name a list (CSV, JSON lines) with a label column"

    def counted(self) -> dict[str, int]:
        return {}


def _named(files: Sequence[str], root: str | None) -> Iterator[tuple[str, str]]:
    return ((f[len(root) :] if root else f, f) for f in files)


def _class(path: str, base: str) -> str:
    """The first folder on the way from `base` to a file; empty where it lies in `base` itself."""
    path = path if path.startswith(base) else os.path.abspath(path)
    first, slash, _ = path[len(base) :].lstrip(os.sep).partition(os.sep)
    return first if slash else ""

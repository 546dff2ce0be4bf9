"""Records of variable length on disk, memory-mapped: built once from raw input, then reading is slicing.

A store is a folder: `<field>.values` (flat), `<field>.index` (where each record begins, for ragged fields) and `meta.json`, written
last. Its name is the hash of all that made it (content of the files, processor, options, code version), so a stale one cannot be hit.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from sslcli.run import cores, storage, sync_folder, write_atomically

MOST_READERS = 16  # threads that read or decode
VERSION = 2  # of the layout and of the processors' code: raise it when either changes what a store holds


class Store:
    def __init__(self, path: Path):
        self.path = path
        self.meta: dict[str, Any] = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        self.count = int(self.meta["records"])
        self._fields = {name: Field(path / name, spec, self.count) for name, spec in self.meta["fields"].items()}

    def __getitem__(self, name: str) -> "Field":
        return self._fields[name]

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def text(self, row: int) -> str:
        return self["text"].take(np.array([row]))[0].tobytes().decode("utf-8")


class Field:
    """One named column: ragged (an index says where records begin) or one row of `width` values a record."""

    def __init__(self, base: Path, spec: Mapping[str, Any], count: int):
        self.ragged = bool(spec.get("ragged"))
        self.dtype = np.dtype(spec["dtype"])
        self.values = _map(base.with_name(base.name + ".values"), self.dtype)
        if self.ragged:
            self.index = _map(base.with_name(base.name + ".index"), np.dtype(np.int64))
        else:
            self.values = self.values.reshape(count, -1 if count else 1)

    def lengths(self) -> np.ndarray:
        return np.diff(self.index)

    def take(self, rows: np.ndarray) -> list[np.ndarray]:
        """The records of these rows: views into the file, nothing is copied."""
        starts, ends = self.index[rows], self.index[np.asarray(rows) + 1]
        return [self.values[s:e] for s, e in zip(starts.tolist(), ends.tolist(), strict=True)]


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)


class Writer:
    """Appends records to a store in the making. `fields` maps a name to its dtype; names in `ragged` get an index."""

    def __init__(self, path: Path, fields: Mapping[str, Any], ragged: set[str]):
        self.path, self.count, self.meta = path, 0, {}  # type: ignore[var-annotated]
        self.fields = {name: {"dtype": np.dtype(dtype).name, "ragged": name in ragged} for name, dtype in fields.items()}
        self._values = {name: (path / f"{name}.values").open("wb") for name in fields}
        self._index = {name: (path / f"{name}.index").open("wb") for name in ragged}
        self._ends = dict.fromkeys(ragged, 0)
        for file in self._index.values():
            file.write(np.zeros(1, np.int64).tobytes())

    def append(self, count: int, lengths: Mapping[str, np.ndarray], **values: np.ndarray) -> None:
        """`count` records at once: flat values of every field, and the lengths of the ragged ones."""
        for name, array in values.items():
            self._values[name].write(np.ascontiguousarray(array, self.fields[name]["dtype"]).tobytes())
        for name, file in self._index.items():
            ends = self._ends[name] + np.cumsum(lengths[name], dtype=np.int64)
            file.write(ends.tobytes())
            self._ends[name] = int(ends[-1]) if len(ends) else self._ends[name]
        self.count += count

    def finish(self) -> None:
        for file in (*self._values.values(), *self._index.values()):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        write_atomically(self.path / "meta.json", json.dumps({**self.meta, "records": self.count, "fields": self.fields}, indent=1))

    def close(self) -> None:
        for file in (*self._values.values(), *self._index.values()):
            file.close()


def built(key: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """The folder of stores that `key` names, built now if need be. Of several processes that want it one builds; the others wait."""
    name = hashlib.sha256(json.dumps({"version": VERSION, **key}, sort_keys=True, default=str).encode()).hexdigest()[:32]
    folder = cache() / "stores" / name
    if folder.exists():
        return folder
    with storage(folder.parent), _only_one(folder.parent / f"{name}.lock"):
        if not folder.exists():
            with temporary_folder(folder.parent) as making:
                build(making)
                sync_folder(making)
                making.rename(folder)
            sync_folder(folder.parent)
    return folder


def cache() -> Path:
    """Where prepared data lives: SSL_CACHE, else the user's cache folder, else (home missing or read-only) the temporary folder."""
    chosen = os.environ.get("SSL_CACHE")
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "sslcli"
    try:
        base.mkdir(parents=True, exist_ok=True)
        if os.access(base, os.W_OK):
            return base
    except OSError:
        if chosen:
            with storage(base):
                raise
    base = Path(tempfile.gettempdir()) / f"sslcli-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    return base


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder beside the target, gone whatever happens unless it was renamed."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".tmp-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def content_hash(path: Path) -> str:
    """SHA-256 of a file, remembered under its size, times and inode so that a second start need not read it again."""
    return _remembered(f"{path.resolve()}|{_identity(path)}", lambda: _hash(str(path)).hexdigest())


def contents_hash(named: Callable[[], Iterable[tuple[str, str]]]) -> str:
    """One SHA-256 over many files, given as (name, path): names and contents. Remembered in the same way, for all of them together.

    What is no regular file counts as absent: it is never opened.
    """
    known = hashlib.sha256()
    for name, path in named():
        known.update(f"{name}\0{os.path.abspath(path)}\0{_identity(path)}\n".encode("utf-8", "surrogateescape"))

    def read() -> str:
        together, files = hashlib.sha256(), iter(named())
        with ThreadPoolExecutor(min(cores(), MOST_READERS)) as pool:
            while block := list(islice(files, 4096)):
                for (name, _), digest in zip(block, pool.map(lambda pair: _hash(pair[1]).digest(), block), strict=True):
                    together.update(name.encode("utf-8", "surrogateescape") + b"\0" + digest)
        return together.hexdigest()

    return _remembered(known.hexdigest(), read)


def _identity(path: str | Path) -> str:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return "absent"
    if not stat.S_ISREG(status.st_mode):
        return "absent"
    return f"{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}|{status.st_ino}"


def _hash(path: str) -> Any:
    digest = hashlib.sha256()
    if _identity(path) != "absent":
        with open(path, "rb") as file:
            for chunk in iter(lambda: file.read(1 << 22), b""):
                digest.update(chunk)
    return digest


def _remembered(known: str, compute: Callable[[], str]) -> str:
    memo = cache() / "hashes" / hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest()
    if memo.exists():
        return memo.read_text()
    found = compute()
    with contextlib.suppress(OSError):
        memo.parent.mkdir(exist_ok=True)
        write_atomically(memo, found)
    return found

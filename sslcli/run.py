"""A run folder: claimed by one process, written by rank 0, the same for every verb."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from sslcli import __version__
from sslcli.errors import BadInput, RunBusy, StorageFull, at, printable

FORMAT = 1  # of the run folder; readers take every format ever released


class Run:
    """`run.dir`, claimed. Everything a verb writes goes through here; on ranks other than 0 nothing is written."""

    def __init__(self, *, dir: str, keep: Annotated[int, Field(ge=1)] = 2):
        self.dir, self.keep = Path(dir), keep
        self.id = ""
        self.writes = int(os.environ.get("RANK", "0")) == 0
        self._lock: Any = None

    @contextlib.contextmanager
    def claim(self, config_yaml: str, resume: bool) -> Iterator["Run"]:
        """Take the folder for this process. A folder that is in use ends in RunBusy; one that holds another run, in BadInput."""
        if not self.writes:
            yield self
            return
        resume = resume and (self.dir / "config.yaml").exists()  # a folder of something else is refused, resume=auto or not
        if not resume:
            self.refuse_if_used()
        self._take_lock()
        if not resume:
            self.refuse_if_used()  # again, now that nobody else can write
        with storage(self.dir):
            self.id = self._identity()
            if not (self.dir / "config.yaml").exists():
                write_atomically(self.dir / "config.yaml", config_yaml)
            self.write("environment.json", environment(self.id))
        try:
            yield self
        except BaseException:
            if not resume and not self._has_result():
                self._remove()
            raise
        finally:
            self._lock.close()

    def write(self, name: str, value: Any) -> None:
        if self.writes:
            with storage(self.dir):
                write_atomically(self.dir / name, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")

    def write_lines(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        if self.writes:
            with storage(self.dir):
                write_atomically(self.dir / name, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))

    def append(self, name: str, record: dict[str, Any]) -> None:
        if self.writes:
            with storage(self.dir), (self.dir / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def lines(self, name: str) -> list[dict[str, Any]]:
        """What `append` has written, where this process writes."""
        path = self.dir / name
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line] if self.writes and path.exists() else []

    def forget_after(self, name: str, step: int) -> None:
        """Drop the lines of a metrics file that a resumed run is about to write again (and a half-written last one)."""
        path = self.dir / name
        if not self.writes or not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                if json.loads(line).get("step", 0) <= step:
                    kept.append(line)
        write_atomically(path, "".join(line + "\n" for line in kept))

    def _has_result(self) -> bool:
        """Whether anything is in the folder that cost training time."""
        left = ("metrics.jsonl", "anomalies.jsonl", "checkpoints/step-*")
        inside = ("", "seeds/*/", "pilots/*/", "rounds/*/", "seeds/*/rounds/*/")
        return any(any(self.dir.glob(f"{place}{name}")) for place in inside for name in left)

    def _remove(self) -> None:
        """Nothing half made: the folder goes as it came. Renamed first, so that whoever takes the name next loses nothing."""
        going = self.dir.with_name(f".{self.dir.name}.gone-{self.id}")
        with contextlib.suppress(OSError):
            self.dir.rename(going)
            shutil.rmtree(going)
            for folder in self._made:
                folder.rmdir()

    def _take_lock(self) -> None:
        path = self.dir / "run.lock"
        self._made = [p for p in self.dir.absolute().parents if not p.exists()]  # the nearest first
        while True:
            with storage(self.dir):
                self.dir.mkdir(parents=True, exist_ok=True)
                try:
                    lock = path.open("a+", encoding="utf-8")
                except FileNotFoundError:
                    continue  # its last owner has just removed the folder
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise self._busy() from error
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(lock.fileno()).st_ino == path.stat().st_ino:
                    break  # else the lock is of a folder that was removed meanwhile
            lock.close()
        lock.seek(0)
        lock.truncate()
        json.dump({"host": platform.node(), "pid": os.getpid(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}, lock)
        lock.flush()
        self._lock = lock

    def refuse_if_used(self) -> None:
        if self.dir.exists() and not self.dir.is_dir():
            raise BadInput(f"run.dir={printable(self.dir)}: is a file; choose another run.dir")
        if not self.dir.exists() or all(p.name == "run.lock" for p in self.dir.iterdir()):
            return
        path = self.dir / "run.lock"
        if path.exists() and self._lock is None:
            with path.open("a+", encoding="utf-8") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    raise self._busy() from error
        remedy = (
            "add resume=auto to continue that run, or choose" if (self.dir / "config.yaml").exists() else "and no run to resume; choose"
        )
        raise BadInput(f"run.dir={printable(self.dir)}: already holds files; {remedy} another run.dir")

    def _busy(self) -> RunBusy:
        owner = ""
        with contextlib.suppress(OSError, ValueError):
            held = json.loads((self.dir / "run.lock").read_text())
            owner = f" by process {held['pid']} on {held['host']} since {held['started']}"
        return RunBusy(f"{printable(self.dir)}: in use{printable(owner)}; wait for it, or choose another run.dir")

    def _identity(self) -> str:
        with contextlib.suppress(OSError, ValueError, KeyError):
            return str(json.loads((self.dir / "environment.json").read_text())["run_id"])
        return secrets.token_hex(8)


@contextlib.contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write into one line and exit 6."""
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, BlockingIOError):
            raise
        free = ""
        with contextlib.suppress(OSError):
            status = os.statvfs(path if path.exists() else path.parent)
            free = f" ({status.f_bavail * status.f_frsize / 1e6:.0f} MB free)"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = f"{error.strerror}{free}; free some space or" if full else f"{error.strerror}; look at its path and permissions, or"
        raise StorageFull(f"{printable(path)}: cannot write: {what} choose another run.dir") from error


def cores() -> int:
    """Processors that this process may use; systems that do not say get all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_atomically(path: Path, text: str) -> None:
    """The old content or the new, whenever the power fails: temporary file, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def environment(run_id: str) -> dict[str, Any]:
    """What a run was made with: enough to make it again."""
    import torch

    packages = ("torch", "transformers", "tokenizers", "datasets", "hydra-core", "numpy", "safetensors", "scikit-learn")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "ssl": __version__,
        "format": FORMAT,
        "run_id": run_id,
        "command": [redact(a) for a in sys.argv],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "threads": torch.get_num_threads(),
        "packages": {p: _version(p) for p in packages},
    }


def _version(package: str) -> str | None:
    """None where it was installed without saying what it is."""
    with contextlib.suppress(PackageNotFoundError):
        return version(package)
    return None


def redact(argument: str) -> str:
    """A command-line argument without what must not be written down: user names and passwords in URLs, tokens."""
    argument = re.sub(r"(\w+://)[^/@\s]+@", r"\1***@", argument)
    return re.sub(r"\b(hf_[A-Za-z0-9]{8,}|[A-Za-z0-9_\-]*(?:token|secret|password|api_?key)=)\S*", r"\1***", argument, flags=re.IGNORECASE)


def config_of(folder: Path) -> Path:
    """The config.yaml of a finished or running run, or one line that says why this is none."""
    path = folder / "config.yaml"
    if not folder.is_dir():
        near = ", ".join(sorted(str(p.parent) for p in folder.parent.glob("*/config.yaml"))[-3:]) if folder.parent.is_dir() else ""
        raise BadInput(f"run={printable(folder)}: no such folder" + (f"; runs there: {printable(near)}" if near else ""))
    if not path.is_file():
        raise BadInput(f"{at(path)}: missing; {printable(folder)} is not a run folder of ssl")
    with contextlib.suppress(OSError, ValueError):
        made = json.loads((folder / "environment.json").read_text())
        if int(made.get("format", 1)) > FORMAT:
            raise BadInput(
                f"{printable(folder)}: written by ssl {printable(made.get('ssl'))}; this is {__version__}: upgrade sslcli to read it"
            )
    return path

"""Commands in processes of their own that start warm: forked from one that has imported what a run needs, and has computed nothing.

To import torch, transformers and scikit-learn takes longer than a tiny run; where that is not what is tested, it is done once. A warm
process is one like any other: it has its environment, its folder and its exit code, and can be killed.
"""

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import IO, Any, NoReturn

from sslcli.cli import main

IMPORTED = (
    "sslcli.commands.pretrain sslcli.commands.finetune sslcli.commands.evaluate sslcli.tasks.text_classification "
    "transformers.models.bert.modeling_bert sklearn.metrics sklearn.linear_model sklearn.feature_extraction.text matplotlib.pyplot"
).split()


class Oven:
    """The process that others are forked from."""

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.warm", str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
        theirs.close()

    def start(self, command: Sequence[str], **options: Any) -> "Warm":
        """As subprocess.Popen(command), of `python -m sslcli ...`."""
        return Warm(self._line, command, **options)

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess:
        """As subprocess.run(command, capture_output=True, text=True)."""
        process = self.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(command, process.returncode, out.decode(), err.decode())

    def close(self) -> None:
        self._line.close()
        self._process.wait()


class Warm:
    """What the tests and the tool use of subprocess.Popen."""

    returncode: int | None = None

    def __init__(
        self,
        line: socket.socket,
        command: Sequence[str],
        stdout: IO[bytes] | int | None = None,
        stderr: IO[bytes] | int | None = None,
        stdin: int | None = None,
        cwd: object = None,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
    ):
        assert list(command[1:3]) == ["-m", "sslcli"] and stdin in (None, subprocess.DEVNULL), command
        self.args = command
        self.stdout, self.stderr = (tempfile.TemporaryFile() if s == subprocess.PIPE else None for s in (stdout, stderr))
        self._ended, told = os.pipe2(os.O_CLOEXEC)
        null = os.open(os.devnull, os.O_RDWR)
        streams = [null if s is None or s == subprocess.DEVNULL else s for s in (self.stdout or stdout, self.stderr or stderr)]
        asked = {"words": command[3:], "cwd": str(cwd or os.getcwd()), "env": dict(env or os.environ), "session": start_new_session}
        socket.send_fds(line, [json.dumps(asked).encode()], [null, *(s if isinstance(s, int) else s.fileno() for s in streams), told])
        for number in (told, null):
            os.close(number)
        self.pid = int(line.recv(100))

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._ended], [], [], 0)[0]:
            self.returncode = int(os.read(self._ended, 100) or -signal.SIGKILL)
            os.close(self._ended)
            for stream in filter(None, (self.stdout, self.stderr)):
                stream.seek(0)
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        since = time.monotonic()
        while self.poll() is None:
            if time.monotonic() - since > timeout:
                self.kill()
                raise subprocess.TimeoutExpired(list(self.args), timeout)
            time.sleep(0.02)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[bytes, bytes]:
        self.wait(timeout)
        return self.stdout.read() if self.stdout else b"", self.stderr.read() if self.stderr else b""

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Replica:
    """subprocess.Popen for the launcher of replicas: forked from it, which has computed nothing."""

    returncode: int | None = None

    def __init__(self, command: Sequence[str], env: Mapping[str, str], start_new_session: bool):
        self.pid = os.fork()
        if not self.pid:
            _become(command[3:], os.getcwd(), env, start_new_session)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _become(words: Sequence[str], cwd: str, env: Mapping[str, str], session: bool) -> NoReturn:
    """Run the command in this process, which was forked for it, and end."""
    from sslcli import distributed

    code = 1
    try:
        if session:
            os.setsid()
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        sys.argv = ["sslcli", *words]
        distributed.subprocess = SimpleNamespace(Popen=_Replica)  # type: ignore[assignment]
        code = main(words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve(line: socket.socket) -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    while True:
        message, numbers, _, _ = socket.recv_fds(line, 1 << 20, 4)
        if not message:
            return
        if not os.fork():  # a keeper, that tells how it ended: its parent waits for the next
            _keep(line, json.loads(message), numbers)
        for number in numbers:
            os.close(number)


def _keep(line: socket.socket, asked: dict[str, Any], numbers: Sequence[int]) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if not pid:
        line.close()
        for at, number in enumerate(numbers[:3]):
            os.dup2(number, at)
        for number in numbers:
            os.close(number)
        _become(asked["words"], asked["cwd"], asked["env"], asked["session"])
    line.send(str(pid).encode())
    os.write(numbers[3], str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are waited for by no one
    _serve(socket.socket(fileno=int(sys.argv[1])))

"""Commands in processes of their own that start warm: forked from one that has imported what a run needs, and has computed nothing.

To import torch, transformers and scikit-learn takes seconds, in which a short run learns half of what it will; of many runs, one after the
other, it is done once. A warm process is one like any other: it has its environment, its folder and its exit code, and can be killed.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, NoReturn

POSSIBLE = sys.platform == "linux"  # elsewhere libraries do not survive a fork
OFTEN = 0.05  # seconds between looks at whether a process has ended
IMPORTED = (
    "sslcli.cli sslcli.commands sslcli.modalities.text transformers.modeling_utils sklearn.metrics sklearn.linear_model "
    "sklearn.feature_extraction.text matplotlib.pyplot"
).split()


class Oven:
    """The process that others are forked from. It has no thread of its own and never looks at an accelerator. It ends with this one."""

    def __init__(self, env: Mapping[str, str], modules: Sequence[str] = ()):
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "sslcli.commands.warm", str(theirs.fileno()), *IMPORTED, *modules]
        careful = {**env, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # what counts devices must not start them
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=careful, pass_fds=[theirs.fileno()], start_new_session=True)
        theirs.close()

    def start(self, words: Sequence[str], out: IO[bytes], err: IO[bytes], env: Mapping[str, str], cwd: str | None = None) -> "Warm":
        """`ssl <words>`, in a session of its own, without input. OSError where the oven is gone."""
        seen, told = os.pipe2(os.O_CLOEXEC)
        try:
            asked = {"words": [*words], "cwd": cwd or os.getcwd(), "env": dict(env)}
            socket.send_fds(self._line, [json.dumps(asked).encode()], [out.fileno(), err.fileno(), told])
            pid = self._line.recv(100)
        finally:
            os.close(told)
        if not pid:
            os.close(seen)
            raise ConnectionError("the process that others are forked from has ended")
        return Warm(int(pid), seen)

    def close(self) -> None:
        self._line.close()
        self._process.wait()


class Warm:
    """What is used of subprocess.Popen."""

    returncode: int | None = None

    def __init__(self, pid: int, seen: int):
        self.pid, self._seen = pid, seen

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._seen], [], [], 0)[0]:
            self.returncode = int(os.read(self._seen, 100) or -signal.SIGKILL)  # nothing: the oven was killed, and cannot say
            os.close(self._seen)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        since = time.monotonic()
        while self.poll() is None:
            if timeout is not None and time.monotonic() - since > timeout:
                raise subprocess.TimeoutExpired("ssl", timeout)
            time.sleep(OFTEN / 2)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def become(words: Sequence[str], cwd: str, env: Mapping[str, str]) -> NoReturn:
    """Run the command in this process, which was forked for it, and end."""
    from sslcli.cli import main

    code = 1
    try:
        os.setsid()
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        sys.argv = ["sslcli", *words]
        code = main(words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve(line: socket.socket) -> None:
    running: dict[int, int] = {}  # process: where its exit code is told
    null = os.open(os.devnull, os.O_RDONLY)
    while True:
        if select.select([line], [], [], OFTEN if running else None)[0]:
            message, numbers, _, _ = socket.recv_fds(line, 1 << 20, 3)
            if not message:
                return
            *streams, told = numbers
            if not (pid := os.fork()):
                line.close()
                for at, number in enumerate((null, *streams)):
                    os.dup2(number, at)
                for number in (null, *streams, told, *running.values()):
                    os.close(number)
                become(**json.loads(message))
            for number in streams:
                os.close(number)
            running[pid] = told
            line.send(str(pid).encode())
        while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            told = running.pop(ended[0])
            with contextlib.suppress(BrokenPipeError):  # nobody asks any more
                os.write(told, str(os.waitstatus_to_exitcode(ended[1])).encode())
            os.close(told)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        with contextlib.suppress(ImportError):  # what only an extra has
            importlib.import_module(name)
    _serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # there is nothing to tidy up

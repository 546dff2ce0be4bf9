"""Named to an oven (sslcli.commands.warm), its processes fork their replicas too, which would import everything anew otherwise."""

import os
import signal
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

from sslcli import distributed
from sslcli.commands.warm import become


class Replica:
    """subprocess.Popen for the launcher of replicas: forked from it, which has computed nothing."""

    returncode: int | None = None

    def __init__(self, command: Sequence[str], env: Mapping[str, str], start_new_session: bool):
        assert list(command[1:3]) == ["-m", "sslcli"] and start_new_session, command
        self.pid = os.fork()
        if not self.pid:
            become(command[3:], os.getcwd(), env)

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


distributed.subprocess = SimpleNamespace(Popen=Replica)  # type: ignore[assignment]

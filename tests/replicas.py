"""Named to an oven (sslcli.commands.warm), its processes fork their replicas too, which would import everything anew otherwise."""

import os
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

from sslcli import distributed
from sslcli.commands.warm import Warm, become


class Replica(Warm):
    """subprocess.Popen for the launcher of replicas: forked from it, which has computed nothing."""

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


distributed.subprocess = SimpleNamespace(Popen=Replica)  # type: ignore[assignment]

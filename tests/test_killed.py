"""kill -9 at random moments: the run that goes on ends with the same bits."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from sslcli.commands.warm import Oven, Warm
from tests.test_resume import log, tensors


def start(oven: Oven, workload: list[str], folder: Path, *more: str) -> Warm:
    with (folder / "said").open("wb") as said:
        return oven.start([*workload, *more, "-q"], said, said, os.environ, str(folder))


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(ssl, oven, workload, tmp_path, kills) -> None:
    """kill -9, again and again, until the run ends."""
    assert ssl(*workload, "trainer.steps=200", "run.dir=whole").code == 0
    random_, killed = random.Random(kills), 0
    while killed < kills:
        process = start(oven, workload, tmp_path, "trainer.steps=200", "run.dir=cut", "resume=auto")
        # wait for training to begin, so that most kills fall into steps and saves
        root, since = tmp_path / "cut" / "metrics.jsonl", time.monotonic()
        size = root.stat().st_size if root.exists() else 0
        while process.poll() is None and time.monotonic() - since < 60 and not (root.exists() and root.stat().st_size > size):
            time.sleep(0.02)
        time.sleep(random_.uniform(0, 0.5))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        assert process.wait() in (0, -9), (tmp_path / "said").read_text()
        if process.returncode == 0 and killed < kills:
            break
    assert killed > 0
    assert ssl("pretrain", "run.dir=cut", "resume=auto").code == 0
    assert tensors(tmp_path / "cut") == tensors(tmp_path / "whole")
    assert log(tmp_path / "cut") == log(tmp_path / "whole")
    assert not list((tmp_path / "cut" / "checkpoints").glob(".tmp-*"))

"""Processes that are forked ready: each has its own environment, folder, streams and end; and nothing of one is left in the next."""

import os
import signal
import time
from pathlib import Path

import pytest

from sslcli.commands import warm
from sslcli.commands.warm import Oven, Warm

pytestmark = pytest.mark.skipif(not warm.POSSIBLE, reason="forks are only taken on Linux")


def started(oven: Oven, folder: Path, *words: str, env: dict[str, str] | None = None) -> Warm:
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        return oven.start(words, out, err, {**os.environ, **(env or {})}, str(folder))


def test_processes_are_apart_and_tell_their_ends(oven: Oven, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir(), other.mkdir()
    good = started(oven, one, "pretrain", "--help")
    bad = started(oven, other, "pretrain", "sed=1", env={"HYDRA_FULL_ERROR": "0"})
    assert (good.wait(60), bad.wait(60)) == (0, 2) and good.pid != bad.pid
    assert "ssl pretrain" in (one / "out").read_text() and not (one / "err").read_text()
    assert "did you mean" in (other / "err").read_text() and not (other / "out").read_text()
    assert good.poll() == 0 and good.wait() == 0  # asked again
    good.send_signal(signal.SIGTERM)  # of what has ended nobody else gets it


def test_one_is_stopped_and_the_oven_goes_on(oven: Oven, tmp_path: Path) -> None:
    words = [
        "pretrain",
        "data=digits",
        "model=resnet_nano",
        "trainer.steps=100000",
        "trainer.batch_size=8",
        "trainer.log_every=1",
        "run.dir=run",
    ]
    run = started(oven, tmp_path, *words)
    since = time.monotonic()
    while not (tmp_path / "run/metrics.jsonl").is_file() and run.poll() is None and time.monotonic() - since < 120:
        time.sleep(0.05)
    assert os.getsid(run.pid) == run.pid and run.poll() is None, (tmp_path / "err").read_text()
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 75 and "resume=auto" in (tmp_path / "err").read_text()
    lost = started(oven, tmp_path, *words[:-1], "run.dir=other")
    lost.kill()
    assert lost.wait(60) == -signal.SIGKILL
    assert started(oven, tmp_path, "--help").wait(60) == 0


def test_an_oven_that_is_gone_is_an_error_to_go_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "IMPORTED", [])
    own = Oven(os.environ)
    own._process.kill()
    own._process.wait()
    with pytest.raises(OSError):
        started(own, tmp_path, "--help")

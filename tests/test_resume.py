"""An interrupted run ends as if nothing had happened: the reference workload, stopped in every way."""

import errno
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from sslcli import checkpoint
from tests.conftest import rows, write_jsonl


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def uninterrupted(ssl, workload: list[str], kept: Path) -> Callable[[int, str], None]:
    """Puts an uninterrupted run of so many steps at a folder. It is trained once: tests get copies."""

    def put(steps: int, folder: str) -> None:
        run = kept / str(steps)
        if not run.exists():
            assert ssl(*workload, f"trainer.steps={steps}", "run.dir=made").code == 0
            shutil.move("made", run)
        shutil.copytree(run, folder)

    return put


def tensors(run: Path) -> dict[str, str]:
    """Hashes of every tensor file of the newest checkpoint."""
    newest = max((run / "checkpoints").glob("step-*"))
    files = json.loads((newest / "manifest.json").read_text())["files"]
    return {"step": newest.name} | {n: f["sha256"] for n, f in files.items() if n.endswith(".safetensors")}


def log(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def stop_at(monkeypatch: pytest.MonkeyPatch, *steps: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal in the middle of these steps (each once)."""
    from sslcli.optim import Optimizer

    waiting, plain = list(steps), Optimizer.step

    def step(self, world, at):
        if waiting and at == waiting[0]:
            waiting.pop(0)
            os.kill(os.getpid(), number)
        return plain(self, world, at)

    monkeypatch.setattr(Optimizer, "step", step)


@pytest.mark.parametrize("steps", [(0,), (9,), (10,), (15,), (31,), (3, 8, 17, 18, 39)], ids=str)
def test_stopped_by_a_signal_and_resumed(ssl, workload, uninterrupted, monkeypatch, steps) -> None:
    uninterrupted(40, "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, *steps)
        done = ssl(*workload, "trainer.steps=40", "run.dir=cut")
        assert done.code == 75 and "resume=auto" in done.err
        for _ in steps[1:]:
            assert ssl("pretrain", "run.dir=cut", "resume=auto").code == 75
        done = ssl("pretrain", "run.dir=cut", "resume=auto")
    assert done.code == 0, done.err
    assert tensors(Path("cut")) == tensors(Path("whole"))
    assert log(Path("cut")) == log(Path("whole")), "no step is missing from the log, none stands there twice"
    metrics = [json.loads(Path(f"{run}/metrics.json").read_text()) for run in ("cut", "whole")]
    assert metrics[0]["valid"] == metrics[1]["valid"]
    assert metrics[0]["train"]["data_order"] == metrics[1]["train"]["data_order"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_other_signals_stop_as_well(ssl, workload, monkeypatch, number) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 5, number=number)
        assert ssl(*workload, "trainer.steps=12", "run.dir=cut").code == 75
    state = checkpoint.newest(Path("cut/checkpoints")).state
    assert state["done"] == 6, "the step in hand is finished, and none is lost"


def test_a_finished_run_can_be_resumed_and_a_run_in_the_way_is_refused(ssl, workload) -> None:
    assert ssl(*workload, "trainer.steps=6", "run.dir=a").code == 0
    before = tensors(Path("a"))
    assert ssl("pretrain", "run.dir=a", "resume=auto").code == 0
    assert tensors(Path("a")) == before
    done = ssl(*workload, "trainer.steps=6", "run.dir=a")
    assert done.code == 2 and "resume=auto" in done.err


def test_resume_refuses_other_settings_and_other_data(ssl, workload, monkeypatch, tmp_path) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        assert ssl(*workload, "trainer.steps=12", "run.dir=a").code == 75
    done = ssl("pretrain", "run.dir=a", "resume=auto", "optimizer.lr=5e-4", "trainer.log_every=2")
    assert done.code == 2 and "optimizer.lr" in done.err and "log_every" not in done.err
    done = ssl("pretrain", "run.dir=a", "resume=auto", "augment=mae")
    assert done.code == 2 and "augment: the run to resume has none" in done.err
    write_jsonl(tmp_path / "data.jsonl", [{"text": r["text"]} for r in rows(512, seed=1)])
    done = ssl("pretrain", "run.dir=a", "resume=auto")
    assert done.code == 2 and "data.jsonl has changed" in done.err and "allow_changed" in done.err
    assert ssl("pretrain", "run.dir=a", "resume=auto", "data.allow_changed=true").code == 0


def test_another_verb_is_told_which_one_it_is(ssl, workload) -> None:
    assert ssl(*workload, "trainer.steps=2", "run.dir=a").code == 0
    done = ssl("finetune", "run.dir=a", "resume=auto")
    assert done.code == 2 and "is a run of ssl pretrain; ssl pretrain run.dir=a resume=auto goes on with it" in done.err


def damage(path: Path, how: str) -> None:
    raw = bytearray(path.read_bytes())
    if how == "bit":
        raw[len(raw) // 2] ^= 4
    elif how == "cut":
        raw = raw[:-1]
    elif how == "longer":
        raw += b"\0"
    elif how == "zeros":
        raw[len(raw) // 2 :] = bytes(len(raw) - len(raw) // 2)
    elif how == "empty":
        raw = bytearray()
    path.write_bytes(raw)


@pytest.mark.parametrize("how", ["bit", "cut", "longer", "zeros", "empty"])
@pytest.mark.parametrize("name", ["weights.safetensors", "moments.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_refused_and_an_older_one_used(ssl, uninterrupted, name, how) -> None:
    uninterrupted(20, "a")
    whole = tensors(Path("a"))
    newest = Path("a/checkpoints/step-00000020")
    damage(newest / name, how)
    done = ssl("pretrain", "run.dir=a", "resume=auto")
    assert done.code == 0, done.err
    assert name in done.err and "resumed after step 1" in done.err
    assert tensors(Path("a")) == whole


def test_all_checkpoints_damaged_is_exit_5_and_nothing_is_deleted(ssl, uninterrupted) -> None:
    uninterrupted(20, "a")
    folders = sorted(Path("a/checkpoints").glob("step-*"))
    for folder in folders:
        damage(folder / "weights.safetensors", "bit")
    done = ssl("pretrain", "run.dir=a", "resume=auto")
    assert done.code == 5 and all(f.name in done.err for f in folders)
    assert sorted(Path("a/checkpoints").glob("step-*")) == folders


def test_a_thousand_flipped_bits_are_all_found(tmp_path) -> None:
    import torch

    tensors_ = {"weights": {"a": torch.randn(30), "b": torch.ones(3, 4)}, "moments": {"a|step": torch.tensor(3.0)}}
    path = checkpoint.save(tmp_path, 7, "abc", tensors_, {"done": 7})
    checkpoint.verify(path)
    random_ = random.Random(0)
    files = sorted(p for p in path.iterdir())
    for _ in range(1000):
        file = random_.choice(files)
        raw = file.read_bytes()
        flipped = bytearray(raw)
        flipped[random_.randrange(len(raw))] ^= 1 << random_.randrange(8)
        file.write_bytes(flipped)
        with pytest.raises(checkpoint.BadCheckpoint):
            checkpoint.verify(path)
        file.write_bytes(raw)
    checkpoint.verify(path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_any_refused_write_of_a_save_leaves_older_checkpoints_alone(tmp_path, monkeypatch, code) -> None:
    """Fail the first, second, third ... operation of a save until one passes untouched."""
    import torch

    first = {"weights": {"a": torch.ones(4)}}
    old = checkpoint.save(tmp_path, 1, "abc", first, {"done": 1})
    before = {p.name: p.read_bytes() for p in old.iterdir()}
    for n in range(100):
        count = iter(range(1000))

        def failing(plain, count=count, n=n):
            def call(*args, **kwargs):
                if next(count) == n:
                    raise OSError(code, os.strerror(code))
                return plain(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(os.fsync))
            patch.setattr(Path, "rename", failing(Path.rename))
            patch.setattr(Path, "mkdir", failing(Path.mkdir))
            patch.setattr(Path, "open", failing(Path.open))
            try:
                checkpoint.save(tmp_path, 2, "abc", {"weights": {"a": torch.zeros(4)}}, {"done": 2})
                passed = next(count) <= n
            except OSError:
                passed = False
        assert {p.name: p.read_bytes() for p in old.iterdir()} == before
        assert not list(tmp_path.glob(".tmp-*"))
        assert checkpoint.newest(tmp_path).step in (1, 2)
        if passed:
            assert n > 8 and checkpoint.newest(tmp_path).step == 2
            return
    pytest.fail("a save never passed")


def test_a_full_disk_is_survived_once_and_ends_in_exit_6(ssl, workload, monkeypatch) -> None:
    plain, fail = checkpoint.save, {2}
    calls = []

    def save(root, step, *rest):
        calls.append(step)
        if len(calls) in fail:
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(root, step, *rest)

    monkeypatch.setattr(checkpoint, "save", save)
    done = ssl(*workload, "trainer.steps=40", "trainer.eval_every=100", "run.dir=once")
    assert done.code == 0 and "not written" in done.err
    calls.clear()
    fail |= set(range(2, 50))
    done = ssl(*workload, "trainer.steps=60", "trainer.eval_every=100", "run.dir=full")
    assert done.code == 6 and "older ones are intact" in done.err
    assert checkpoint.newest(Path("full/checkpoints")).step == 10
    monkeypatch.undo()


def test_too_little_room_is_said_before_step_one(ssl, workload, monkeypatch) -> None:
    from sslcli import device

    monkeypatch.setattr(device, "free_bytes", lambda _: 1000)
    done = ssl(*workload, "trainer.steps=10", "run.dir=a")
    assert done.code == 6 and "MB are needed" in done.err and not list(Path("a/checkpoints").glob("*"))


def test_a_busy_folder_is_exit_9(ssl, workload, tmp_path) -> None:
    from sslcli.run import Run

    assert ssl(*workload, "trainer.steps=2", f"run.dir={tmp_path / 'a'}").code == 0
    with Run(dir=str(tmp_path / "a")).claim("", True):
        done = ssl(*workload, "trainer.steps=2", f"run.dir={tmp_path / 'a'}")
        assert done.code == 9 and "in use by process" in done.err
        assert ssl("pretrain", f"run.dir={tmp_path / 'a'}", "resume=auto").code == 9


def test_a_run_that_never_began_leaves_no_folder(ssl, workload, tmp_path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"text": "good"}\n{"text": \n')
    done = ssl(*workload, "data.train=broken.jsonl", "trainer.steps=2", "run.dir=runs/a")
    assert done.code == 2 and "broken.jsonl:2" in done.err
    assert not (tmp_path / "runs").exists()
    assert ssl(*workload, "trainer.steps=2", "run.dir=runs/a").code == 0

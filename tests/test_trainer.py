"""The loop: accumulation, terms, non-finite gradients, memory, time, patience; and a pinned trace."""

import json
from pathlib import Path

import pytest
import torch

from sslcli import device
from sslcli.core import Output
from sslcli.objectives.masked_lm import MaskedLM
from sslcli.trainer import Trainer
from tests.conftest import TINY, log, rows, write_jsonl

SMALL = [*TINY, "data.max_length=16", "trainer.batch_size=16", "trainer.precision=fp32", "trainer.log_every=1"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl", rows(200))


def far(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return float(torch.cat([(a[n] - b[n]).flatten() for n in a]).norm() / torch.cat([a[n].flatten() for n in a]).norm())


def command_for(verb: str, data: Path) -> list[str]:
    """A run of each kind of weight: hidden tokens, examples, tagged words."""
    if verb == "token":
        tagged = [{"tokens": r["text"].split(), "tags": ["B-X" if w == r["label"] else "O" for w in r["text"].split()]} for r in rows(200)]
        data = write_jsonl(data.with_name("tagged.jsonl"), tagged)
        return ["finetune", "task=token_classification", f"data.train={data}", *SMALL, "dropout=0", "trainer.steps=1"]
    # a head that was solved leaves gradients so small that they are mostly rounding in bf16
    dropout = ["dropout=0", "task.dropout=0", "task.start=random"] if verb == "finetune" else []
    objective = ["objective=masked_lm"] if verb == "pretrain" else []
    return [verb, *objective, f"data.train={data}", *SMALL, *dropout, "trainer.steps=1"]


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "token"])
def test_accumulation_is_a_larger_batch(ssl, data, gradients, verb) -> None:
    """1 x 16, 2 x 8 and 16 x 1 rows give the same gradient, weighed by tokens (pretraining, tags) or examples."""
    command = command_for(verb, data)
    for micro in (16, 8, 1):
        done = ssl(*command, f"trainer.micro_batch_size={micro}", f"run.dir=m{micro}")
        assert done.code == 0, done.err
    assert far(gradients[0], gradients[1]) < 2e-6 and far(gradients[0], gradients[2]) < 2e-6
    assert log("m16")[0]["loss"] == pytest.approx(log("m1")[0]["loss"], rel=1e-6)
    # in bf16 every pass rounds, but summing many does not make it worse: that sum is kept in fp32
    for micro in (16, 1):
        assert ssl(*command, "trainer.precision=bf16", f"trainer.micro_batch_size={micro}", f"run.dir=b{micro}").code == 0
    whole, pieces = far(gradients[0], gradients[3]), far(gradients[0], gradients[4])
    assert pieces < max(1.5 * whole, 0.02), (whole, pieces)


def test_two_terms_are_their_weighted_sum(ssl, data, gradients, monkeypatch) -> None:
    """The same objective twice, weights 0.3 and 0.7, each on its own stream: the gradient is that of one term."""
    from sslcli.core import Term

    assert ssl("pretrain", "objective=masked_lm", f"data.train={data}", *SMALL, "trainer.steps=3", "run.dir=one").code == 0
    plain = Trainer.fit

    def fit(self, modules, terms, *rest, **options):
        (term,) = terms
        split = [Term(n, term.objective, term.stream, term.adversary, w) for n, w in (("a", 0.3), ("b", 0.7))]
        return plain(self, modules, split, *rest, **options)

    monkeypatch.setattr(Trainer, "fit", fit)
    assert (
        ssl(
            "pretrain", "objective=masked_lm", f"data.train={data}", *SMALL, "trainer.steps=3", "trainer.micro_batch_size=5", "run.dir=two"
        ).code
        == 0
    )
    for step in range(3):
        assert far(gradients[step], gradients[3 + step]) < 1e-5
    assert {"a.loss", "b.loss"} <= set(log("two")[0])


def poison(monkeypatch, steps: set[int]) -> None:
    """Make the loss of these forward passes (counted in training) not a number."""
    plain, count = MaskedLM.forward, iter(range(100_000))

    def forward(self, model, batch):
        output = plain(self, model, batch)
        if torch.is_grad_enabled() and next(count) in steps:
            return Output(output.loss * float("nan"), output.logs)
        return output

    monkeypatch.setattr(MaskedLM, "forward", forward)


def test_a_non_finite_step_moves_nothing_and_is_written_down(ssl, data, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        poison(patch, {3, 4, 9})
        done = ssl("pretrain", "objective=masked_lm", f"data.train={data}", *SMALL, "trainer.steps=12", "run.dir=a")
    assert done.code == 0 and "non-finite" in done.err
    anomalies = [json.loads(line) for line in Path("a/anomalies.jsonl").read_text().splitlines()]
    assert [a["step"] for a in anomalies] == [4, 5, 10] and all(len(a["rows"][0]) == 16 for a in anomalies)
    metrics = json.loads(Path("a/metrics.json").read_text())
    assert metrics["train"]["refused_steps"] == 3 and metrics["valid"]["loss"] == metrics["valid"]["loss"]


def test_five_in_a_row_is_exit_4_and_no_checkpoint_is_poisoned(ssl, data, monkeypatch) -> None:
    from sslcli import checkpoint

    poison(monkeypatch, set(range(6, 100)))
    done = ssl("pretrain", "objective=masked_lm", f"data.train={data}", *SMALL, "trainer.steps=30", "trainer.save_every=2", "run.dir=a")
    assert done.code == 4 and "lower optimizer.lr" in done.err and "Traceback" not in done.err
    found = checkpoint.newest(Path("a/checkpoints"))
    assert all(bool(torch.isfinite(t).all()) for t in found.tensors("weights").values())


def test_out_of_memory_halves_the_pieces_and_keeps_the_gradient(ssl, data, gradients, monkeypatch) -> None:
    assert ssl("pretrain", "objective=masked_lm", f"data.train={data}", *SMALL, "trainer.steps=2", "run.dir=one").code == 0
    plain = MaskedLM.forward

    def forward(self, model, batch):
        if torch.is_grad_enabled() and len(batch["ids"]) > 4:
            raise torch.OutOfMemoryError("no room")
        return plain(self, model, batch)

    monkeypatch.setattr(MaskedLM, "forward", forward)
    done = ssl("pretrain", "objective=masked_lm", f"data.train={data}", *SMALL, "trainer.steps=2", "run.dir=two")
    assert done.code == 0 and "going on with 8" in done.err and "going on with 4" in done.err
    assert far(gradients[0], gradients[2]) < 2e-6 and far(gradients[1], gradients[3]) < 1e-5
    done = ssl(
        "pretrain", "objective=masked_lm", f"data.train={data}", *SMALL, "trainer.steps=2", "trainer.micro_batch_size=16", "run.dir=three"
    )
    assert done.code == 8 and "trainer.micro_batch_size=8" in done.err


def test_patience_stops_and_the_best_weights_are_kept(ssl, data) -> None:
    wild = ["optimizer.lr=0.3", "optimizer.clip=null", "optimizer.schedule=constant"]
    done = ssl(
        "pretrain",
        "objective=masked_lm",
        f"data.train={data}",
        *SMALL,
        *wild,
        "trainer.steps=60",
        "trainer.eval_every=2",
        "trainer.patience=3",
        "run.dir=a",
    )
    assert done.code == 0, done.err
    assert "no better score in 3 evaluations" in done.err
    valid = [r["valid"]["loss"] for r in log("a") if "valid" in r]
    assert json.loads(Path("a/metrics.json").read_text())["valid"]["loss"] == pytest.approx(min(valid), rel=1e-6)


def test_a_time_limit_sets_the_steps_and_is_kept(ssl, data) -> None:
    done = ssl("pretrain", "objective=masked_lm", f"data.train={data}", *SMALL, "trainer.time_limit=2s", "run.dir=a")
    assert done.code == 0, done.err
    train = json.loads(Path("a/metrics.json").read_text())["train"]
    assert train["steps"] >= 1 and ("time limit of 2 s reached" in done.err or train["steps"] >= 10)
    assert ssl("pretrain", "objective=masked_lm", f"data.train={data}", *SMALL, "trainer.time_limit=soon", "run.dir=b").code == 2


def test_two_runs_of_one_seed_are_equal_and_another_seed_is_not(ssl, data) -> None:
    for run, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert (
            ssl(
                "pretrain",
                "objective=masked_lm",
                f"data.train={data}",
                *SMALL,
                "trainer.precision=auto",
                "trainer.steps=6",
                f"seed={seed}",
                f"run.dir={run}",
            ).code
            == 0
        )
    a, b, c = ([r["loss"] for r in log(run) if "loss" in r] for run in "abc")
    assert a == b and a != c


def test_gradient_checkpointing_changes_nothing_but_memory(ssl, data, gradients) -> None:
    for run, value in (("a", "false"), ("b", "true")):
        assert (
            ssl(
                "pretrain",
                "objective=masked_lm",
                f"data.train={data}",
                *SMALL,
                "trainer.steps=1",
                f"trainer.gradient_checkpointing={value}",
                f"run.dir={run}",
            ).code
            == 0
        )
    assert far(gradients[0], gradients[1]) < 1e-6


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "lion", "muon"])
def test_every_optimizer_learns(ssl, data, optimizer) -> None:
    done = ssl("pretrain", "objective=masked_lm", f"data.train={data}", *SMALL, f"optimizer={optimizer}", "trainer.steps=40", "run.dir=a")
    assert done.code == 0, done.err
    losses = [r["loss"] for r in log("a") if "loss" in r]
    assert sum(losses[-5:]) < sum(losses[:5]), losses


def test_pieces_of_pictures_grow_with_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    sizes = {}
    for gigabytes in (8, 16, 80):
        found = type("Properties", (), {"total_memory": gigabytes * 10**9})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, found=found: found)
        sizes[gigabytes] = (device.token_budget(cuda), device.token_budget(cuda, pictures=True))
    assert sizes == {8: (65_536, 65_536), 16: (65_536, 65_536), 80: (65_536, 4 * 65_536)}

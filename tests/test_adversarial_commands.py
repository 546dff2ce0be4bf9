"""Adversaries through the verbs: the gradient however a batch is cut, receipts, resuming, pictures."""

import json
from pathlib import Path

import pytest

from sslcli.core import Term
from tests.conftest import TINY, log
from tests.test_adversarial import far
from tests.test_resume import log as timeless
from tests.test_resume import stop_at, tensors

SMALL = [*TINY, "data.max_length=16", "trainer.batch_size=16", "trainer.log_every=1", "baseline=false", "dropout=0", "task.dropout=0"]


@pytest.mark.parametrize("name", ["fgm", "freelb", "smart"])
def test_accumulation_two_terms_and_checkpointing_give_the_same_gradient(ssl, labelled, gradients, monkeypatch, name) -> None:
    from sslcli.trainer import Trainer

    command = [
        "finetune",
        f"data.train={labelled}",
        *SMALL,
        f"adversarial={name}",
        "trainer.steps=1",
        "trainer.precision=fp32",
        "task.start=random",
    ]
    command += ["adversarial.step_size=0.2"] if name == "smart" else []
    assert ssl(*command, "run.dir=whole").code == 0
    more = [["trainer.micro_batch_size=5"], ["trainer.gradient_checkpointing=true"]] if name != "smart" else [[]]
    for i, options in enumerate(more):
        assert ssl(*command, *options, f"run.dir=m{i}").code == 0
    plain = Trainer.fit

    def fit(self, modules, terms, *rest, **options):
        (term,) = terms
        split = [Term(n, term.objective, term.stream, term.adversary, w) for n, w in (("a", 0.3), ("b", 0.7))]
        return plain(self, modules, split, *rest, **options)

    monkeypatch.setattr(Trainer, "fit", fit)
    assert ssl(*command, "run.dir=two").code == 0
    tolerance = 1e-5 if name != "smart" else 0.05  # its noise begins at random, anew for each term
    assert all(far(g, gradients[0]) < tolerance for g in gradients[1:]), [far(g, gradients[0]) for g in gradients[1:]]


def test_receipts_and_log_say_what_was_done(ssl, labelled) -> None:
    for name, precision in (("freelb", "bf16"), ("awp", "bf16"), ("vat", "fp32")):
        done = ssl(
            "finetune",
            f"data.train={labelled}",
            *SMALL,
            f"adversarial={name}",
            "trainer.steps=3",
            f"trainer.precision={precision}",
            f"run.dir={name}",
        )
        assert done.code == 0, done.err
        assert "times the time of a plain step" in done.err
        receipt = json.loads(Path(f"{name}/receipts.json").read_text())["adversarial"]
        assert receipt["kind"] == name and receipt["cost"] > 1 and 0 < receipt["reached"] <= receipt["radius"] * 1.2
        assert all(line["noise"] > 0 and "raised" in line for line in log(name) if "loss" in line)
    done = ssl(
        "pretrain", f"data.train={labelled}", *SMALL[:-3], "objective=masked_lm", "adversarial=smart", "trainer.steps=3", "run.dir=x"
    )
    assert done.code == 2 and "compares logits" in done.err and "Traceback" not in done.err
    done = ssl("finetune", f"data.train={labelled}", *SMALL, "adversarial=fgm", "adversarial.on=input", "trainer.steps=3", "run.dir=y")
    assert done.code == 2 and "adversarial.on=input" in done.err


def test_noise_that_is_lost_is_not_silent(ssl, labelled, monkeypatch) -> None:
    from sslcli.perturbed import Perturbed

    monkeypatch.setattr(Perturbed, "__call__", lambda self, x: x + (0 * self.value).to(x.dtype))
    done = ssl("finetune", f"data.train={labelled}", *SMALL, "adversarial=fgm", "trainer.steps=2", "run.dir=a")
    assert done.code == 1 and "the noise that the network saw is 0" in done.err


def test_resumed_with_freelb_it_ends_as_if_never_stopped(ssl, labelled, monkeypatch) -> None:
    command = [
        "finetune",
        f"data.train={labelled}",
        *SMALL[:-2],
        "dropout=0.1",
        "adversarial=freelb",
        "trainer.steps=8",
        "trainer.save_every=3",
    ]
    command += ["trainer.deterministic=true", "trainer.micro_batch_size=8", "trainer.log_every=2"]
    assert ssl(*command, "run.dir=whole").code == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert ssl(*command, "run.dir=cut").code == 75
    assert ssl("finetune", "run.dir=cut", "resume=auto").code == 0
    assert tensors(Path("cut")) == tensors(Path("whole"))
    assert timeless(Path("cut")) == timeless(Path("whole"))


def test_pictures_by_the_verbs(ssl) -> None:
    common = ["data=digits", "trainer.steps=2", "trainer.batch_size=8", "trainer.log_every=1"]
    done = ssl("finetune", *common, "data.shots=2", "adversarial=pgd", "adversarial.on=input", "baseline=false", "run.dir=task")
    assert done.code == 0, done.err
    receipt = json.loads(Path("task/receipts.json").read_text())["adversarial"]
    assert receipt["on"] == "input" and 0 < receipt["reached"] <= receipt["radius"] + 1e-3
    done = ssl("pretrain", *common, "objective=byol", "objective.hidden=16", "objective.dim=8", "adversarial=fgm", "run.dir=self")
    assert done.code == 0, done.err
    assert json.loads(Path("self/receipts.json").read_text())["adversarial"]["reached"] > 0

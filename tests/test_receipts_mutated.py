"""Options of whole runs, each switched off in the code: the run that asked for it ends, or says in a line that it had no effect."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslcli import calibration, optim
from sslcli.augment import Augment
from sslcli.augment.preview import changes, doubt, receipt
from sslcli.augment.text import Rewriting
from sslcli.augmentations.mixup import Mixup
from sslcli.augmentations.views import Views
from sslcli.build import Modules, Moved
from sslcli.commands.seeds import Several
from sslcli.core import Output
from sslcli.data import survey
from sslcli.data.stream import Stream
from sslcli.evidence import receipts
from sslcli.joint import Balance
from sslcli.models.text import Text
from sslcli.objectives.byol import BYOL
from sslcli.objectives.consistency import Consistency
from sslcli.objectives.dino import DINO
from sslcli.objectives.moco import MoCo
from sslcli.objectives.self_training import SelfTraining
from sslcli.optim import Optimizer
from sslcli.teacher import Queue, Teacher
from tests.conftest import TINY, rows, write_jsonl
from tests.test_semi_supervised import part
from tests.tiny_networks import batch_of, digits, made

SHORT = [*TINY, "model.layers=2", "data.max_length=16", "trainer.batch_size=8", "trainer.steps=4", "trainer.log_every=1"]
SHORT += ["baseline=false", "leaks=false", "errors=false", "data.shots=8", "optimizer.lr=3e-3", "data.train=train.jsonl"]
BESIDE = ["joint.batch_size=8", "objective.threshold=0.2", "joint.weight=0.5", "data.unlabelled=more.jsonl"]
RUNS = {
    "augmented": ["augment=eda", "optimizer.layer_decay=0.5", "optimizer.ema=0.9"],
    "mixed": ["augment=mixup"],
    "held": ["data.valid=valid.jsonl", "trainer.steps=8", "trainer.eval_every=8"],
    "lora": ["peft=lora"],
    "bitfit": ["peft=bitfit"],
    "uda": [*BESIDE, "objective=uda"],
    "self_training": [*BESIDE, "objective=self_training", "objective.balance=false", "objective.rounds=1"],
    "seeds": ["trainer.seeds=2"],
    "cut": ["trainer.micro_batch_size=2", "trainer.gradient_checkpointing=true"],
}


@pytest.fixture
def run(ssl: Callable, tmp_path: Path) -> Callable[[str], Any]:
    for name, count, seed in (("train", 90, 0), ("valid", 60, 5), ("more", 60, 9)):
        write_jsonl(tmp_path / f"{name}.jsonl", rows(count, seed))
    return lambda name: ssl("finetune", *SHORT, *RUNS[name], f"run.dir={name}")


@pytest.mark.parametrize("name", ["augmented", "mixed", "held", "lora", "uda", "seeds", "cut"])
def test_a_run_in_order_says_nothing(run: Callable, name: str) -> None:
    done = run(name)
    assert done.code == 0, done.err
    assert not [what for *_, what in MUTATIONS.values() if what in done.err], done.err


def _idle(cls: type) -> Any:
    """The loss without its gradient: what was said of the rows is not used."""
    plain = cls.forward  # type: ignore[attr-defined]

    def forward(self: Any, model: Any, batch: Any) -> Output:
        found = plain(self, model, batch)
        return Output(found.loss * 0, found.logs)

    return forward


def _every_seed_is_the_first(self: Several, seed: int, screen: Any, plain: Any = Several._one) -> Any:
    given = self.one
    self.one = partial(lambda **words: given.func(**{**words, "seed": self.seeds[0]}), **given.keywords)
    try:
        return plain(self, seed, screen)
    finally:
        self.one = given


def _lora_of(every: bool) -> Any:
    """The low-rank product is left out in every layer, or in the first alone."""
    from peft.tuners.lora.layer import Linear

    plain, first = Linear.forward, list[Any]()

    def forward(self: Any, x: Any, *rest: Any, **more: Any) -> Any:
        first.append(self)
        return self.base_layer(x) if every or self is first[0] else plain(self, x, *rest, **more)

    return Linear, "forward", forward


# what is switched off -> the run, where and by what it is replaced, the exit code, and what must be said
MUTATIONS: dict[str, tuple[str, Any, int, str]] = {
    "texts are not changed": ("augmented", lambda: (Rewriting, "__call__", lambda s, batch, *_: batch), 0, "augment had no effect"),
    "texts are not mixed": ("mixed", lambda: (Mixup, "__call__", lambda s, batch, *_: batch), 0, "augment had no effect"),
    "one rate for all layers": (
        "augmented",
        lambda: (optim, "_groups", lambda n, m, decay, _, plain=optim._groups: plain(n, m, decay, 1.0)),
        0,
        "optimizer.layer_decay=0.5 had no effect",
    ),
    "the average is not kept": (
        "augmented",
        lambda: (Optimizer, "best_weights", lambda s: dict(zip(s.names, s.masters, strict=True))),
        0,
        "optimizer.ema=0.9 had no effect",
    ),
    "shots are not counted": ("mixed", lambda: (survey, "few", lambda _, kinds, shots: np.arange(len(kinds))), 1, "data.shots=8: "),
    "a temperature is not applied": ("held", lambda: (calibration, "fold", lambda *_: None), 1, "does not divide the logits"),
    "nothing is frozen": ("bitfit", lambda: (Text, "requires_grad_", lambda s, on=True: s), 1, "was to freeze the network"),
    "adapters are not used": ("lora", lambda: _lora_of(True), 1, "training changed nothing in model.base"),
    "one adapter is not used": ("lora", lambda: _lora_of(False), 0, "of its 24 tensors are as they began"),
    "pseudo-labels teach nothing (uda)": (
        "uda",
        lambda: (Consistency, "forward", _idle(Consistency)),
        0,
        "the loss beside the task had no",
    ),
    "pseudo-labels teach nothing": (
        "self_training",
        lambda: (SelfTraining, "forward", _idle(SelfTraining)),
        0,
        "the loss beside the task had no",
    ),
    "a loss is weighed otherwise": ("uda", lambda: (Balance, "at", lambda *_: 1.0), 1, "joint.weight=0.5: "),
    "a step is not cut": ("cut", lambda: (Stream, "_cut", lambda s, rows: [slice(0, len(rows))]), 1, "trainer.micro_batch_size=2: 8 rows"),
    "nothing is computed again": ("cut", lambda: (Text, "checkpoint_gradients", lambda s: None), 0, "gradient_checkpointing=true had no"),
    "all seeds are one": ("seeds", lambda: (Several, "_one", _every_seed_is_the_first), 0, "1 of 2 runs repeat another"),
}


@pytest.mark.parametrize("what", MUTATIONS)
def test_the_run_notices(run: Callable, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    name, mutation, code, said = MUTATIONS[what]
    monkeypatch.setattr(*mutation(), raising=False)
    done = run(name)
    assert done.code == code and said in done.err, done.err


@pytest.mark.parametrize("recipe", ["light", "simclr"])
def test_views_that_are_the_picture(monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    augment: Any = part("augment", Augment, recipe).build()
    pixels, draws = torch.randint(0, 255, (40, 1, 16, 16), dtype=torch.uint8), torch.rand(40, augment.draws)
    look = lambda: doubt(receipt(augment, pixels, draws, True), changes(augment, True))  # noqa: E731
    assert look() is None or "hardly more alike" in str(look())  # noise is no photograph
    monkeypatch.setattr(Views, "views", lambda self, pixels, *_: [pixels.float() / 255] * self.count)
    assert ("had no effect" if recipe == "light" else "nearly the same") in str(look())


FOLLOWERS = [(cls, Teacher, "move", "objective.slow_model") for cls in (BYOL, DINO, MoCo)] + [(MoCo, Queue, "push", "objective.queue")]


@pytest.mark.parametrize(("cls", "follower", "how", "block"), FOLLOWERS)
def test_teachers_and_queues_that_stand_still(monkeypatch: pytest.MonkeyPatch, cls: type, follower: type, how: str, block: str) -> None:
    for still in (False, True):
        if still:
            monkeypatch.setattr(follower, how, lambda *_: None)
        objective, model = made(cls, **({"queue": 64} if cls is MoCo else {}))
        modules = Modules(model, objective=objective).train()
        moved, engine = Moved(modules), torch.optim.SGD([p for p in modules.parameters() if p.requires_grad], 0.1)
        for step in range(2):
            engine.zero_grad()
            objective(model, batch_of(objective, digits(), epoch=step)).loss.backward()
            engine.step()
            objective.after_step(model, (step + 1) / 3)
        found = {"moved": {k: v for k, v in moved.receipt(modules).items() if "slow" in k or "queue" in k}}
        assert (found["moved"][block] == 0) == still
        if still:
            with pytest.raises(AssertionError, match=f"training changed nothing in .*{block}"):
                receipts.check(found, {"steps": 2, "refused_steps": 0})
        else:
            receipts.check(found, {"steps": 2, "refused_steps": 0})


def test_a_batch_that_is_taken_whole_is_told(ssl: Callable) -> None:
    words = ["data=digits", "model=resnet_nano", "trainer.batch_size=32", "trainer.micro_batch_size=8", "trainer.steps=2"]
    done = ssl("pretrain", "objective=simclr", *words, "run.dir=run")
    assert done.code == 0 and "trainer.micro_batch_size=8 had no effect on the batch of the objective" in done.err, done.err


def test_views_of_a_row_are_not_rows(ssl: Callable, corpus: Path) -> None:
    """A batch of spans holds each document twice; as many documents at once as were asked is what was asked."""
    words = [*TINY, "objective=span_contrastive", f"data.train={corpus}", "trainer.steps=2", "trainer.batch_size=8"]
    done = ssl("pretrain", *words, "trainer.micro_batch_size=8", "run.dir=run")
    assert done.code == 0 and "micro_batch_size" not in done.err, done.err

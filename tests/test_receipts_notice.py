"""A receipt is worth what it notices: each feature is switched off in the code, and the run that asked for it must say so."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sslcli.core import Objective, Places
from sslcli.data import chance
from sslcli.objectives import masked_lm
from sslcli.objectives.distill import _Teacher
from sslcli.objectives.mae import MAE
from sslcli.objectives.masked_lm import MaskedLM
from sslcli.objectives.simcse import SimCSE
from sslcli.objectives.simmim import SimMIM
from sslcli.objectives.tsdae import TSDAE
from sslcli.optim import Optimizer
from tests.conftest import TINY
from tests.test_objectives import network
from tests.tiny_networks import digits, made

ROWS = np.arange(64)


def stream_of(objective: Objective, store: Any = None) -> Any:
    """What a receipt looks at: the batches of an epoch."""
    batches = lambda step: [objective.read(store, ROWS, chance.keys(0, step, ROWS))]  # noqa: E731
    return SimpleNamespace(steps_per_epoch=8, batches=batches, batch_size=len(ROWS))


@pytest.mark.parametrize(("cls", "switch"), [(MAE, "seen"), (SimMIM, "masked")])
def test_patches_that_are_not_hidden(cls: type, switch: str) -> None:
    objective, _ = made(cls, vit=True)
    stream = stream_of(objective, digits())
    assert objective.receipt(stream)["masked"]["measured"] == pytest.approx(objective.ratio, abs=0.16)  # SimMIM rounds up to whole squares
    setattr(objective, switch, objective.patches - 1 if cls is MAE else 1)
    with pytest.raises(AssertionError, match="of the patches"):
        objective.receipt(stream)


@pytest.mark.parametrize("masking", ["token", "whole_word", "span"])
def test_tokens_that_are_not_hidden(words: Any, monkeypatch: pytest.MonkeyPatch, masking: str) -> None:
    tokenizer, model = network(words, "bert")
    objective = MaskedLM(model, tokenizer, rate=0.3, masking=masking, show_mask=0.8, show_random=0.1)  # type: ignore[arg-type]
    ids = np.random.default_rng(0).integers(10, tokenizer.size, (len(ROWS), 32))
    monkeypatch.setattr(masked_lm, "block_places", lambda store, length: Places(len(ROWS), None, 32))
    monkeypatch.setattr(masked_lm, "read_blocks", lambda store, rows, width: ids[rows].copy())
    assert 0.15 < objective.receipt(stream_of(objective))["masked"]["measured"] < 0.38
    choose = MaskedLM.choose
    monkeypatch.setattr(MaskedLM, "choose", lambda self, ids, keys: choose(self, ids, keys) & (np.arange(ids.shape[1]) < 4))
    with pytest.raises(AssertionError, match=r"of the tokens are hidden, not 0\.3"):
        objective.receipt(stream_of(objective))


def test_tokens_that_are_not_deleted(words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, model = network(words, "bert")
    objective = TSDAE(model, tokenizer, ratio=0.6, layers=1, heads=2, inner=32)
    texts = np.random.default_rng(0).integers(10, tokenizer.size, (len(ROWS), 28))
    monkeypatch.setattr(objective.documents, "read", lambda store, rows: list(texts[rows]))
    assert objective.receipt(stream_of(objective))["deleted"]["measured"] == pytest.approx(0.6, abs=0.05)
    monkeypatch.setattr(TSDAE, "chosen", lambda self, draw: np.arange(len(draw)))
    with pytest.raises(AssertionError, match=r"of the tokens are deleted, not 0\.6"):
        objective.receipt(stream_of(objective))


def test_dropout_that_is_not_on(words: Any) -> None:
    """The two passes of SimCSE: apart with dropout in the network, alike without it."""
    tokenizer, model = network(words, "bert")
    batch = {"ids": torch.randint(10, tokenizer.size, (8, 16)), "weight": torch.tensor(8.0)}
    for on in (True, False):
        objective = SimCSE(model, tokenizer, temperature=0.05, dropout=0.1, pairs=False, symmetric=False).train()
        for module in model.train().modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1 if on else 0.0
        objective(model, batch)
        if on:
            assert objective.receipt(None)["sides"]["one_minus_cosine"] > 1e-3
            continue
        with pytest.raises(AssertionError, match=r"dropout 0\.1 is not on"):
            objective.receipt(None)


def test_a_teacher_that_moves(words: Any) -> None:
    tokenizer, model = network(words, "bert")
    model.loaded = {}  # type: ignore[assignment]
    teacher = _Teacher(model, tokenizer)
    assert teacher.receipt()["parameters"] > 0
    with torch.no_grad():
        next(model.parameters()).add_(0.01)
    with pytest.raises(AssertionError, match="the teacher's weights have moved"):
        teacher.receipt()


RUN = ["pretrain", "objective=masked_lm", *TINY, "data.max_length=16", "trainer.batch_size=8", "trainer.steps=2", "run.dir=run"]


def test_an_optimizer_that_changes_nothing(ssl: Any, corpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Optimizer, "_move", lambda *_: None)
    done = ssl(*RUN, f"data.train={corpus}")
    assert done.code == 1 and "training changed nothing in" in done.err


def test_an_adversary_that_adds_no_noise(ssl: Any, corpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sslcli.noise import Inside

    monkeypatch.setattr(Inside, "point", lambda self, size: None)
    done = ssl(*RUN, f"data.train={corpus}", "adversarial=fgm")
    assert done.code == 1 and "the noise that the network saw is 0" in done.err

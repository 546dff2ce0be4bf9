"""SimCSE and TSDAE: their losses as loops, what is drawn, and how they are resumed."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sslcli.data import chance
from sslcli.data.store import Store, Writer
from sslcli.hf.pooling import read_pooling
from sslcli.models.text import Text
from sslcli.objectives.simcse import SimCSE
from sslcli.objectives.tsdae import TSDAE
from tests.conftest import SENTENCES, TINY
from tests.test_objectives import network

OPTIONS = {"temperature": 0.05, "dropout": 0.1, "pairs": False, "symmetric": False}


@pytest.fixture
def store(tmp_path: Path, words) -> Store:
    """Three sentences a record, as a corpus of pairs with negatives is laid down."""
    return lay(tmp_path / "store", words[False], [SENTENCES[i % 9][0] for i in range(45)], 3)


def lay(folder: Path, tokenizer, texts: list[str], each: int) -> Store:
    folder.mkdir()
    writer = Writer(folder, {"ids": np.uint16}, {"ids"})
    for text in texts:
        ids = [*tokenizer.prefix, *tokenizer.hf(text, add_special_tokens=False)["input_ids"], *tokenizer.suffix]
        writer.append(1, {"ids": np.array([len(ids)])}, ids=np.array(ids))
    writer.meta = {"texts": each}
    writer.finish()
    return Store(folder)


def with_dropout(words, rate: float) -> tuple:
    tokenizer, _ = network(words, "bert")
    torch.manual_seed(0)
    return tokenizer, Text(tokenizer, architecture="bert", layers=2, width=32, heads=2, inner=64, positions=64, dropout=rate)


def naive(anchors: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor, temperature: float) -> float:
    total = 0.0
    for i, a in enumerate(anchors):
        near = [math.exp(float(F.cosine_similarity(a, k, dim=0)) / temperature) for k in (*positives, *negatives)]
        total -= math.log(near[i] / sum(near))
    return total / len(anchors)


def test_two_passes_differ_by_dropout_alone_and_the_loss_is_a_loop(words, store) -> None:
    tokenizer, model = with_dropout(words, 0.3)
    objective = SimCSE(model, tokenizer, **OPTIONS)
    batch = objective.read(store, np.arange(6), chance.keys(0, 0, np.arange(6)))
    assert len(batch["ids"]) == 6 == float(batch["weight"])
    model.train(), objective.train()
    torch.manual_seed(7)
    found = objective(model, batch)
    torch.manual_seed(7)
    twice = {k: batch[k].repeat(2, 1) for k in ("ids", "mask") if k in batch}
    with torch.no_grad():
        first, second = model.pool(model.encode(twice), twice).chunk(2)
    assert not torch.allclose(first, second, atol=1e-3)
    assert float(found.loss) == pytest.approx(naive(first, second, first[:0], 0.05), rel=1e-4)
    assert objective.receipt(None)["sides"]["one_minus_cosine"] > 1e-3


def test_held_out_losses_draw_dropout_alike_and_leave_the_state_alone(words, store) -> None:
    tokenizer, model = with_dropout(words, 0.3)
    objective = SimCSE(model, tokenizer, **OPTIONS).eval()
    model.eval()
    batch = objective.read(store, np.arange(6), chance.keys(0, 0, np.arange(6)))
    before = torch.random.get_rng_state()
    with torch.no_grad():
        a, b = objective(model, batch), objective(model, batch)
    assert float(a.loss) == float(b.loss) and float(a.logs["positive_cosine"]) < 0.9999
    assert torch.equal(before, torch.random.get_rng_state()) and not model.training


def test_a_network_without_dropout_is_found_out(words, store) -> None:
    tokenizer, model = with_dropout(words, 0.0)
    objective = SimCSE(model, tokenizer, **OPTIONS)
    objective(model, objective.read(store, np.arange(6), chance.keys(0, 0, np.arange(6))))
    with pytest.raises(AssertionError, match=r"dropout 0\.1 is not on"):
        objective.receipt(None)


@pytest.mark.parametrize("symmetric", [False, True])
def test_pairs_and_hard_negatives(words, store, symmetric) -> None:
    tokenizer, model = with_dropout(words, 0.0)
    objective = SimCSE(model, tokenizer, **{**OPTIONS, "pairs": True, "symmetric": symmetric}).eval()
    model.eval()
    assert objective.rows(store).count == 15
    batch = objective.read(store, np.array([3, 1, 4]), chance.keys(0, 0, np.array([3, 1, 4])))
    a, b, n = model.pool(model.encode(batch), batch).detach().chunk(3)
    whole = store["ids"].take(np.array([9, 3, 12, 10, 4, 13, 11, 5, 14]))
    for row, ids in zip(batch["ids"], whole, strict=True):
        assert row.tolist()[: len(ids)] == ids.tolist(), "sides of a record stand together, in the order of the rows"
    expected = naive(a, b, n, 0.05)
    expected = (expected + naive(b, a, n[:0], 0.05)) / 2 if symmetric else expected
    assert float(objective(model, batch).loss) == pytest.approx(expected, rel=1e-4)


def tsdae(words, ratio: float = 0.6, **more) -> tuple:
    tokenizer, model = network(words, "bert")
    return tokenizer, model, TSDAE(model, tokenizer, **{"ratio": ratio, "layers": 1, "heads": 2, "inner": 64, **more}).eval()


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.6, 0.95])
def test_the_share_deleted_is_what_was_asked_and_never_all(words, store, ratio) -> None:
    tokenizer, _, objective = tsdae(words, ratio)
    chosen = np.arange(45)
    batch = objective.read(store, chosen, chance.keys(0, 0, chosen))
    ends = len(tokenizer.prefix) + len(tokenizer.suffix)
    kept = whole = 0
    for i, ids in enumerate(store["ids"].take(chosen)):
        row = batch["ids"][i][batch["mask"][i]] if "mask" in batch else batch["ids"][i]
        row, text = row.tolist(), ids.tolist()
        inner, original = row[len(tokenizer.prefix) : len(row) - len(tokenizer.suffix)], text[1:-1]
        assert len(inner) >= 1 and len(row) == len(inner) + ends
        place = iter(original)
        assert all(token in place for token in inner), "what stays keeps its order"
        kept, whole = kept + len(inner), whole + len(original)
    assert 1 - kept / whole == pytest.approx(ratio, abs=0.06) == pytest.approx(float(batch["deleted"]), abs=0.06)
    targets = batch["target"].tolist()
    assert targets == [t for ids in store["ids"].take(chosen) for t in ids.tolist()[1:]], "the whole text and its end"


@pytest.mark.parametrize("layers", [1, 2])
def test_the_decoder_hears_the_pooled_vector_alone_and_no_later_token(words, store, layers) -> None:
    _, model, objective = tsdae(words, layers=layers)
    batch = objective.read(store, np.arange(4), chance.keys(0, 0, np.arange(4)))
    hidden = model.encode(batch)
    vector = model.pool(hidden, batch)
    gradient = torch.autograd.grad(objective(model, batch).loss, list(model.base.encoder.parameters()), allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in gradient)
    model.pool = lambda hidden, batch: vector.detach()  # type: ignore[method-assign]
    cut = torch.autograd.grad(objective(model, batch).loss, list(model.base.encoder.parameters()), allow_unused=True)
    assert all(g is None for g in cut), "there is no other way from the encoder to the loss"
    later = batch["asked"].clone()
    later[:, 5:] = 7
    a, b = (objective.decode(model, vector, asked) for asked in (batch["asked"], later))
    assert torch.allclose(a[:, :5], b[:, :5], atol=1e-5) and not torch.allclose(a[:, 5:], b[:, 5:], atol=1e-3)
    assert not torch.allclose(a, objective.decode(model, vector.flip(0), batch["asked"]), atol=1e-3)


def test_its_words_are_the_networks(words, store) -> None:
    _, model, objective = tsdae(words)
    assert not any(p.shape == model.embedding.weight.shape for p in objective.parameters())
    batch = objective.read(store, np.arange(4), chance.keys(0, 0, np.arange(4)))
    vector = model.pool(model.encode(batch), batch)
    hidden = objective.decode(model, vector, batch["asked"]).flatten(0, 1)[batch["where"]]
    expected = F.cross_entropy(hidden @ model.embedding.weight.t() + objective.bias, batch["target"])
    assert float(objective(model, batch).loss) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("objective", ["simcse", "tsdae"])
def test_pretraining_says_what_it_did(ssl, corpus: Path, objective) -> None:
    done = ssl(
        "pretrain", f"objective={objective}", f"data.train={corpus}", *TINY, "trainer.steps=4", "trainer.batch_size=16", "run.dir=run"
    )
    assert done.code == 0, done.err
    receipts = json.loads(Path("run/receipts.json").read_text())
    assert receipts["cut"]["texts"] == 0
    if objective == "tsdae":
        assert receipts["deleted"]["measured"] == pytest.approx(0.6, abs=0.05)
    else:
        assert receipts["sides"]["one_minus_cosine"] > 1e-4
        assert json.loads(Path("run/model/config.json").read_text())["hidden_dropout_prob"] == 0.1
    assert receipts["loaded"]["pooling"] == "mean" and read_pooling(Path("run/model")) == "mean"


@pytest.mark.parametrize("objective", ["simcse", "tsdae"])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(ssl, corpus: Path, objective) -> None:
    from sslcli.checkpoint import newest

    common = ["pretrain", f"objective={objective}", f"data.train={corpus}", *TINY, "trainer.batch_size=16", "trainer.save_every=3"]
    assert ssl(*common, "trainer.steps=6", "run.dir=whole").code == 0
    assert ssl(*common, "trainer.steps=6", "run.dir=parts").code == 0
    shutil.rmtree("parts/checkpoints/step-00000006")
    for name in ("metrics.json", "receipts.json"):
        Path("parts", name).unlink()
    done = ssl("pretrain", "run.dir=parts", "resume=auto")
    assert done.code == 0 and "resumed after step" in done.err, done.err
    a, b = (newest(Path(run, "checkpoints")).tensors("weights") for run in ("whole", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

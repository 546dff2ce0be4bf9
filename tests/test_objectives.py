"""What each objective hides, pairs and counts; its loss against the library's own model; what every one of them promises."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sslcli.core import Objective
from sslcli.data import chance
from sslcli.data.store import Store, Writer
from sslcli.data.tokenizer import Tokenizer
from sslcli.models.text import Text
from sslcli.objectives.causal_lm import CausalLM
from sslcli.objectives.masked_lm import MaskedLM
from sslcli.objectives.span_contrastive import SpanContrastive
from sslcli.schema import Part
from tests.conftest import SENTENCES, TEXTS, parts
from tests.planted import a_collapse_shows

SMALL = {"layers": 2, "width": 32, "heads": 2, "inner": 64, "positions": 64, "dropout": 0.0}
ARCHITECTURES = ("bert", "modernbert", "gpt2")


def network(words: dict[bool, Tokenizer], architecture: str) -> tuple[Tokenizer, Text]:
    torch.manual_seed(0)
    tokenizer = words[architecture == "gpt2"]
    tokenizer.length = 32
    return tokenizer, Text(tokenizer, architecture=architecture, **SMALL).eval()


@pytest.fixture
def store(tmp_path: Path, words, request) -> Store:
    """A packed corpus, with the tokenizer of encoders unless the test asks for a decoder's."""
    tokenizer = words[getattr(request, "param", False)]
    writer = Writer(tmp_path, {"ids": np.uint16}, {"ids"})
    for text in TEXTS:
        ids = [*tokenizer.prefix, *tokenizer.hf(text, add_special_tokens=False)["input_ids"], *(tokenizer.suffix or [tokenizer.end])]
        writer.append(1, {"ids": np.array([len(ids)])}, ids=np.array(ids))
    writer.meta = {"tokens": 1, "bytes": 1}
    writer.finish()
    return Store(tmp_path)


def masked(words, architecture: str = "bert", **more: object) -> tuple[MaskedLM, Text]:
    tokenizer, model = network(words, architecture)
    options = {"rate": 0.3, "masking": "token", "show_mask": 0.8, "show_random": 0.1, **more}
    return MaskedLM(model, tokenizer, **options).eval(), model


def batch_of(objective: Objective, store: Store, count: int = 24, epoch: int = 0) -> dict:
    chosen = np.arange(min(count, objective.rows(store).count))
    return objective.read(store, chosen, chance.keys(0, epoch, chosen))


@pytest.mark.parametrize("masking", ["token", "whole_word", "span"])
@pytest.mark.parametrize("rate", [0.01, 0.15, 0.4])
def test_the_share_hidden_is_what_was_asked_and_never_nothing(words, store, masking, rate) -> None:
    objective, _ = masked(words, masking=masking, rate=rate)
    rows_ = np.arange(60)
    ids = store["ids"].values[: 60 * 32].reshape(60, 32).astype(np.int64)
    hidden = objective.choose(ids.copy(), chance.keys(0, 0, rows_))
    assert hidden.any(1).all() and not hidden[objective.special[ids]].any()
    share = hidden.sum() / (~objective.special[ids]).sum()
    assert rate * (0.75 if masking == "whole_word" else 0.9) - 0.01 < share < rate + 0.05


def test_hidden_places_show_masks_random_tokens_and_themselves(words, store) -> None:
    objective, _ = masked(words, rate=0.5)
    batch = batch_of(objective, store, 60)
    shown, target = batch["ids"].flatten()[batch["where"]], batch["target"]
    assert abs((shown == objective.mask).float().mean() - 0.8) < 0.06
    assert abs((shown == target).float().mean() - 0.1) < 0.05
    original = store["ids"].values[: batch["ids"].numel()].astype(np.int64)
    rest = np.ones(len(original), bool)
    rest[batch["where"].numpy()] = False
    assert (batch["ids"].flatten().numpy()[rest] == original[rest]).all() and (original[~rest] == target.numpy()).all()


def test_masks_depend_on_row_and_epoch_alone(words, store) -> None:
    objective, _ = masked(words)
    whole = batch_of(objective, store, 8)
    alone = objective.read(store, np.array([5]), chance.keys(0, 0, np.array([5])))
    assert (alone["ids"][0] == whole["ids"][5]).all()
    assert not (batch_of(objective, store, 8, epoch=1)["ids"] == whole["ids"]).all()


def test_words_are_hidden_whole(words, store) -> None:
    objective, _ = masked(words, masking="whole_word", rate=0.3)
    ids = store["ids"].values[: 90 * 32].reshape(90, 32).astype(np.int64)
    hidden = objective.choose(ids.copy(), chance.keys(0, 0, np.arange(90)))
    unit = objective._units(ids, chance.keys(0, 0, np.arange(90)))
    split = 0
    for row in range(90):
        for word in np.unique(unit[row]):
            members = (unit[row] == word) & ~objective.special[ids[row]]
            split += members.any() and hidden[row][members].any() and not hidden[row][members].all()
    assert split == 0


def test_spans_are_longer_than_tokens(words, store) -> None:
    lengths = {}
    for masking in ("token", "span"):
        objective, _ = masked(words, masking=masking, rate=0.3)
        ids = store["ids"].values[: 90 * 32].reshape(90, 32).astype(np.int64)
        hidden = objective.choose(ids, chance.keys(0, 0, np.arange(90)))
        starts = (hidden[:, 1:] & ~hidden[:, :-1]).sum() + hidden[:, 0].sum()
        lengths[masking] = hidden.sum() / starts
    assert lengths["span"] > 1.8 * lengths["token"]


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_the_masked_loss_is_the_librarys(words, store, architecture) -> None:
    """All logits, labels -100 where nothing is hidden: the same mean, for the loss and for the weights' gradients."""
    from sslcli.hf.heads import assemble

    objective, model = masked(words, architecture)
    batch = batch_of(objective, store)
    labels = torch.full_like(batch["ids"].flatten(), -100)
    labels[batch["where"]] = batch["target"]
    full = assemble(model.base, objective.head, None)
    expected = full(input_ids=batch["ids"], labels=labels.view_as(batch["ids"])).loss
    output = objective(model, batch)
    assert float(output.loss) == pytest.approx(float(expected), rel=1e-5)
    output.loss.backward()
    expected.backward()
    ours, theirs = model.embedding.weight.grad, full.get_input_embeddings().weight.grad
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("store", [True], indirect=True)
def test_the_causal_loss_is_the_librarys(words, store) -> None:
    """Documents apart: each one alone through the library's model, token by token the same mean."""
    tokenizer, model = network(words, "gpt2")
    objective = CausalLM(model, tokenizer, within_documents=True).eval()
    batch = batch_of(objective, store, 6)
    hidden = model.encode(batch)
    total, count = 0.0, 0
    from sslcli.hf.heads import assemble

    full = assemble(model.base, objective.head, None)
    for row, (ids, positions) in enumerate(zip(batch["ids"], batch["positions"], strict=True)):
        starts = [*np.flatnonzero(positions.numpy() == 0).tolist(), len(ids)]
        for begin, end in itertools.pairwise(starts):
            document = ids[begin:end]
            output = full(input_ids=document[None], labels=document[None])
            alone = model.base(input_ids=document[None]).last_hidden_state[0]
            assert torch.allclose(alone, hidden[row, begin:end], atol=1e-4), "attention stays inside the document"
            total, count = total + float(output.loss if len(document) > 1 else 0) * (len(document) - 1), count + len(document) - 1
    inside = (batch["where"] + 1) % 32 != 0  # the last token's target stands in the next block: not in these pieces
    logits = objective.head(hidden.flatten(0, 1)[batch["where"]][None])[0]
    losses = torch.nn.functional.cross_entropy(logits, batch["target"], reduction="none")
    assert float(losses[inside].sum()) == pytest.approx(total, rel=1e-4) and int(inside.sum()) == count


@pytest.mark.parametrize("store", [True], indirect=True)
def test_no_target_crosses_a_document(words, store) -> None:
    tokenizer, model = network(words, "gpt2")
    batch = batch_of(CausalLM(model, tokenizer, within_documents=True), store)
    before = batch["ids"].flatten()[batch["where"]]
    assert not (before == tokenizer.end).any()
    across = batch_of(CausalLM(model, tokenizer, within_documents=False), store)
    assert len(across["where"]) == across["ids"].numel() > len(batch["where"])


def test_perplexity_and_bits_per_byte_are_of_the_same_loss(ssl, corpus: Path) -> None:
    tiny = ["tokenizer=bpe", "tokenizer.vocabulary=400", "model=gpt_tiny", "model.layers=1", "model.width=32", "model.positions=64"]
    done = ssl("pretrain", "objective=causal_lm", f"data.train={corpus}", *tiny, "trainer.steps=5", "run.dir=run")
    assert done.code == 0, done.err
    scores, facts = done.result["valid"], json.loads(Path("run/data.json").read_text())["valid"]
    assert scores["perplexity"] == pytest.approx(np.exp(scores["loss"]))
    assert scores["bits_per_byte"] == pytest.approx(scores["loss"] / np.log(2) * facts["tokens"] / facts["bytes"])


def test_spans_of_one_document_are_pairs(words, store) -> None:
    tokenizer, model = network(words, "bert")
    objective = SpanContrastive(model, tokenizer, temperature=0.1, shortest=4).eval()
    chosen = np.arange(12)
    batch = objective.read(store, chosen, chance.keys(0, 0, chosen))
    assert len(batch["ids"]) == 24 and float(batch["weight"]) == 12
    documents = store["ids"].take(objective._documents(store)[chosen])
    for view in (0, 12):
        for i in range(12):
            row = batch["ids"][view + i][batch["mask"][view + i]].tolist()
            inner = row[len(tokenizer.prefix) : len(row) - len(tokenizer.suffix)]
            assert len(inner) >= 4 and " ".join(map(str, inner)) in " ".join(map(str, documents[i].tolist()))
    vectors = torch.nn.functional.normalize(model.pool(model.encode(batch), batch), dim=-1)
    scores = vectors[:12] @ vectors[12:].t() / 0.1
    target = torch.arange(12)
    expected = (torch.nn.functional.cross_entropy(scores, target) + torch.nn.functional.cross_entropy(scores.t(), target)) / 2
    assert float(objective(model, batch).loss) == pytest.approx(float(expected), rel=1e-5)


def objective_for(part, words, store_path: Path | None = None) -> tuple[Objective, Text]:
    tokenizer, model = network(words, "gpt2" if part.cls is CausalLM else "bert")
    return part.build(model, tokenizer), model


@pytest.mark.parametrize("part", parts("objective", Objective))
class TestEveryObjective:
    @pytest.fixture
    def made(self, part, words, tmp_path) -> tuple[Objective, Text, Store]:
        decoder = part.cls is CausalLM
        tokenizer, model = network(words, "gpt2" if decoder else "bert")
        if "teacher" in part.config:
            teacher = Text(tokenizer, architecture="bert", **{**SMALL, "width": 48})
            teacher.base.save_pretrained(tmp_path / "teacher")
            tokenizer.save(tmp_path / "teacher")
            part = Part(part.path, part.cls, {**part.config, "teacher": str(tmp_path / "teacher")})
        writer = Writer(tmp_path, {"ids": np.uint16, "text": np.uint8}, {"ids", "text"})
        for text in [" ".join(s for s, _ in SENTENCES[i % 5 : i % 5 + 4]) for i in range(60)]:
            ids = [*tokenizer.prefix, *tokenizer.hf(text, add_special_tokens=False)["input_ids"], *(tokenizer.suffix or [tokenizer.end])]
            coded = np.frombuffer(text.encode(), np.uint8)
            writer.append(1, {"ids": np.array([len(ids)]), "text": np.array([len(coded)])}, ids=np.array(ids), text=coded)
        writer.finish()
        return part.build(model, tokenizer), model, Store(tmp_path)

    def test_its_loss_is_finite_and_reaches_the_backbone(self, made) -> None:
        objective, model, store = made
        output = objective(model, batch_of(objective, store))
        assert output.loss.ndim == 0 and torch.isfinite(output.loss)
        assert all(not v.requires_grad for v in output.logs.values())
        output.loss.backward()
        touched = [n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
        assert len(touched) > 0.7 * len(list(model.parameters())), touched

    def test_a_collapse_shows(self, made, monkeypatch) -> None:
        objective, model, store = made
        a_collapse_shows(objective, model, batch_of(objective, store), monkeypatch)

    def test_it_falls(self, made) -> None:
        objective, model, store = made
        parameters = [*model.parameters(), *(p for p in objective.parameters() if p.requires_grad)]
        engine = torch.optim.AdamW({id(p): p for p in parameters}.values(), lr=3e-3)
        values = []
        for _ in range(25):
            output = objective(model, batch_of(objective, store))
            engine.zero_grad()
            output.loss.backward()
            engine.step()
            values.append(float(output.loss))
        assert values[-1] < 0.8 * values[0], values

    def test_its_batch_says_its_weight_and_depends_on_keys_alone(self, made) -> None:
        objective, _, store = made
        first, second = batch_of(objective, store, 8), batch_of(objective, store, 8)
        assert first["weight"].ndim == 0 and float(first["weight"]) > 0
        assert all(torch.equal(first[k], second[k]) for k in first)

    def test_its_state_round_trips(self, made) -> None:
        objective, *_ = made
        state = {k: v.clone() for k, v in objective.state_dict().items()}
        for p in objective.parameters():
            p.data.zero_()
        objective.load_state_dict(state)
        assert all(torch.equal(state[k], v) for k, v in objective.state_dict().items())

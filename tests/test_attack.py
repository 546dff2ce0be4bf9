"""The attack on embeddings of words: within its radius, clean at zero, never stronger for less, and the model stays as it is."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sslcli.attack import OnEmbeddings
from tests.conftest import TINY, rows, write_jsonl


class Mean(nn.Module):
    """The mean of a text's embeddings, of no more than its real tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 6)

    def encode(self, batch):
        return self.embedding(batch["ids"])

    def pool(self, hidden, batch):
        mask = batch["mask"][..., None]
        return (hidden * mask).sum(1) / mask.sum(1)


class Linear(nn.Module):
    def __init__(self, labels: int) -> None:
        super().__init__()
        self.head = nn.Linear(6, labels)

    def logits(self, model, batch):
        return self.head(model.pool(model.encode(batch), batch))


@pytest.fixture
def texts():
    torch.manual_seed(0)
    mask = torch.arange(7) < torch.tensor([7, 3, 5, 1, 6, 7, 2, 4])[:, None]
    ids = torch.randint(1, 40, (8, 7)) * mask
    return {"ids": ids, "mask": mask, "label": torch.arange(8) % 2, "weight": torch.tensor(8.0)}


def test_of_a_linear_model_it_finds_the_worst(texts) -> None:
    """Known there: all noise goes against the difference of the two labels' weights, as far as the radius lets it."""
    model, task = Mean(), Linear(2)
    radius = 0.2
    said, size = OnEmbeddings(task, model, radius, 10)(texts)
    label, mask = texts["label"], texts["mask"]
    toward = task.head.weight[1 - label] - task.head.weight[label]  # [B, D]
    clean = task.logits(model, texts)
    length = (model.embedding(texts["ids"]).square().sum(-1) * mask).sum(1).sqrt()  # of all embeddings of a text
    # of mean(x + r), |r| <= radius * length: r alike in every token, so the mean moves by |r| / sqrt(tokens)
    moved = radius * length / mask.sum(1).sqrt() * toward.norm(dim=1)
    rows = torch.arange(8)
    margin = lambda z: z[rows, 1 - label] - z[rows, label]  # noqa: E731
    assert torch.allclose(margin(said), margin(clean) + moved, rtol=1e-3)
    assert torch.allclose(size, torch.full((8,), radius), rtol=1e-3)


@pytest.mark.parametrize("multi", [False, True])
def test_at_radius_zero_it_is_clean_and_more_is_never_less(texts, multi) -> None:
    model, task = Mean(), Linear(3)
    if multi:
        texts["label"] = F.one_hot(texts["label"], 3)
    clean = task.logits(model, texts)
    losses = []
    for radius in (0.0, 0.05, 0.2, 0.8):
        said, size = OnEmbeddings(task, model, radius, 5)(texts)
        each = F.binary_cross_entropy_with_logits if multi else F.cross_entropy
        target = texts["label"].float() if multi else texts["label"]
        losses.append(float(each(said, target)))
        assert float(size.max()) <= radius * 1.001
        if radius == 0:
            assert torch.equal(said, clean.detach()) and float(size.max()) == 0
    assert losses == sorted(losses) and losses[-1] > losses[0] + 0.1


def test_the_model_is_untouched(texts) -> None:
    model, task = Mean(), Linear(2)
    (task.logits(model, texts).sum()).backward()  # there may be gradients already
    every = [*model.parameters(), *task.parameters()]
    before = [(p.detach().clone(), p.grad.clone(), p.requires_grad) for p in every]
    clean = task.logits(model, texts)
    attack = OnEmbeddings(task, model, 0.3, 3)
    with torch.no_grad():
        attack(texts)
        attack.remove()
    for p, (value, gradient, learns) in zip(every, before, strict=True):
        assert torch.equal(p, value) and torch.equal(p.grad, gradient) and p.requires_grad == learns
    assert torch.equal(task.logits(model, texts), clean) and not model.embedding._forward_hooks and "encode" not in vars(model)


def test_a_long_batch_goes_by_pieces(texts, monkeypatch) -> None:
    model, task = Mean(), Linear(2)
    whole = OnEmbeddings(task, model, 0.2, 4)(texts)
    monkeypatch.setattr("sslcli.attack.TOKENS", 21)
    for one, other in zip(whole, OnEmbeddings(task, model, 0.2, 4)(texts), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_attacked_accuracy_stands_beside_the_clean_one(ssl, tmp_path: Path) -> None:
    train, test = (write_jsonl(tmp_path / f"{n}.jsonl", rows(n)) for n in (120, 60))
    quick = [*TINY, "trainer.steps=30", "baseline=false", "optimizer.lr=0.003"]
    assert ssl("finetune", f"data.train={train}", f"data.test={test}", *quick, "run.dir=run").code == 0
    done = ssl("evaluate", "run=run", "robustness=true", "attack.radii=[0,0.1,1.0]", "attack.steps=5", "out=out")
    assert done.code == 0 and "pgd on embeddings" in done.err and "5 steps of pgd" in done.err, done.err
    found = json.loads(Path("out/metrics.json").read_text())["robustness"]
    attacked = [r for r in found["disturbed"] if r["kind"] == "pgd on embeddings"]
    assert [r["strength"] for r in attacked] == [0, 0.1, 1.0] and found["pgd_steps"] == 5
    clean, *scores = found["clean"]["accuracy"], *(r["accuracy"] for r in attacked)
    assert scores[0] == clean and scores == sorted(scores, reverse=True) and scores[-1] < clean - 0.2, scores
    assert attacked[0]["changed"] == 0 and 0 < attacked[1]["changed"] <= 0.101
    assert done.result["test"]["accuracy"] == clean, "scores of clean input come from the clean model"


@pytest.mark.parametrize("words", ["attack.radii=[0.1,2]", "attack.radii=[]", "attack.steps=0", "attack.steps=101"])
def test_settings_have_bounds(ssl, words) -> None:
    done = ssl("evaluate", "run=run", "robustness=true", words)
    assert done.code == 2 and done.err.count("\n") == 1 and words.split("=")[0] in done.err, done.err

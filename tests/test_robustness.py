"""Disturbed input: what is changed is what was asked, twice the same, and the report holds it all."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sslcli.augment.corruptions import CORRUPTIONS
from sslcli.data import chance
from sslcli.robustness import pgd
from tests.conftest import TINY, rows, write_jsonl

COARSE = torch.rand(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))
PICTURES = (torch.nn.functional.interpolate(COARSE, (24, 24), mode="bicubic").clamp(0, 1) * 255).byte()
KEYS = chance.keys(0, 0, np.arange(6))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruptions_grow_with_their_strength(kind, channels) -> None:
    change, strengths = CORRUPTIONS[kind]
    pictures, before = PICTURES[:, :channels].contiguous(), PICTURES.clone()
    far = []
    for strength in strengths:
        made = change(pictures, strength, KEYS)
        assert made.shape == pictures.shape and made.dtype == torch.float32 and made.min() >= 0 and made.max() <= 255
        assert torch.equal(made, change(pictures, strength, KEYS)), "chance comes from the key"
        assert torch.allclose(made[2:3], change(pictures[2:3], strength, KEYS[2:3])), "a picture is changed alike in any batch"
        far.append(float((made - pictures.float()).abs().mean()))
    assert 0 < far[0] < far[1] < far[2] and torch.equal(PICTURES, before)


@pytest.mark.parametrize("multi", [False, True])
def test_pgd_of_a_linear_model_goes_to_the_corner(multi) -> None:
    """There the worst is known: every pixel moves against its weight."""
    torch.manual_seed(0)
    weight = torch.randn(2, 12)
    clean, label = torch.rand(5, 3, 2, 2) * 0.5 + 0.25, torch.tensor([0, 1, 0, 1, 1])
    target = torch.nn.functional.one_hot(label, 2) if multi else label
    radius = 8 / 255
    found = pgd(lambda x: x.flatten(1) @ weight.t(), clean, target, radius, 10, KEYS[:5])
    assert float((found - clean).abs().max()) <= radius + 1e-6
    if not multi:
        worst = clean + radius * (weight[1 - label] - weight[label]).sign().view_as(clean)
        assert torch.allclose(found, worst, atol=1e-6)


def test_texts_clean_and_disturbed_in_one_table(ssl, tmp_path: Path) -> None:
    train, test = (write_jsonl(tmp_path / f"{n}.jsonl", rows(n)) for n in (120, 60))
    quick = [*TINY, "trainer.steps=30", "baseline=false", "optimizer.lr=0.003"]
    assert ssl("finetune", f"data.train={train}", f"data.test={test}", *quick, "run.dir=run").code == 0
    first = ssl("evaluate", "run=run", "robustness=true", "out=out0")
    assert first.code == 0 and "clean against disturbed" in first.err, first.err
    found = first.result["robustness"]
    assert found == json.loads(Path("out0/metrics.json").read_text())["robustness"]
    assert found["clean"]["accuracy"] == first.result["test"]["accuracy"]
    assert [r["kind"] for r in found["disturbed"][::3]] == ["typos", "words dropped", "words swapped", "synonyms", "pgd on embeddings"]
    for row in found["disturbed"]:
        asked = row["strength"] if row["kind"] != "synonyms" else 0
        assert (row["kind"] == "synonyms" or abs(row["changed"] - asked) < 0.5 * asked) and len(row["accuracy_interval"]) == 2
    assert Path("out0/robustness.png").stat().st_size > 5000


def test_pictures_clean_and_disturbed(ssl) -> None:
    words = ["data=digits", "data.shots=5", "model=resnet_nano", "trainer.steps=2", "baseline=false", "run.dir=run"]
    assert ssl("finetune", *words).code == 0
    done = ssl("evaluate", "run=run", "robustness=true", "attack.rows=100", "out=out")
    assert done.code == 0, done.err
    found = done.result["robustness"]
    assert found["rows"] == 100 < found["of"] and "100 examples of" in done.err and found["clean"] != done.result["test"]
    attacked = [r for r in done.result["robustness"]["disturbed"] if r["kind"] == "pgd"]
    assert len(attacked) == 2 and all(0 < r["changed"] <= r["strength"] for r in attacked)
    assert attacked[1]["accuracy"] <= attacked[0]["accuracy"] <= done.result["robustness"]["clean"]["accuracy"]


def test_only_classifiers_are_disturbed(ssl, tmp_path: Path) -> None:
    tagged = write_jsonl(tmp_path / "t.jsonl", [{"tokens": ["a", r["label"]], "tags": ["O", "B-X"]} for r in rows(80)])
    quick = [*TINY, "trainer.steps=1", "baseline=false", "run.dir=run"]
    assert ssl("finetune", "task=token_classification", f"data.train={tagged}", *quick).code == 0
    done = ssl("evaluate", "run=run", "robustness=true", "out=out", f"data.test={tagged}")
    assert done.code == 2 and "robustness: is measured of classifiers" in done.err

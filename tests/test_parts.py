"""Every part that configs/ can name: built from its YAML by its signature, and keeping its promises."""

import pytest
import torch
import yaml

from sslcli.core import Backbone, Task
from sslcli.models.text import Text
from tests.conftest import CONFIGS, parts


@pytest.mark.parametrize("part", parts("model", Backbone))
def test_every_model_of_the_list_encodes_and_pools(part, words) -> None:
    if part.config["width"] > 512:
        pytest.skip("built at full size by the slow test")
    tokenizer = words[part.config["architecture"] == "gpt2"]
    model = part.build(tokenizer).eval()
    batch = {"ids": torch.randint(5, 300, (3, 12)), "mask": torch.ones(3, 12, dtype=torch.bool)}
    batch["mask"][1, 7:] = False
    hidden = model.encode(batch)
    assert hidden.shape == (3, 12, model.dim) and model.pool(hidden, batch).shape == (3, model.dim)
    short = {"ids": batch["ids"][1:2, :7], "mask": batch["mask"][1:2, :7]}
    assert torch.allclose(model.pool(model.encode(short), short)[0], model.pool(hidden, batch)[1], atol=1e-4), "padding changes nothing"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "millions"), [("bert_base", 110), ("gpt_small", 124)])
def test_the_sizes_are_those_of_the_papers(name, millions) -> None:
    config = yaml.safe_load((CONFIGS / "model" / f"{name}.yaml").read_text())
    config.pop("kind")
    size = 30_522 if name == "bert_base" else 50_257

    class Sized:
        hf = type("hf", (), {"eos_token_id": 0, "cls_token_id": 1, "sep_token_id": 2})
        pad = 0

    Sized.size = size
    model = Text(Sized(), **config)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("part", parts("task", Task))
def test_every_task_is_checked_by_its_signature(part) -> None:
    assert issubclass(part.cls, Task) and part.cls.metric and part.cls.coder(part.config).columns


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_skipping_padding_changes_nothing(words, architecture) -> None:
    sizes = {"layers": 2, "width": 32, "heads": 2, "inner": 64, "positions": 64, "dropout": 0.0}
    torch.manual_seed(0)
    model = Text(words[False], architecture=architecture, **sizes).eval()
    lengths = torch.tensor([3, 30, 9, 4, 17, 30, 5, 6, 11, 2])
    ids, mask = torch.randint(5, 300, (10, 30)), torch.arange(30) < lengths[:, None]
    found = []
    for packs in (True, False):
        assert not packs or model.pack()
        model.packing = packs
        hidden = model.encode({"ids": ids, "mask": mask})
        gradient = torch.autograd.grad(hidden[mask].square().sum(), list(model.parameters()), allow_unused=True)
        found.append((hidden[mask], [g for g in gradient if g is not None]))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(found[0][1], found[1][1], strict=True))

"""Every method of the room `peft`, by its YAML: it learns, nothing else moves, what is saved comes back, merging changes nothing."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from transformers import AutoConfig, AutoModel

from sslcli.build import Modules, parameters
from sslcli.commands.tuned import put
from sslcli.core import Backbone, Task
from sslcli.data.pixels import Pixels
from sslcli.distributed import World
from sslcli.errors import BadInput
from sslcli.hf.targets import FAMILIES, targets
from sslcli.hf.tuning import Peft
from sslcli.models.resnet import Resnet
from sslcli.models.text import Text
from sslcli.models.vit import Vit
from sslcli.optim import Optimizer, default_lr
from sslcli.resume import _buffers
from sslcli.schema import Part
from sslcli.tasks.image_classification import ImageClassification
from sslcli.tasks.text_classification import TextClassification
from sslcli.tasks.token_classification import TokenClassification
from tests.conftest import CONFIGS, parts

METHODS = parts("peft", Peft, None)
NAMES = ["a", "b", "c"]
FACTS: dict[str, Any] = {"labelling": "single", "train": {"per_label": dict.fromkeys(NAMES, 8)}}
ALONE = World(0, 1, torch.device("cpu"))


class Words:
    size, pad = 64, 0


def config(group: str, name: str, **changes: Any) -> dict[str, Any]:
    node = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())
    return {k: v for k, v in node.items() if k not in ("kind", "modality")} | changes


def text(family: str = "bert", **more: Any) -> Text:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 64}
    if family in ("gpt2", "distilbert"):
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": 64}
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
    still = dict.fromkeys(
        ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "resid_pdrop", "embd_pdrop"), 0.0
    )
    model = Text.__new__(Text)
    Backbone.__init__(model)
    if family == "electra":
        more = {"embedding_size": 32, **more}
    settings = AutoConfig.for_model(family, **sizes, **still, **ends, pad_token_id=0, max_position_embeddings=64, **more)
    model._adopt(AutoModel.from_config(settings))
    model.loaded = {"tensors": 0}
    return model


def vit() -> Vit:
    torch.manual_seed(0)
    return Vit(Pixels(8, 1, [0.3], [0.37], False), layers=2, width=32, heads=2, inner=64, patch=2, pool="mean", dropout=0.0)


def work(kind: str) -> tuple[Any, Any, dict[str, Tensor]]:
    """(network, how to make its task, a batch)"""
    draw = torch.Generator().manual_seed(1)
    label = torch.arange(12) % 3
    if kind == "image":
        pixels = (torch.rand(12, 1, 8, 8, generator=draw) * 60).byte()
        for i, y in enumerate(label.tolist()):
            pixels[i, :, 2 * y : 2 * y + 3] += 150
        processor = Pixels(8, 1, [0.3], [0.37], False)
        return vit(), lambda m: ImageClassification(m, processor, NAMES, FACTS, **config("task", "image_classification", dropout=0.0)), {
            "pixels": pixels, "label": label, "weight": torch.tensor(12.0)
        }  # fmt: skip
    ids, mask = torch.randint(10, 60, (12, 9), generator=draw), torch.ones(12, 9, dtype=torch.bool)
    ids[:, 1] = label + 3
    mask[::2, 5:] = False
    ids[~mask] = 0
    batch = {"ids": ids, "mask": mask, "label": label, "weight": torch.tensor(12.0)}
    if kind == "text":
        return text(), lambda m: TextClassification(m, Words(), NAMES, FACTS, **config("task", "text_classification", dropout=0.0)), batch
    tags = torch.where(mask, ids % 3, -100)
    batch |= {
        "label": tags,
        "word": torch.where(mask, torch.arange(9), -1),
        "where": (tags >= 0).flatten().nonzero()[:, 0],
        "weight": mask.sum().float(),
    }
    return text(), lambda m: TokenClassification(m, Words(), NAMES, FACTS, **config("task", "token_classification")), batch


class Run:
    def __init__(self, part: Part[Peft], kind: str, precision: torch.dtype = torch.float32, load: Path | None = None):
        self.model, make, self.batch = work(kind)
        self.base = copy.deepcopy(self.model.base)
        torch.manual_seed(3)
        self.method = put(part, self.model, str(load) if load else None)
        torch.manual_seed(4)
        self.goal: Task = make(self.model)
        self.modules = Modules(self.model, task=self.goal)
        self.learning = {n for n, p in self.modules.named_parameters() if p.requires_grad}
        self.before = {n: t.clone() for n, t in self.modules.state_dict().items()}
        rate = {"prompt": 0.3, "ia3": 0.1, "vera": 0.1, "lora": 5e-3}.get(part.cls.__module__.rsplit(".")[-1], 2e-2)
        self.optimizer = Optimizer(
            self.modules, precision, **config("optimizer", "adamw", kind="adamw", lr=rate, schedule="constant", warmup=0.0)
        )
        self.optimizer.steps = 40
        self.modules.train()

    def steps(self, first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            loss = self.goal(self.model, self.batch).loss
            loss.backward()
            self.optimizer.step(ALONE, step)
            losses.append(float(loss))
        return losses

    def said(self) -> Tensor:
        self.modules.eval()
        pixels = {"pixels": (self.batch["pixels"].float() / 255 - 0.3) / 0.37} if "pixels" in self.batch else {}
        with torch.no_grad():
            logits = self.goal.logits(self.model, {**self.batch, **pixels})  # type: ignore[operator]
        return logits[self.batch["mask"]] if logits.ndim == 3 else logits


@pytest.mark.parametrize("kind", ["text", "tokens", "image"])
@pytest.mark.parametrize("part", METHODS)
def test_each_method_learns_alone_and_comes_back(part: Part[Peft], kind: str, tmp_path: Path) -> None:
    run = Run(part, kind)
    assert run.learning == {f"model.{n}" for n in run.method.own} | {f"task.{n}" for n, _ in run.goal.named_parameters()}
    losses = run.steps(0, 40)
    assert losses[-1] < 0.9 * losses[0]
    run.optimizer.release(run.optimizer.best_weights())
    moved = {n for n, t in run.modules.state_dict().items() if not torch.equal(t, run.before[n])}
    assert moved - {n for n in moved if ".ranks." in n} <= run.learning
    assert {n for n in run.learning - moved if not n.endswith(".bias")} == set(), "all that may learn does"
    trained = run.said()
    run.method.save(tmp_path / "adapter", "base")
    again = Run(part, kind, load=tmp_path / "adapter")
    again.goal.load_state_dict(run.goal.state_dict())
    assert torch.allclose(again.said(), trained, atol=1e-5)
    run.method.merge()
    assert torch.allclose(run.said(), trained, atol=1e-5 * float(trained.abs().max().clamp(min=1)))
    if run.method.merges:  # a plain network again, by its names
        run.base.load_state_dict(run.model.base.state_dict())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("part", METHODS)
def test_a_resumed_run_is_the_same_bit_for_bit(part: Part[Peft], precision: torch.dtype) -> None:
    whole, first, second = (Run(part, "text", precision) for _ in range(3))
    whole.steps(0, 24)
    first.steps(0, 13)
    state = {k: {n: t.clone() for n, t in v.items()} for k, v in first.optimizer.state().items()}
    second.optimizer.load(state)
    second.modules.load_state_dict({n: t.clone() for n, t in _buffers(first.modules).items()}, strict=False)
    second.steps(13, 24)
    for run in (whole, second):
        run.optimizer.release(run.optimizer.best_weights())
    here, there = whole.modules.state_dict(), second.modules.state_dict()
    assert all(torch.equal(here[n], there[n]) for n in here)
    assert all(t.dtype == torch.float32 for t in here.values() if t.is_floating_point())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_table_names_modules_that_are_there(family: str) -> None:
    model = vit() if family == "vit" else text(family)
    for part in FAMILIES[family]:
        modules = [model.base.get_submodule(n) for n in targets(model, part)]
        wanted = {"norms": ("LayerNorm",), "attention": ()}.get(part, ("Linear", "Conv1D"))
        assert len(modules) >= 2
        assert all(type(m).__name__ in wanted or (not wanted and list(m.children())) for m in modules), part


@pytest.mark.parametrize("family", sorted({"roberta", "modernbert", "gpt2", "distilbert"}))
@pytest.mark.parametrize("part", METHODS)
def test_each_method_fits_each_family(part: Part[Peft], family: str, tmp_path: Path) -> None:
    model, batch = text(family), work("text")[2]
    kind = part.cls.__module__.rsplit(".", 1)[-1]
    try:
        method = put(part, model)
    except BadInput as error:
        assert (kind, family) in {("oft", "gpt2"), ("bitfit", "modernbert")} and "\n" not in str(error)
        return
    with torch.no_grad():
        hidden = model.eval().encode(batch)
        assert hidden.shape == (12, 9, 32)
        method.merge()
        assert torch.allclose(model.encode(batch), hidden, atol=1e-5)


def test_under_two_percent_of_a_real_network_trains(minilm: Path) -> None:
    for kind in ("lora", "adapter"):
        model = Text.load(minilm, None, None)
        put(Part("peft", *_kind(kind)), model)
        sizes = parameters(model)
        assert 0 < sizes["trainable"] < 0.02 * sizes["parameters"]


def test_what_a_residual_network_can_learn_by(tmp_path: Path) -> None:
    for part in (p.values[0] for p in METHODS):
        kind = part.cls.__module__.rsplit(".", 1)[-1]
        torch.manual_seed(0)
        model = Resnet(Pixels(8, 1, [0.3], [0.37], False), depth=18, width=8, stem="auto")
        if kind not in ("bitfit", "linear_probe"):
            with pytest.raises(BadInput, match=f"peft={kind}: "):
                put(part, model)
            continue
        put(part, model)
        before = {n: b.clone() for n, b in model.named_buffers()}
        model.train()
        model.encode({"pixels": torch.randn(4, 1, 8, 8)})
        assert all(torch.equal(b, before[n]) for n, b in model.named_buffers()), "statistics of a frozen network stand still"


def test_targets_by_name_and_rates() -> None:
    model = text()
    put(Part("peft", *_kind("lora", targets=["key", "layer.1.output.dense"])), model)
    assert model.tuned.names == ["encoder.layer.0.attention.self.key", "encoder.layer.1.attention.self.key", "encoder.layer.1.output.dense"]
    assert default_lr(Modules(model), "adamw") == pytest.approx(10 * default_lr(Modules(text()), "adamw"))
    with pytest.raises(BadInput, match=r"peft.targets: no module of this network ends in 'q_proj' \(its modules: .*query"):
        put(Part("peft", *_kind("lora", targets=["q_proj"])), text())


def _kind(name: str, **changes: Any) -> tuple[Any, dict[str, Any]]:
    part = next(p.values[0] for p in METHODS if p.id == name)
    return part.cls, part.config | changes


@pytest.mark.parametrize(("style", "each"), [("all", 5), ("houlsby", 2), ("pfeiffer", 1)])
def test_bottlenecks_stand_where_their_style_says(style: str, each: int) -> None:
    run = Run(Part("peft", *_kind("adapter", style=style)), "text")
    layers = len({n.split("layer.")[1].split(".")[0] for n in run.method.names})
    assert len(run.method.names) == each * layers and run.method.names[-1].endswith("output.dense")
    before = {n: p.detach().clone() for n, p in run.model.named_parameters() if "bottlenecks" in n}
    assert len(before) == 4 * each * layers


def test_bottlenecks_train_norms_unless_they_are_told_not_to_or_an_earlier_adapter_did_not(tmp_path: Path) -> None:
    run = Run(Part("peft", *_kind("adapter")), "text")
    norms = [n for n in run.method.own if "LayerNorm" in n]
    assert sorted({n.rsplit(".", 1)[0] for n in norms}) == sorted(f"base.{n}" for n in targets(run.model, "norms"))
    plain = Run(Part("peft", *_kind("adapter", norms=False)), "text")
    assert plain.method.own == [n for n in run.method.own if n not in norms]
    plain.method.save(tmp_path, "base")
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    del said["norms"]  # as before they were trained
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    assert sorted(Run(Part("peft", *_kind("adapter")), "text", load=tmp_path).method.own) == sorted(plain.method.own)

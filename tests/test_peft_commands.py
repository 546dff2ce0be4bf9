"""`peft=` as a user types it: run folders, evaluation, exports, going on; and adapters of strangers."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import TINY, rows, write_jsonl

SHORT = ["trainer.steps=8", "trainer.batch_size=16", "data.max_length=32", "baseline=false", "optimizer.lr=5e-3"]


@pytest.fixture
def base(ssl, corpus: Path) -> list[str]:
    done = ssl("pretrain", f"data.train={corpus}", "objective=masked_lm", *TINY, "trainer.steps=2", "data.max_length=32", "run.dir=base")
    assert done.code == 0, done.err
    return ["finetune", "from=base", f"data.train={corpus.parent / 'labelled.jsonl'}", *SHORT]


@pytest.mark.parametrize("kind", ["lora", "adapter", "prompt"])
def test_a_run_is_evaluated_exported_and_gone_on_with(ssl, base: list[str], labelled: Path, tmp_path: Path, kind: str) -> None:
    done = ssl(*base, f"peft={kind}", "run.dir=run")
    assert done.code == 0, done.err
    assert f"peft   {kind} " in done.err and "parameters train, with the head" in done.err
    receipt = json.loads(Path("run/receipts.json").read_text())["peft"]
    assert receipt["frozen_moved"] == 0 and 0 < receipt["of_the_method"] < receipt["trainable"] < receipt["parameters"]
    assert max(x for x in receipt["largest_differences"].values() if x is not None) < 2e-3
    assert receipt["adapter_bytes"] < sum(p.stat().st_size for p in Path("run/model").iterdir()) / 2

    other = write_jsonl(tmp_path / "other.jsonl", rows(30, seed=5))
    scored = ssl("evaluate", "run=run", f"data.test={other}", "out=scored")
    assert scored.code == 0, scored.err
    own = ssl("evaluate", "run=run", "out=own")
    assert own.result["valid"]["accuracy"] == done.result["valid"]["accuracy"]

    exported = ssl("export", "run=run", "format=torch", "out=program", "rows=16")
    assert exported.code == 0 and exported.result["agreement"]["largest_difference"] < 1e-4, exported.err
    plain = ssl("export", "run=run", "format=hf", "out=folder", "rows=16")
    assert plain.code == (0 if kind == "lora" else 2)

    on = ["from=run" if x == "from=base" else x for x in base]
    again = ssl(*on, "run.dir=on")
    assert again.code == (0 if kind == "lora" else 2), again.err
    if kind != "lora":
        assert f"add peft={kind} peft.load=run to go on with it" in again.err
    loaded = ssl(*base, f"peft={kind}", "peft.load=run", "run.dir=loaded")
    assert loaded.code == 0 and "the adapter of run goes on" in loaded.err, loaded.err


def test_prefix_tuning_exports_to_onnx(ssl, base: list[str], labelled: Path) -> None:
    pytest.importorskip("onnxruntime")
    assert ssl(*base, "peft=prefix", "run.dir=run").code == 0
    done = ssl("export", "run=run", "format=onnx", "out=dist", "rows=16")
    assert done.code == 0 and done.result["agreement"]["largest_difference"] < 1e-4, done.err


def test_pictures_are_tuned_too(ssl) -> None:
    start = ["finetune", "data=digits", "data.shots=5", "model=vit_nano", "trainer.steps=6", "baseline=false", "peft=lora"]
    done = ssl(*start, "run.dir=run")
    assert done.code == 0, done.err
    assert "x q_proj,k_proj,v_proj,o_proj,fc1,fc2" in done.err
    assert ssl("evaluate", "run=run", "out=own").code == 0
    both = ssl(*start, "task.tune=probe", "run.dir=both")
    assert both.code == 2 and "task.tune=probe: peft= decides what learns" in both.err


def test_what_does_not_reload_ends_the_run(ssl, base: list[str], labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sslcli.hf import adapter

    plain = adapter.write
    monkeypatch.setattr(adapter, "write", lambda f, s, tensors: plain(f, s, {n: t + 0.1 for n, t in tensors.items()}))
    done = ssl(*base, "peft=lora", "run.dir=run")
    assert done.code == 5 and "opened again, it does not say what was trained" in done.err


OLD = {  # as peft 0.4 to 0.10 wrote it
    "auto_mapping": None, "base_model_name_or_path": "base", "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "layers_pattern": None, "layers_to_transform": None, "lora_alpha": 16, "lora_dropout": 0.1,
    "modules_to_save": None, "peft_type": "LORA", "r": 4, "revision": None, "target_modules": ["query", "value"], "task_type": "SEQ_CLS",
}  # fmt: skip
NEWER_THAN_0_6 = {"megatron_config": None, "megatron_core": "megatron.core", "loftq_config": {}, "rank_pattern": {}, "alpha_pattern": {}}


def stranger(folder: Path, settings: dict[str, Any], prefix: str = "bert.", width: int = 32, change: Any = None) -> Path:
    torch.manual_seed(0)
    tensors = {}
    for name in ("query", "value"):
        module = f"base_model.model.{prefix}encoder.layer.0.attention.self.{name}"
        tensors |= {f"{module}.lora_A.weight": torch.randn(4, width) * 0.1, f"{module}.lora_B.weight": torch.randn(width, 4) * 0.1}
    tensors["base_model.model.classifier.weight"] = torch.zeros(2, width)
    if change:
        change(tensors)
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    "more", [{}, NEWER_THAN_0_6, {**NEWER_THAN_0_6, "use_rslora": False, "layer_replication": None}], ids=["0.4", "0.8", "0.10"]
)
def test_adapters_of_earlier_releases_go_on(ssl, base: list[str], labelled: Path, tmp_path: Path, more: dict) -> None:
    load = stranger(tmp_path / "old", {**OLD, **more})
    done = ssl(*base, "peft=lora", f"peft.load={load}", "run.dir=run", "trainer.steps=1")
    assert done.code == 0, done.err
    learnt = load_file("run/adapter/adapter_model.safetensors")
    key = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"
    assert learnt[key].shape == (4, 32)
    assert (
        learnt[key] - load_file(load / "adapter_model.safetensors")[key.replace("model.encoder", "model.bert.encoder")]
    ).abs().max() < 0.02


QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_B.weight"
BAD: list[tuple[str, dict, Any, int, str]] = [
    ("auto_mapping", {"auto_mapping": {"parent_library": "evil"}}, None, 10, "auto_mapping would import code"),
    ("megatron_core", {"megatron_core": "evil"}, None, 10, "megatron_core would import code"),
    ("megatron_config", {"megatron_config": {"a": 1}}, None, 10, "would import code"),
    ("other method", {"peft_type": "IA3"}, None, 5, "type IA3, this method's is LORA"),
    ("unknown key", {"alora_invocation_tokens": [1]}, None, 5, "alora_invocation_tokens=.* is not understood"),
    ("rank of a wrong type", {"r": "8"}, None, 5, "r=8: expected int"),
    ("huge rank", {"r": 10**9}, None, 5, "r=1000000000: expected int"),
    ("pissa", {"init_lora_weights": "pissa"}, None, 5, "changed the base"),
    ("no type", {"peft_type": None}, None, 5, "names no peft_type"),
    ("missing tensor", {}, lambda t: t.pop(QUERY), 5, "lora_B.weight is missing"),
    ("unexpected tensor", {}, lambda t: t.update(odd=t[QUERY].clone()), 5, "odd is unexpected"),
    ("not finite", {}, lambda t: [x.fill_(float("nan")) for x in t.values()], 5, "not finite"),
    ("integers", {}, lambda t: t.update({n: x.long() for n, x in t.items()}), 5, "is torch.int64"),
    (
        "layers of another base", {},
        lambda t: t.update({n.replace("layer.0", "layer.7"): t.pop(n) for n in list(t) if "layer.0" in n}), 5,
        "2 of its 2 layers are not in this network",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "change", "code", "expected"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_bad_adapter_is_refused_in_a_line(
    ssl, labelled: Path, tmp_path: Path, settings: dict, change: Any, code: int, expected: str
) -> None:
    load = stranger(tmp_path / "bad", {**OLD, **settings}, change=change)
    refused(ssl, labelled, load, code, expected)


def refused(ssl, labelled: Path, load: Path, code: int, expected: str) -> None:
    import re

    done = ssl("finetune", *TINY, f"data.train={labelled}", *SHORT, "peft=lora", f"peft.load={load}", "run.dir=run")
    lines = [x for x in done.err.splitlines() if "rror" in x]
    assert done.code == code and len(lines) == 1 and re.search(expected, lines[0]), done.err
    assert not Path("run/model").exists()


def test_a_wrong_base_lists_both_shapes(ssl, labelled: Path, tmp_path: Path) -> None:
    refused(ssl, labelled, stranger(tmp_path / "wide", OLD, width=64), 5, r"lora_A.weight is \(4, 64\), not \(4, 32\)")


def test_a_prefix_that_the_library_made_is_refused(ssl, labelled: Path, tmp_path: Path) -> None:
    """It was learnt among other positions, and would load without a word and say something else."""
    load = tmp_path / "theirs"
    load.mkdir()
    said = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "num_layers": 2, "token_dim": 32, "task_type": "SEQ_CLS"}
    (load / "adapter_config.json").write_text(json.dumps(said))
    save_file({"prompt_embeddings": torch.zeros(4, 128)}, load / "adapter_model.safetensors")
    done = ssl("finetune", *TINY, f"data.train={labelled}", *SHORT, "peft=prefix", f"peft.load={load}", "run.dir=run")
    assert done.code == 5 and "was made by the library peft" in done.err


@pytest.mark.parametrize("how", ["pickle", "gone", "cut", "longer", "lfs", "header", "not JSON", "no config", "a list"])
def test_damaged_files_are_refused_in_a_line(ssl, labelled: Path, tmp_path: Path, how: str) -> None:
    load = stranger(tmp_path / "bad", OLD)
    weights, said = load / "adapter_model.safetensors", load / "adapter_config.json"
    raw = weights.read_bytes()
    code, expected = (
        5,
        {"gone": "missing", "cut": "cut off or damaged", "longer": "damaged", "lfs": "LFS pointer", "header": "header"}.get(how, ""),
    )
    if how == "pickle":
        weights.rename(load / "adapter_model.bin")
        code, expected = 10, "adapter_model.bin: is pickled"
    elif how == "gone":
        weights.unlink()
    elif how in ("cut", "longer"):
        weights.write_bytes(raw[:-9] if how == "cut" else raw + b"123456789")
    elif how == "lfs":
        weights.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif how == "header":
        weights.write_bytes(struct.pack("<Q", 2**40) + raw[8:])
    elif how == "no config":
        said.unlink()
        expected = "adapter_config.json: missing"
    else:
        said.write_text("{" if how == "not JSON" else "[1]")
        expected = "not JSON" if how == "not JSON" else "names no peft_type"
    refused(ssl, labelled, load, code, expected)


def test_no_adapter_there(ssl, labelled: Path, tmp_path: Path) -> None:
    refused(ssl, labelled, tmp_path / "none" / "here", 5, "no adapter folder there")

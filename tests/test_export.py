"""What leaves the house agrees with what was trained, in every format, for every kind of run; damage and code are refused."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sslcli.data.tokenizer import Tokenizer
from sslcli.hf.heads import Pooled, assemble
from sslcli.models.text import Text
from tests.conftest import TINY, rows, write_jsonl

GPT = [
    "tokenizer=bpe",
    "tokenizer.vocabulary=400",
    "model=gpt_tiny",
    "model.layers=1",
    "model.width=32",
    "model.heads=2",
    "model.positions=64",
]
MODERN = ["model=modern_tiny", "model.layers=1", "model.width=32", "model.heads=2", "model.inner=64", "tokenizer.vocabulary=400"]


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    records = [{"tokens": r["text"].split(), "tags": ["B-X" if w == r["label"] else "O" for w in r["text"].split()]} for r in rows(60)]
    return write_jsonl(tmp_path / "tagged.jsonl", records)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of each kind, trained once: tests get copies of them."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run_of(ssl, corpus: Path, labelled: Path, tagged: Path, made: Path) -> Callable[[str], None]:
    """Puts a run of a kind at `run`."""
    quick = ["trainer.steps=3", "run.dir=run"]
    tuned = ["finetune", f"data.train={labelled}", *quick, "baseline=false"]
    commands = {
        "masked": ["pretrain", f"data.train={corpus}", *TINY, "objective=masked_lm", *quick],
        "causal": ["pretrain", f"data.train={corpus}", *GPT, "objective=causal_lm", *quick],
        "contrastive": ["pretrain", f"data.train={corpus}", *TINY, "objective=span_contrastive", "objective.shortest=4", *quick],
        "classifier": [*tuned, *TINY],
        "modern classifier": [*tuned, *MODERN],
        "mlp": [*tuned, *TINY, "task.head=mlp"],
        "decoder classifier": [*tuned, *GPT],
        "tagger": ["finetune", "task=token_classification", f"data.train={tagged}", *TINY, *tuned[2:]],
    }

    def put(kind: str) -> None:
        if not (made / kind).exists():
            done = ssl(*commands[kind])
            assert done.code == 0, done.err
            shutil.move("run", made / kind)
        shutil.copytree(made / kind, "run")

    return put


@pytest.mark.parametrize("format", ["hf", "torch", "onnx"])
@pytest.mark.parametrize(
    "kind", ["masked", "causal", "contrastive", "classifier", "modern classifier", "mlp", "decoder classifier", "tagger"]
)
def test_every_kind_of_run_leaves_in_every_format(ssl, run_of, kind, format) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    run_of(kind)
    done = ssl("export", "run=run", f"format={format}", "out=out")
    assert done.code == 0, done.err
    assert done.result["agreement"]["rows"] > 0 and done.result["agreement"]["labels_that_differ"] == 0
    assert done.result["agreement"]["largest_difference"] < 1e-3 and "agrees with the trained model" in done.err
    assert json.loads(Path("out/ssl_export.json").read_text())["format"] == format


def test_an_export_that_differs_is_refused_and_leaves_nothing(ssl, run_of, monkeypatch) -> None:
    run_of("classifier")
    from sslcli.exports.hf import Hf

    plain = Hf.open

    def open_(self, graph, folder):
        run = plain(self, graph, folder)
        return lambda inputs: run(inputs) + np.linspace(0, 1, 3, dtype=np.float32)

    monkeypatch.setattr(Hf, "open", open_)
    done = ssl("export", "run=run", "out=dist/out")
    assert done.code == 5 and "does not agree with the trained one" in done.err
    assert not any(Path("dist").iterdir())


def test_labels_that_were_swapped_are_noticed(ssl, run_of) -> None:
    """The weights agree, the names do not: the recorded predictions tell."""
    run_of("classifier")
    path = Path("run/data.json")
    facts = json.loads(path.read_text())
    facts["labels_in_order"] = facts["labels_in_order"][::-1]
    path.write_text(json.dumps(facts))
    done = ssl("export", "run=run", "out=out")
    assert done.code == 5 and "labels differ" in done.err


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("model/calibration.json", b'{"temperature": "hot", "folded": true, "thresholds": null, "abstain_below": null}'),
        ("model/calibration.json", b'{"temperature": -1, "folded": true, "thresholds": null, "abstain_below": null}'),
        ("data.json", b"{}"),
        ("data.json", b"[]"),
        ("model/model.safetensors", struct.pack("<Q", 8) + b'{"a":{}}'),
        ("model/model.safetensors", struct.pack("<Q", 2) + b"[]"),
    ],
)
def test_a_mutated_run_folder_is_no_internal_error(ssl, run_of, path: str, content: bytes) -> None:
    run_of("classifier")
    (Path("run") / path).write_bytes(content)
    done = ssl("export", "run=run", "out=out")
    assert done.code == 5 and path.rsplit("/")[-1] in done.err and "damaged" in done.err and not Path("out").exists(), done.err


def test_an_export_into_the_folder_one_is_in(ssl, run_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_of("classifier")
    run = Path("run").absolute()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    done = ssl("export", f"run={run}", "format=hf", "out=.", "rows=4")
    assert done.code == 2 and "is the folder you are in" in done.err and not list((tmp_path / "empty").iterdir()), done.err


def test_an_export_does_not_overwrite(ssl, run_of) -> None:
    run_of("classifier")
    Path("out").mkdir()
    Path("out/mine").write_text("mine")
    done = ssl("export", "run=run", "out=out")
    assert done.code == 2 and "already holds files" in done.err and Path("out/mine").read_text() == "mine"
    assert ssl("export", "run=run", "out=other", "--dry-run").code == 0 and not Path("other").exists()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_a_pooled_head_fits_the_familys_own_class(family, layers) -> None:
    """Mean pooling inside BertForSequenceClassification and its relatives: the same logits, padded or not."""
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "vocab_size": 100,
        "max_position_embeddings": 40,
    }
    more = {"modernbert": {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}}.get(
        family, {"pad_token_id": 1}
    )
    model = Text.__new__(Text)
    torch.nn.Module.__init__(model)
    model._adopt(AutoModel.from_config(AutoConfig.for_model(family, **sizes, **more)))
    model.eval()
    head = Pooled(48, 5, layers, 1e-5, 0.1, normalise_last=family == "modernbert").eval()
    for p in head.parameters():
        torch.nn.init.normal_(p, std=0.3)
    ids, mask = torch.randint(3, 100, (6, 20)), torch.ones(6, 20, dtype=torch.bool)
    for i in range(6):
        mask[i, 20 - 3 * i :] = False
    ids[~mask] = more.get("pad_token_id", 1)
    batch = {"ids": ids, "mask": mask}
    full = assemble(model.base, head, list("abcde"))
    with torch.no_grad():
        ours = head(model.pool(model.encode(batch), batch))
        theirs = full(input_ids=ids, attention_mask=mask.long()).logits
    assert torch.allclose(torch.softmax(ours, -1), torch.softmax(theirs, -1), atol=1e-3)
    assert full.config.id2label[4] == "e" and full.config.architectures == [type(full).__name__]


def test_a_run_is_a_model_folder_for_transformers(run_of) -> None:
    from transformers import AutoModelForTokenClassification, pipeline

    run_of("tagger")
    model = AutoModelForTokenClassification.from_pretrained("run/model")
    assert sorted(model.config.label2id) == ["B-X", "I-X", "O"]
    tag = pipeline("token-classification", model="run/model", tokenizer="run/model", device="cpu")
    assert isinstance(tag("the cat sat on the warm mat"), list)


def break_folder(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    raw = weights.read_bytes()
    if how == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "auto_map":
        (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "modeling.Evil"}}))
    elif how == "attention from elsewhere":
        (folder / "config.json").write_text(json.dumps({**config, "_attn_implementation_internal": "evil/kernel"}))
    elif how == "lfs pointer":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif how == "cut":
        weights.write_bytes(raw[:-50])
    elif how == "longer":
        weights.write_bytes(raw + b"x" * 50)
    elif how == "no weights":
        weights.unlink()
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "not JSON":
        (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("how", "code", "expected"),
    [
        ("pickle", 10, "its weights are pickled"),
        ("auto_map", 10, "auto_map would run code"),
        ("attention from elsewhere", 10, "would run code"),
        ("lfs pointer", 5, "is a Git LFS pointer"),
        ("cut", 5, "bytes against its header"),
        ("longer", 5, "bytes against its header"),
        ("no weights", 5, "no .*safetensors weights|weights in it"),
        ("no config", 5, "config.json: missing"),
        ("not JSON", 5, "not a valid JSON file"),
    ],
)
def test_what_from_refuses(ssl, minilm: Path, labelled: Path, how: str, code: int, expected: str) -> None:
    import re

    shutil.copytree(minilm, "model")
    break_folder(Path("model"), how)
    done = ssl("finetune", "from=model", f"data.train={labelled}", "trainer.steps=1", "run.dir=run")
    assert done.code == code and re.search(expected, done.err), done.err
    assert "Traceback" not in done.err and not Path("run").exists()


def test_a_model_without_its_weights_is_not_that_model(ssl, minilm: Path, labelled: Path) -> None:
    """Tensors of other names: the library would go on with random weights and a warning."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(minilm, "model")
    tensors = load_file("model/model.safetensors")
    save_file({f"strange.{k}": v for k, v in tensors.items()}, "model/model.safetensors", metadata={"format": "pt"})
    done = ssl("finetune", "from=model", f"data.train={labelled}", "trainer.steps=1", "run.dir=run")
    assert done.code == 5 and "of the network's" in done.err and "is it the right folder?" in done.err


def test_loading_leaves_a_receipt(ssl, minilm: Path, labelled: Path) -> None:
    done = ssl("finetune", f"from={minilm}", f"data.train={labelled}", "trainer.steps=2", "baseline=false", "run.dir=run")
    assert done.code == 0, done.err
    receipts = json.loads(Path("run/receipts.json").read_text())
    assert receipts["loaded"]["tensors"] >= 100 and receipts["loaded"]["body_new"] == 0
    assert len(receipts["moved"]) > 6 and all(v > 0 for v in receipts["moved"].values())
    assert "tensors from" in done.err


def test_a_run_without_a_model_yet_says_how_to_go_on(ssl, corpus: Path, labelled: Path) -> None:
    assert ssl("pretrain", f"data.train={corpus}", *TINY, "trainer.steps=2", "run.dir=lm").code == 0
    shutil.rmtree("lm/model")
    done = ssl("finetune", "from=lm", f"data.train={labelled}")
    assert done.code == 5 and "run.dir=lm resume=auto" in done.err


def test_both_ways_of_reading_a_delivered_model_agree(ssl, run_of) -> None:
    """`evaluate` reads the run's model folder: the scores are those of the run itself."""
    for kind in ("classifier", "mlp", "tagger", "decoder classifier"):
        run_of(kind)
        before = json.loads(Path("run/metrics.json").read_text())["valid"]
        done = ssl("evaluate", "run=run", "out=again")
        assert done.code == 0, done.err
        for key in ("accuracy", "macro_f1", "f1"):
            assert done.result["valid"].get(key) == before.get(key), kind
        shutil.rmtree("run")
        shutil.rmtree("again")


def test_what_goes_on_from_a_classifier_is_its_network(ssl, run_of) -> None:
    """The layer that pools in a delivered BERT is no part of the network that another task begins with."""
    run_of("classifier")
    whole, network = Text.load(Path("run/model"), "sequence_classification", None, native=True), Text.load(Path("run/model"), None, None)
    layers = network.base.encoder.layer
    assert len(whole.base.encoder.layer) == len(layers) + 1 == network.base.config.num_hidden_layers + 1
    assert torch.equal(layers[-1].output.dense.weight, whole.base.encoder.layer[-2].output.dense.weight)
    tagger = Text.load(Path("run/model"), "token_classification", None)
    head = tagger.head("token_classification", ["O", "B-X", "I-X"])
    assert head is not None and not network.loaded["new"] and len(tagger.base.encoder.layer) == len(layers)


def test_tokenizer_identity_survives_the_run(ssl, run_of, corpus) -> None:
    run_of("masked")
    assert ssl("pretrain", "from=run", f"data.train={corpus}", "trainer.steps=2", "run.dir=more").code == 0
    assert Tokenizer.load(Path("run/model")).identity == Tokenizer.load(Path("more/model")).identity

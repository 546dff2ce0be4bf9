"""Texts there and back: by tiny models with random weights made here, so what they say is nonsense, but whose, and when, is checked."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from sslcli.augmentations.back_translation import BackTranslation
from sslcli.core import Places
from sslcli.data.stream import in_order
from sslcli.errors import BadCheckpoint
from sslcli.hf.translation import TOKENS, Translator
from tests.conftest import TINY, rows, write_jsonl


def translator(folder: Path, words: dict, seed: int) -> Path:
    torch.manual_seed(seed)
    tokens = words[False]
    tokens.hf.save_pretrained(folder)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    ends = {"pad_token_id": tokens.pad, "decoder_start_token_id": tokens.pad, "eos_token_id": tokens.end}
    model = T5ForConditionalGeneration(T5Config(vocab_size=tokens.size, **sizes, **ends))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.6)  # so that what it says depends on what it reads
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def there(tmp_path: Path, words) -> Path:
    return translator(tmp_path / "there", words, 0)


@pytest.fixture
def back(tmp_path: Path, words) -> Path:
    return translator(tmp_path / "back", words, 1)


def test_a_translation_is_of_its_own_text_alone_and_in_a_batch(there) -> None:
    texts = ["a river in the north", "an old city", "the name of a plant that grows in the south of the country " * 6, "who"]
    ask = Translator(str(there), "", "augment.forward")
    done: list[int] = []
    together = ask(texts, 1, 1, None, done.append)
    assert done[-1] == 4 and done == sorted(done)
    for text, found in zip(texts, together, strict=True):
        assert ask([text], 1, 1, None, lambda _: None)[0] == found and len(found) == 1
    assert len({f[0] for f in together}) == 4 and min(len(f[0]) for f in together) > 5, "they differ, as their texts do"
    assert Translator(str(there), "say: ", "augment.forward")(texts[:1], 1, 1, None, lambda _: None)[0] != together[0]
    several = ask(texts, 3, 2, None, lambda _: None)
    assert all(len(found) == 3 for found in several) and max(len(set(found)) for found in several) == 3, "the best of the beam"


def test_draws_depend_on_the_seed_alone(there) -> None:
    ask = Translator(str(there), "", "augment.forward")
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(ask(["a river in the north"] * 2, 2, 1, 1.0, lambda _: None))
    assert len(ask(["a river"], 3, 2, 1.0, lambda _: None)[0]) == 3, "drawn in a beam"
    assert found[0] == found[1] != found[2] and len({x for some in found[0] for x in some}) == 4


def test_batches_hold_every_text_once() -> None:
    lengths = [5, 3000, 40, 900, 7, 1100]
    found = [batch.tolist() for batch in in_order(Places(len(lengths), np.array(lengths)), TOKENS)]
    assert sorted(i for batch in found for i in batch) == list(range(6)) and found[0] == [1]
    assert all(len(b) * max(lengths[i] for i in b) <= TOKENS for b in found[1:])


def test_copies_find_their_way_back(there, back) -> None:
    """With speakers that can be read: there in capitals with a number, back with a bow."""
    change = BackTranslation(
        probability=1, forward=str(there), backward=str(back), copies=2, temperature=None, beams=1, forward_prefix="", backward_prefix=""
    )
    change.forward = lambda texts, copies, *_: [[f"{t.upper()}{j}" for j in range(copies)] for t in texts]  # type: ignore[assignment]
    change.backward = lambda texts, copies, *_: [[{"B0": "b", "C0": "", "D1": "D0-"}.get(t, f"{t}-")] for t in texts]  # type: ignore[assignment]
    quiet = type("Quiet", (), {"half": lambda *_: None, "rest": lambda *_: None})()
    assert change._translated(["a", "b", "c", "d"], 0, quiet) == [["A0-", "A1-"], ["B1-"], ["C1-"], ["D0-"]], "none empty, none the same"


def test_runs_translate_once(ssl, labelled: Path, there, back, monkeypatch) -> None:
    words = [f"data.train={labelled}", *TINY, "baseline=false", "augment=back_translation", f"augment.forward={there}"]
    words += [f"augment.backward={back}", "augment.probability=0.5"]
    done = ssl("finetune", *words, "trainer.steps=2", "run.dir=run")
    assert done.code == 0 and f"there by {there}, back by {back}" in done.err, done.err
    receipt = json.loads(Path("run/receipts.json").read_text())["augment"]
    assert receipt["texts"] > 50 and 0.3 < receipt["rewritten"] / receipt["texts"] < 0.7 and 0.3 < receipt["changed"] < 0.7

    def refuse(*_):
        raise AssertionError("asked again")

    with monkeypatch.context() as patch:
        patch.setattr(Translator, "__call__", refuse)
        done = ssl("finetune", *words, "augment.probability=1", "--preview", "p.txt")
        assert done.code == 0, done.err
        assert Path("p.txt").read_text().count("  -> ") == 10 and "(as it is)" not in Path("p.txt").read_text()
        other = ssl("finetune", *words, "augment.temperature=0.5", "trainer.steps=2", "run.dir=other")
        assert other.code == 1 and "asked again" in other.err, "other settings are other translations"


def test_a_strong_view_is_a_back_translation(ssl, labelled: Path, there, back, tmp_path: Path) -> None:
    more = write_jsonl(tmp_path / "more.jsonl", [{"text": r["text"]} for r in rows(40)])
    strong = ["augment@objective.strong=back_translation", f"objective.strong.forward={there}", f"objective.strong.backward={back}"]
    words = [f"data.train={labelled}", *TINY, "objective=uda", f"data.unlabelled={more}", "baseline=false", "trainer.steps=2"]
    done = ssl("finetune", *words, *strong, "objective.strong.probability=1", "run.dir=run")
    assert done.code == 0, done.err


def test_what_cannot_translate_is_told_in_one_line(ssl, labelled: Path, there, back, minilm: Path, tmp_path: Path) -> None:
    words = [f"data.train={labelled}", *TINY, "augment=back_translation"]
    for more, code, said in (
        ([], 2, "augment: forward: missing; name a translation model"),
        ([f"augment.forward={there}"], 2, "augment: backward: missing"),
        ([f"augment.forward={there}", f"augment.backward={tmp_path / 'none'}"], 2, "augment.backward="),
        ([f"augment.forward={minilm}", f"augment.backward={back}"], 2, "a bert model translates nothing"),
        ([f"augment.forward={there}", f"augment.backward={back}", "augment.temperature=0"], 2, "augment.temperature=0"),
    ):
        done = ssl("finetune", *words, *more)
        assert done.code == code and said in done.err and done.err.count("\n") == 1 and not Path("runs").exists(), done.err


def test_a_model_without_its_weights_is_refused(there) -> None:
    from safetensors.torch import load_file, save_file

    kept = {k: v for k, v in load_file(there / "model.safetensors").items() if "decoder.block" not in k}
    save_file(kept, there / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadCheckpoint, match=r"augment.forward=.*weights are missing in it \(decoder"):
        Translator(str(there), "", "augment.forward")(["a"], 1, 1, None, lambda _: None)


@pytest.mark.skipif(importlib.util.find_spec("sentencepiece") is not None, reason="sentencepiece is here")
def test_a_tokenizer_that_needs_a_library_names_it(ssl, labelled: Path, there, back) -> None:
    values = {**json.loads((there / "config.json").read_text()), "model_type": "marian"}
    (there / "config.json").write_text(json.dumps(values))
    (there / "source.spm").write_bytes(b"pieces")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (there / name).unlink(missing_ok=True)
    words = [f"data.train={labelled}", *TINY, "augment=back_translation", f"augment.forward={there}", f"augment.backward={back}"]
    done = ssl("finetune", *words)
    assert done.code == 2 and "pip install 'sslcli[translation]'" in done.err and done.err.count("\n") == 1, done.err

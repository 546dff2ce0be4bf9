"""Prompts: templates and words in tokens, the gap filled as transformers fills it, runs of masked and causal models, errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sslcli.data.cloze import Cloze
from tests.conftest import TINY, rows, write_jsonl

GPT = ["objective=causal_lm", "model=gpt_tiny", "tokenizer=bpe", "tokenizer.vocabulary=400"]
SMALL = ["model.layers=1", "model.width=32", "model.heads=2", "model.inner=64", "model.positions=64"]
WORDS = "task.words={cat: cat, dog: dog, ship: ship}"


@pytest.fixture
def pretrained(ssl, corpus: Path) -> str:
    done = ssl("pretrain", "objective=masked_lm", f"data.train={corpus}", *TINY, "trainer.steps=30", "optimizer.lr=3e-3", "run.dir=lm")
    assert done.code == 0, done.err
    return "lm"


@pytest.mark.parametrize("template", ["{text} It was [MASK].", "[MASK] news: {text}", "{text}总之很[MASK]。", "about [MASK]: {text} !"])
def test_a_template_is_what_the_tokenizer_makes_of_the_whole_sentence(words, template: str) -> None:
    tokenizer = words[False]
    cloze, text = Cloze(template, tokenizer), "the cat sat on the mat"
    ids, where = cloze.row(tokenizer.encoder.encode([text])[0])
    whole = tokenizer.hf(template.replace("{text}", text))["input_ids"]
    assert ids.tolist() == whole and whole[where] == tokenizer.mask and len(whole) == cloze.fixed + len(tokenizer.encoder.encode([text])[0])


def test_a_decoder_reads_up_to_the_gap(words) -> None:
    tokenizer = words[True]
    cloze, text = Cloze("{text} It was [MASK].", tokenizer), "the cat sat on the mat"
    ids, where = cloze.row(tokenizer.encoder.encode([text])[0])
    assert tokenizer.hf.decode(ids.tolist()) == f"{text} it was" and where == len(ids) - 1
    (word,) = cloze.words(["great"], tokenizer)
    assert tokenizer.hf.decode(word) == " great", "the word brings the space before it"
    with pytest.raises(ValueError, match="put \\[MASK\\] after"):
        Cloze("[MASK]: {text}", tokenizer)


def test_labels_are_the_mean_of_their_words_logits(ssl, pretrained: str, tmp_path: Path) -> None:
    """As plain transformers says it with what is delivered."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    train, test = write_jsonl(tmp_path / "train.jsonl", rows(12)), write_jsonl(tmp_path / "test.jsonl", rows(18, seed=4))
    spoken = "task.words={cat: small cat, dog: big dog, ship: grey}"
    done = ssl(
        "finetune", "from=lm", "task.head=prompt", spoken, f"data.train={train}", f"data.test={test}", "trainer.steps=2",
        "baseline=false", "run.dir=run",
    )  # fmt: skip
    assert done.code == 0, done.err
    model, tokenizer = AutoModelForMaskedLM.from_pretrained("run/model").eval(), AutoTokenizer.from_pretrained("run/model")
    for line in [json.loads(x) for x in Path("run/predictions.jsonl").read_text().splitlines()][:6]:
        coded = tokenizer(f"{line['input']} It was [MASK].", return_tensors="pt")
        with torch.no_grad():
            said = model(**coded).logits[0, coded["input_ids"][0].tolist().index(tokenizer.mask_token_id)]
        by_hand = [float(said[tokenizer(w, add_special_tokens=False)["input_ids"]].mean()) for w in ("small cat", "big dog", "grey")]
        wanted = np.exp(by_hand) / np.exp(by_hand).sum()
        assert list(line["probabilities"].values()) == pytest.approx(wanted.tolist(), abs=1e-4)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_prompt_learns_is_delivered_and_comes_back(ssl, corpus: Path, tmp_path: Path, family: str) -> None:
    about = ["objective=masked_lm", *TINY] if family == "bert" else [*GPT, *SMALL]
    assert ssl("pretrain", f"data.train={corpus}", *about, "trainer.steps=20", "optimizer.lr=3e-3", "run.dir=lm").code == 0
    train, test = write_jsonl(tmp_path / "train.jsonl", rows(48)), write_jsonl(tmp_path / "test.jsonl", rows(45, seed=3))
    template = "task.template={text} It is about a [MASK]."
    words = ["finetune", "from=lm", "task.head=prompt", template, WORDS, f"data.train={train}", f"data.test={test}", "baseline=false"]
    done = ssl(*words, "trainer.steps=150", "optimizer.lr=3e-3", "run.dir=run")
    assert done.code == 0, done.err
    assert done.result["test"]["accuracy"] > 0.5  # a third by chance
    again = ssl("evaluate", "run=run", "out=again")
    assert again.code == 0 and again.result["test"]["accuracy"] == done.result["test"]["accuracy"], again.err
    assert ssl("export", "run=run", "format=hf", "out=dist").code == 0
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    (AutoModelForMaskedLM if family == "bert" else AutoModelForCausalLM).from_pretrained("dist")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task.template=no text [MASK]"], "holds {text} 0 times; write it once"),
        (["task.template={text} and nothing"], "holds [MASK] 0 times; write it once"),
        (["task.words={cat: cat, dog: dog}"], "words: none for label ship"),
        (["task.words={cat: cat, dog: dog, ship: ship, bird: bird}"], "words.bird: no such label; the labels are cat, dog, ship"),
        (["task.words={cat: cat, dog: cat, ship: ship}"], "words: cat and cat are the same tokens"),
        (["task.words={cat: cat, dog: dog, ship: 鸟}"], "is not in this model's vocabulary; give another word"),
        (["task.head=linear", WORDS], "words: head=linear reads none"),
        (["task.labelling=multi"], "head=prompt: is for one label a text"),
    ],
)
def test_what_cannot_be_asked_is_one_line(ssl, pretrained: str, tmp_path: Path, overrides, said: str) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", rows(12))
    done = ssl("finetune", "from=lm", "task.head=prompt", f"data.train={train}", "trainer.steps=2", *overrides, "run.dir=run")
    assert done.code == 2 and said in done.err and done.err.count("error:") == 1, done.err


def test_a_model_without_a_language_models_head_is_refused(ssl, labelled: Path, minilm: Path) -> None:
    done = ssl("finetune", f"from={minilm}", "task.head=prompt", f"data.train={labelled}", "trainer.steps=2", "run.dir=run")
    assert done.code == 5 and "has no language model's head" in done.err and "objective=masked_lm" in done.err, done.err
    assert ssl("finetune", *TINY, "task.head=prompt", f"data.train={labelled}", "run.dir=run").code == 2

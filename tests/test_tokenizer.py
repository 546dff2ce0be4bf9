"""Tokenizers: trained ones keep the text, fast encoding equals the library's, Chinese needs no segmenter."""

import random
from pathlib import Path

import numpy as np
import pytest

from sslcli.data.docstrings import Docstrings
from sslcli.data.encode import Encoder, ranges
from sslcli.data.tokenizer import Recipe, Tokenizer, sample
from sslcli.data.words import word_begins

ENGLISH = [
    "The cat sat on the mat, again and again.",
    "Doesn't it rain?  Two spaces, a tab\tand\nlines.",
    "naïve café – déjà vu: 1,234.56 €",
] * 20
CHINESE = ["我爱北京天安门，天安门上太阳升。", "南京市长江大桥 was opened in 1968 年。", "今天天气很好，我们去公园吧！"] * 20
ODD = [
    "",
    " ",
    "a",
    "\u200b zero width",
    "e\u0301 combining",
    "\U0001f600 emoji 👩‍👩‍👧",
    "ｆｕｌｌｗｉｄｔｈ",
    "x" * 300,
    "\x0b\x0c\x85 spaces \u3000",
    "##ing ##ed",
    "I̊ stanbul İ",
    "[MASK] is a word",
    "a\u00a0b",
]


def recipe(kind: str, **more: object) -> Recipe:
    options = {"vocabulary": 700, "lowercase": False, "min_frequency": 1, "byte_fallback": kind == "unigram"}
    return Recipe(kind=kind, **{**options, **more})


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_a_trained_tokenizer_gives_the_text_back(kind, decoder, tmp_path: Path) -> None:
    """Byte-level pairs to the byte; pieces up to white space and compatibility forms; word pieces up to spacing round punctuation."""
    made = recipe(kind).train(ENGLISH + CHINESE, decoder)
    made.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.identity == made.identity and again.size == made.size
    for text in ENGLISH[:3] + CHINESE[:3]:
        ids = again.hf(text, add_special_tokens=False)["input_ids"]
        back = again.hf.decode(ids)
        if kind == "bpe":
            assert back == text
        elif kind == "unigram":
            import unicodedata

            assert back.split() == unicodedata.normalize("NFKC", text).split()
        else:
            assert "".join(back.split()) == "".join(text.split())


def test_unknown_characters_fall_back_to_bytes_or_to_unk() -> None:
    strange = "ไทย 🦉"
    for kind in ("bpe", "unigram"):
        made = recipe(kind).train(ENGLISH, False)
        ids = made.hf(strange, add_special_tokens=False)["input_ids"]
        assert made.unknown not in ids and made.hf.decode(ids).split() == strange.split()
    made = recipe("wordpiece").train(ENGLISH, False)
    assert made.unknown in made.hf(strange)["input_ids"]


def test_what_does_not_go_together_is_said() -> None:
    assert "no byte fallback" in Recipe.contradiction({"kind": "wordpiece", "byte_fallback": True})
    assert Recipe.contradiction({"kind": "bpe", "byte_fallback": True}) is None


def test_a_decoder_gets_a_tokenizer_that_keeps_the_text() -> None:
    assert (
        recipe("auto", lowercase=None).train(ENGLISH, True).lossless and not recipe("auto", lowercase=None).train(ENGLISH, False).lossless
    )
    other = recipe("wordpiece").train(ENGLISH, True)
    assert other.unknown != other.end, "an unknown character is no end of a document"


def test_words_of_a_byte_level_tokenizer_keep_their_space(tmp_path: Path) -> None:
    made = recipe("bpe").train(ENGLISH, True)
    inside = made.hf.convert_ids_to_tokens(made.hf("a cat")["input_ids"])[-1]
    made = made.for_words()
    assert made.hf.convert_ids_to_tokens(made.hf(["cat"], is_split_into_words=True)["input_ids"])[-1] == inside
    made.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.hf(["a", "cat"], is_split_into_words=True)["input_ids"] == made.hf(["a", "cat"], is_split_into_words=True)["input_ids"]


def pipelines() -> dict[str, Tokenizer]:
    found = {kind: recipe(kind).train(ENGLISH + CHINESE, False) for kind in ("wordpiece", "bpe", "unigram")}
    found["lowercase"] = recipe("wordpiece", lowercase=True).train(ENGLISH + CHINESE, False)
    return found


@pytest.mark.parametrize("literal", [False, True])
def test_the_fast_encoder_equals_the_library(minilm: Path, literal: bool) -> None:
    random_ = random.Random(0)
    alphabet = "abc ABC é ß 中文字 。,.!-' \t\n 0123 \u0301 \u200d \u00ad ά א ก \U00020000 \ufeff"
    noise = ["".join(random_.choices(alphabet, k=random_.randint(1, 40))) for _ in range(300)]
    docs = [item[2]["text"] for _, item in zip(range(200), Docstrings("data.train", "docstrings", 0).records(), strict=False)]
    for name, made in {**pipelines(), "minilm": Tokenizer.load(minilm)}.items():
        encoder, backend = Encoder(made.hf.backend_tokenizer, literal), made.hf.backend_tokenizer
        backend.encode_special_tokens = literal
        for texts in (ENGLISH + CHINESE, ODD, noise, docs, ODD):
            ids, lengths = encoder.encode(texts)
            expected = [backend.encode(t, add_special_tokens=False).ids for t in texts]
            assert lengths.tolist() == [len(e) for e in expected], name
            assert ids.tolist() == [i for e in expected for i in e], name


def test_the_table_of_the_encoder_stays_small(monkeypatch) -> None:
    from sslcli.data import encode

    monkeypatch.setattr(encode, "MAX_UNITS", 50)
    made = recipe("wordpiece").train(ENGLISH, False)
    texts = [f"word{i} and word{i * 7} sat" for i in range(300)]
    ids, lengths = made.encoder.encode(texts)
    assert ids.tolist() == [i for t in texts for i in made.hf(t, add_special_tokens=False)["input_ids"]]
    assert len(made.encoder.table) <= 50 and len(made.encoder.starts) == len(made.encoder.table) + 1 and lengths.sum() == len(ids)


def test_ranges_are_the_slices_one_after_the_other() -> None:
    assert ranges(np.array([5, 0, 9]), np.array([2, 3, 0])).tolist() == [5, 6, 0, 1, 2]


def words_of(made: Tokenizer, text: str) -> list[str]:
    ids = np.array([made.hf(text, add_special_tokens=False)["input_ids"]])
    begins = np.flatnonzero(word_begins(made)(ids)[0])
    pieces = np.split(ids[0], begins[1:]) if begins[0] == 0 else np.split(ids[0], begins)
    return [made.hf.decode(p).replace(" ", "") for p in pieces]


def test_words_begin_where_people_see_them_begin() -> None:
    for made in pipelines().values():
        assert [w for w in words_of(made, "again the cat") if w] == ["again", "the", "cat"]
    chinese = words_of(pipelines()["wordpiece"], "我爱北京天安门")
    assert "".join(chinese) == "我爱北京天安门" and "北京" in chinese and "天安门" in chinese
    for kind in ("bpe", "unigram"):  # pieces and characters: never a whole sentence as one word
        assert len(words_of(pipelines()[kind], "南京公园好大桥太爱天气")) >= 5


def test_the_sample_is_spread_over_the_whole_corpus() -> None:
    texts = [f"{i:05d}" for i in range(10_000)]
    kept = sample(texts, limit=5_000)
    assert sum(map(len, kept)) <= 5_000 and int(kept[0]) < 100 and int(kept[-1]) > 9_900
    assert sample(texts[:100], limit=5_000) == texts[:100]


def test_a_folder_without_a_fast_tokenizer_is_refused(ssl, tmp_path: Path, minilm: Path, labelled: Path) -> None:
    import shutil

    shutil.copytree(minilm, tmp_path / "model")
    for name in ("tokenizer.json", "vocab.txt"):
        (tmp_path / "model" / name).unlink(missing_ok=True)
    done = ssl("finetune", "from=model", f"data.train={labelled}", "run.dir=run")
    assert done.code == 5 and "holds no tokenizer" in done.err


def test_a_tokenizer_of_another_model_is_refused(ssl, tmp_path: Path, minilm: Path, labelled: Path) -> None:
    import shutil

    shutil.copytree(minilm, tmp_path / "model")
    other = Tokenizer.load(minilm)
    other.hf.add_tokens([f"strange{i}" for i in range(5)])
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / "model" / name).unlink(missing_ok=True)
    other.save(tmp_path / "model")
    done = ssl("finetune", "from=model", f"data.train={labelled}", "run.dir=run")
    assert done.code == 5 and "30,527 tokens, its model only 30,522" in done.err and not (tmp_path / "run").exists()

"""Planted leaks are found, unrelated texts are not, and what is said of a pair is its true similarity."""

import itertools
import random
import re

import numpy as np
import pytest

from sslcli.evidence import minhash
from sslcli.evidence.leaks import ALIKE, Sketch, between, radar
from sslcli.evidence.shingles import words


def invented(count: int, seed: int, least: int = 10, most: int = 30, vocabulary: int = 4000) -> list[str]:
    chance = random.Random(seed)
    known = ["".join(chance.choices("abcdefghijklmnoprstu", k=chance.randint(2, 9))) for _ in range(vocabulary)]
    # words are as unequal as in a language
    weights = [1 / (i + 3) for i in range(vocabulary)]
    return [" ".join(chance.choices(known, weights, k=chance.randint(least, most))).capitalize() + "." for _ in range(count)]


def changed(text: str, chance: random.Random) -> str:
    parts = text.split()
    for i in chance.sample(range(len(parts)), max(1, len(parts) // 10)):
        parts[i] = "other" + str(chance.randint(0, 10**6))
    return " ".join(parts)


def wrapped(text: str, chance: random.Random) -> str:
    return "  " + re.sub(" ", lambda _: chance.choice([" ", "\n", "\r\n\t", "  "]), text) + "\n"


def recased(text: str, chance: random.Random) -> str:
    return "".join(chance.choice((c.upper(), c.lower())) for c in text).replace(" ", ", ").replace(".", "?!")


CHINESE = "今天天气很好我们一起去公园散步看花吃冰淇淋然后回家写作业读书听音乐和朋友聊电影城市交通银行卡余额查询"


def chinese(count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choices(CHINESE, k=chance.randint(20, 40))) + "。" for _ in range(count)]


@pytest.mark.parametrize("make", [invented, chinese])
@pytest.mark.parametrize(("how", "least"), [(lambda t, c: t, 1.0), (wrapped, 1.0), (recased, 1.0), (changed, 0.95)])
def test_planted_leaks_are_found(make, how, least: float) -> None:
    chance = random.Random(1)
    train, own = make(3000, 2), make(600, 3)
    if how is changed and make is chinese:
        pytest.skip("made-up words are not Chinese")
    rows = chance.sample(range(len(train)), 300)
    pairs = between(Sketch.of(train), Sketch.of([how(train[i], chance) for i in rows] + own))
    right = {p.second for p in pairs if p.second < 300 and p.first == rows[p.second]}
    assert len(right) >= least * 300
    assert sum(p.second >= 300 for p in pairs) <= 0.001 * len(own)  # nobody else
    if least == 1.0:
        assert all(p.kind == "exact" for p in pairs if p.second < 300)


def test_changed_chinese_characters_are_found() -> None:
    chance, train = random.Random(4), chinese(500, 5)

    def other(text: str) -> str:
        found = list(text)
        for i in chance.sample(range(len(found) - 1), len(found) // 10):
            found[i] = chr(chance.randint(0x5000, 0x8000))
        return "".join(found)

    pairs = between(Sketch.of(train), Sketch.of(map(other, train)))
    assert sum(p.first == p.second for p in pairs) >= 475


def naive(text: str) -> set:
    found = re.findall(r"[a-z0-9]+", text.lower().replace("'", ""))
    return set(found) | set(itertools.pairwise(found))


def test_similarities_are_those_of_sets_compared_one_by_one() -> None:
    first, second = invented(60, 6, 3, 12, 30), invented(80, 7, 3, 12, 30)
    one, two = Sketch.of(first), Sketch.of(second)
    every = np.array([(i, j) for i in range(60) for j in range(80)])
    true = [len(naive(first[i]) & naive(second[j])) / len(naive(first[i]) | naive(second[j])) for i, j in every]
    assert np.allclose(minhash.jaccard((one.features, one.counts), (two.features, two.counts), every), true)
    for pair in between(one, two):
        likeness = [t for (i, j), t in zip(every.tolist(), true, strict=True) if j == pair.second]
        assert pair.kind == "exact" or pair.similarity == round(max(likeness), 4) >= ALIKE


def test_bands_find_what_is_alike() -> None:
    chance, train = random.Random(8), invented(2000, 9)
    near = [changed(t, chance) for t in train]
    one, two = Sketch.of(train), Sketch.of(near)
    found = {(i, j) for i, j in minhash.candidates(one.bands, two.bands).tolist()}
    assert sum((i, i) in found for i in range(2000)) >= 0.98 * 2000
    assert len(found) < 20 * 2000  # not everything with everything


def test_a_text_inside_a_document_is_found_by_its_pieces() -> None:
    test, filler = invented(50, 10, 20, 30), invented(200, 11)
    documents = [" ".join([*filler[i * 3 : i * 3 + 2], test[i], *filler[i * 3 + 2 : i * 3 + 3]]) for i in range(50)]
    pairs = between(Sketch.of(documents), Sketch.of(test + filler[190:]))
    assert [(p.kind, p.first, p.second, p.similarity) for p in pairs] == [("piece", i, i, 1.0) for i in range(50)]


def test_short_and_empty_texts_match_word_for_word_only() -> None:
    train = ["yes please", "", "...", "no", "what is it", "\U0001f600 \U0001f600"]
    pairs = between(Sketch.of(train), Sketch.of(["Yes, please!", "", "?", "yes", "what is that", "don't", "\U0001f600\U0001f600"]))
    assert [(p.first, p.second) for p in pairs] == [(0, 0), (5, 6)]
    assert words(["it's", "its"])[0].tolist()[0] == words(["its"])[0].tolist()[0]
    assert not between(Sketch.of([]), Sketch.of(["one two three four five"]))


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = invented(100, 12, 10, 40)
    whole = Sketch.of(texts)
    monkeypatch.setattr("sslcli.evidence.leaks.CHUNK", 7)
    parted = Sketch.of(texts)
    assert all(np.array_equal(getattr(whole, n), getattr(parted, n)) for n in whole.__dataclass_fields__)


def test_every_part_is_held_against_those_before_it() -> None:
    texts = invented(40, 13)
    found = radar({n: Sketch.of(t) for n, t in {"train": texts[:20], "test": texts[15:30], "unlabelled": texts[25:]}.items()})
    assert list(found.pairs) == [("unlabelled", "train"), ("unlabelled", "test"), ("train", "test")]
    assert found.leaked("test") == [0, 1, 2, 3, 4] and found.leaked("test", ("train", "unlabelled")) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    assert found.summary()[2] == {"part": "test", "in": "train", "exact": 5, "near": 0, "piece": 0, "rows": 5, "share": round(5 / 15, 6)}

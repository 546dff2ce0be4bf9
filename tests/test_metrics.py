"""Scores against the field's own definitions."""

import random

import numpy as np
import pytest

from sslcli import metrics
from sslcli.data.tags import scheme, to_bio


def conlleval(gold: list[list[str]], guess: list[list[str]]) -> tuple[float, float, float]:
    """The counting of the conlleval script: chunks found by its own rules of begin and end."""

    def chunks(tags: list[str]) -> set[tuple[int, int, str]]:
        found, start, kind = set(), None, ""
        for i, tag in enumerate([*tags, "O"]):
            mark, _, this = tag.partition("-")
            ends = start is not None and (mark in ("O", "B") or this != kind)
            if ends:
                found.add((start, i, kind))
                start = None
            if mark == "B" or (mark == "I" and start is None):
                start, kind = i, this
        return found

    correct = found = true = 0
    for a, b in zip(gold, guess, strict=True):
        x, y = chunks(a), chunks(b)
        correct, found, true = correct + len(x & y), found + len(y), true + len(x)
    precision, recall = correct / max(found, 1), correct / max(true, 1)
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-9)


def random_tags(random_: random.Random, n: int) -> list[str]:
    return [random_.choice(["O", "O", "B-PER", "I-PER", "B-ORG", "I-ORG", "I-LOC"]) for _ in range(n)]


def test_entity_scores_equal_conlleval() -> None:
    random_ = random.Random(0)
    for _ in range(30):
        lengths = [random_.randint(1, 12) for _ in range(20)]
        gold, guess = ([random_tags(random_, n) for n in lengths] for _ in range(2))
        scores = metrics.entities(gold, guess)
        assert (scores["precision"], scores["recall"], scores["f1"]) == pytest.approx(conlleval(gold, guess))
        # mending a sequence by conlleval's rule changes no score
        mended = [to_bio(t)[0] for t in guess]
        assert metrics.entities([to_bio(t)[0] for t in gold], mended)["f1"] == pytest.approx(scores["f1"])


def test_the_entity_report_has_every_type_and_all_averages() -> None:
    gold, guess = [["B-PER", "I-PER", "O", "B-LOC"]], [["B-PER", "I-PER", "O", "O"]]
    report = metrics.entities(gold, guess)["report"]
    assert set(report) == {"PER", "LOC", "micro avg", "macro avg", "weighted avg"}
    assert report["PER"] == {"precision": 1.0, "recall": 1.0, "f1-score": 1.0, "support": 1}
    assert report["LOC"]["f1-score"] == 0 and report["micro avg"]["support"] == 2


def test_no_entity_anywhere_is_zero_and_no_error() -> None:
    assert metrics.entities([["O", "O"]], [["O", "O"]])["f1"] == 0


@pytest.mark.parametrize(
    ("tags", "expected", "mended"),
    [
        (["B-A", "I-A", "O", "B-A"], ["B-A", "I-A", "O", "B-A"], 0),
        (["I-A", "I-A", "O"], ["B-A", "I-A", "O"], 1),
        (["B-A", "I-B"], ["B-A", "B-B"], 1),
        (["S-A", "B-A", "E-A", "S-B"], ["B-A", "B-A", "I-A", "B-B"], 0),
        (["U-A", "B-B", "L-B"], ["B-A", "B-B", "I-B"], 0),
        (["PER", "PER", "O", "LOC"], ["B-PER", "I-PER", "O", "B-LOC"], 2),
        (["S-A", "I-A"], ["B-A", "B-A"], 1),
    ],
)
def test_every_scheme_becomes_bio(tags, expected, mended) -> None:
    assert to_bio(tags) == (expected, mended)


def test_the_scheme_is_named() -> None:
    assert (
        scheme({"B", "I"}) == "BIO" and scheme({"I"}) == "IO" and scheme({"B", "I", "E", "S"}) == "BIOES" and scheme({"U", "L"}) == "BILOU"
    )


def test_classification_equals_scikit_learn_and_its_intervals_hold_the_score() -> None:
    from sklearn.metrics import accuracy_score, classification_report, f1_score

    random_ = np.random.default_rng(0)
    gold = random_.integers(0, 4, 300)
    guess = np.where(random_.random(300) < 0.7, gold, random_.integers(0, 4, 300))
    scores = metrics.classification(gold.tolist(), guess.tolist(), list("abcd"))
    assert scores["accuracy"] == accuracy_score(gold, guess)
    assert scores["macro_f1"] == pytest.approx(f1_score(gold, guess, average="macro"))
    table = classification_report(gold, guess, target_names=list("abcd"), output_dict=True)
    assert scores["report"].keys() == table.keys() - {"accuracy"}
    assert all(row == pytest.approx(table[name], abs=1e-6) for name, row in scores["report"].items())
    for key in ("accuracy", "macro_f1"):
        low, high = scores[f"{key}_interval"]
        assert low < scores[key] < high and 0.05 < high - low < 0.15


def test_an_interval_covers_as_often_as_it_says() -> None:
    """Samples of 200 rows of a coin that falls right 0.8 of the time: about 95 of 100 intervals hold 0.8."""
    random_ = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        right = (random_.random(200) < 0.8).astype(np.int64)[:, None]
        low, high = metrics.interval(right, lambda s: s[:, 0] / 200, seed=trial)
        covered += low <= 0.8 <= high
    assert 180 <= covered <= 199


def test_multi_label_and_ordinal_scores() -> None:
    gold, guess = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]]), np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]])
    scores = metrics.multi_label(gold, guess, ["x", "y", "z"])
    assert scores["accuracy"] == pytest.approx(2 / 3) and scores["micro_f1"] == pytest.approx(0.8)
    assert scores["macro_f1"] == pytest.approx((1 + 1 + 0) / 3)
    ranks = metrics.ordinal([0, 1, 2], [0, 2, 2])
    assert ranks["mae"] == pytest.approx(1 / 3) and ranks["quadratic_kappa"] == pytest.approx(0.8)


def test_ranks_that_do_not_occur_are_as_far_apart() -> None:
    from sklearn.metrics import cohen_kappa_score

    gold, guess = [0, 0, 0, 3, 3, 4, 4, 0], [0, 3, 0, 3, 4, 4, 3, 4]
    scores = metrics.ordinal(gold, guess)
    assert scores["quadratic_kappa"] == pytest.approx(cohen_kappa_score(gold, guess, weights="quadratic", labels=range(5)))
    low, high = scores["quadratic_kappa_interval"]
    assert low < scores["quadratic_kappa"] < high


def test_one_label_of_several_is_one_column() -> None:
    gold, guess = np.array([[1], [1], [0], [0]]), np.array([[1], [0], [0], [1]])
    scores = metrics.multi_label(gold, guess, ["spam"])
    assert scores["macro_f1"] == scores["micro_f1"] == scores["report"]["spam"]["f1-score"] == 0.5 == scores["accuracy"]
    assert scores["report"]["spam"]["support"] == 2


def test_marks_without_a_kind_are_of_one_kind() -> None:
    """As seqeval takes them; a type in their place is a type."""
    from seqeval.metrics.sequence_labeling import get_entities

    tags = ["B", "I", "I", "O", "B", "B", "I"]
    made, mended = to_bio(tags)
    assert made == ["B-entity", "I-entity", "I-entity", "O", "B-entity", "B-entity", "I-entity"] and mended == 0
    assert [e[1:] for e in get_entities(made)] == [e[1:] for e in get_entities(tags)]
    assert to_bio(["S", "O", "B", "E", "PER", "M"])[0] == ["B-entity", "O", "B-entity", "I-entity", "B-PER", "B-M"]


def test_mean_interval_is_students() -> None:
    assert metrics.mean_interval([0.9, 1.0], "accuracy")[1] == 1.0 < metrics.mean_interval([0.9, 1.0], "nll")[1]
    assert metrics.mean_interval([0.1, 0.0], "accuracy")[0] == 0.0 > metrics.mean_interval([0.1, 0.0], "spearman")[0] > -1
    low, high = metrics.mean_interval([0.5, 0.6, 0.7])
    assert (low + high) / 2 == pytest.approx(0.6) and high - low == pytest.approx(2 * 4.3027 * 0.1 / 3**0.5, rel=1e-3)

"""What a cheap method makes of the same labels: the score that a network has to beat to be worth its cost."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from sslcli.core import Task
from sslcli.data.examples import examples_of
from sslcli.data.store import Store

MANY = 5000  # texts; beyond this a linear SVM stands in for logistic regression, which takes minutes
MOST = 50_000  # beyond this no baseline is worth waiting for


def baseline(task: Task, train: Store, scored: Store) -> dict[str, Any] | None:
    """Scores of the majority label and of TF-IDF with a linear classifier; for tagged words, of a dictionary of the words seen."""
    if examples_of(train).count > MOST:
        return None
    known, asked = list(_examples(train)), list(_examples(scored))
    gold = [g for _, g in asked]
    if known and isinstance(known[0][0], list):
        tags = _lookup(known, [words for words, _ in asked])
        return {"method": "the most frequent tag of each word", **_scores(task, tags, gold)}
    if any(isinstance(g, list) for _, g in known):
        return None
    labels = Counter(g for _, g in known)
    majority = [labels.most_common(1)[0][0]] * len(gold)
    method, guess = _tfidf(known, [text for text, _ in asked])
    return {"method": method, **_scores(task, guess, gold), "majority_accuracy": _scores(task, majority, gold)["accuracy"]}


def _scores(task: Task, guess: list[Any], gold: list[Any]) -> dict[str, Any]:
    return {k: v for k, v in task.score(guess, gold).items() if k != "report"}


def _examples(store: Store) -> Iterator[tuple[Any, Any]]:
    examples = examples_of(store)
    for i in range(examples.count):
        row = json.loads(examples.text(i))
        yield row["input"], row["gold"]


def _tfidf(known: list[tuple[str, str]], texts: list[str]) -> tuple[str, list[str]]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    sample = "".join(text for text, _ in known[:200])
    spaced = sum("\u4e00" <= c <= "\u9fff" for c in sample) < 0.2 * max(1, len(sample))
    ngrams = {"ngram_range": (1, 2)} if spaced else {"analyzer": "char", "ngram_range": (1, 3)}
    vectors = TfidfVectorizer(sublinear_tf=True, **ngrams)
    y = [label for _, label in known]
    try:
        x = vectors.fit_transform(text for text, _ in known)
    except ValueError:  # no text has a word of two letters
        return "the most frequent label", [Counter(y).most_common(1)[0][0]] * len(texts)
    if len(set(y)) < 2:
        return "the only label", [y[0]] * len(texts)
    few = len(known) <= MANY
    model = LogisticRegression(C=10, max_iter=1000) if few else LinearSVC()
    name = "logistic regression" if few else "linear SVM"
    return f"TF-IDF with {name}", model.fit(x, y).predict(vectors.transform(texts)).tolist()


def _lookup(known: list[tuple[list[str], list[str]]], sentences: list[list[str]]) -> list[list[str]]:
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for words, tags in known:
        for word, tag in zip(words, tags, strict=True):
            seen[word][tag] += 1
    best = {word: tags.most_common(1)[0][0] for word, tags in seen.items()}
    return [[best.get(word, "O") for word in words] for words in sentences]

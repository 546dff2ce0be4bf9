"""What a cheap method makes of the same labels: the score that a network has to beat to be worth its cost."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sslcli import metrics
from sslcli.core import Task
from sslcli.data.examples import examples_of
from sslcli.data.store import Store
from sslcli.evidence import lexical

MANY = 5000  # texts; beyond this a linear SVM stands in for logistic regression, which takes minutes
MOST = 50_000  # beyond this no baseline is worth waiting for
SIDE = 32  # pixels a side to which pictures are brought down
NEAR, FEW = 5, 20  # pictures that vote; only the nearest, where a label has fewer than so many


def baseline(task: Task, train: Store, scored: Store) -> dict[str, Any] | None:
    """Scores of the majority label and of TF-IDF with a linear classifier; for tagged words, of a dictionary of the words seen; for
    pictures, of those whose pixels correlate most; for pairs and passages, of shared words."""
    if examples_of(train).count > MOST:
        return None
    if "place" in train:
        return _pixels(task, train, scored)
    if "ids_b" in train:
        return lexical.similar(scored)
    if "positives" in train:
        return lexical.found(task, scored)
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


def ngrams(texts: Sequence[str]) -> dict[str, Any]:
    """How texts are counted (options of TfidfVectorizer): by words and pairs of them; by characters where no spaces part them."""
    sample = "".join(texts[:200])
    spaced = sum("\u4e00" <= c <= "\u9fff" for c in sample) < 0.2 * max(1, len(sample))
    return {"ngram_range": (1, 2)} if spaced else {"analyzer": "char", "ngram_range": (1, 3)}


def _tfidf(known: list[tuple[str, str]], texts: list[str]) -> tuple[str, list[str]]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    vectors = TfidfVectorizer(sublinear_tf=True, **ngrams([text for text, _ in known]))
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


def _pixels(task: Any, train: Store, scored: Store) -> dict[str, Any]:
    import torch

    from sslcli.evidence.neighbours import nearest

    if hasattr(task, "descriptors"):  # retrieval: what is nearest in the gallery, or among the others
        return _found(task.processor, task.gallery or scored, scored)
    (known, bank), (gold, asked) = ((_golds(s), _correlated(task.processor, s)) for s in (train, scored))
    kinds = task.labels
    target = torch.zeros(len(known), len(kinds))
    for row, label in zip(target, known, strict=True):
        row[[kinds.index(x) for x in (label if isinstance(label, list) else [label])]] = 1
    k = NEAR if len(known) >= FEW * len(kinds) else 1
    votes = target[nearest(asked, bank, k)[1]].mean(1)
    several = any(isinstance(g, list) for g in known)
    guess = [[kinds[i] for i in (v > 0.5).nonzero().flatten().tolist()] for v in votes] if several else [kinds[i] for i in votes.argmax(-1)]
    found = {"method": f"raw pixels, {k}-NN by correlation", **_scores(task, guess, gold)}
    if several:
        return found
    majority = [Counter(known).most_common(1)[0][0]] * len(gold)
    return {**found, "majority_accuracy": _scores(task, majority, gold)["accuracy"]}


def _found(processor: Any, gallery: Store, scored: Store) -> dict[str, Any]:
    """Retrieval by raw pixels."""
    bank, known = _correlated(processor, gallery), np.array(_golds(gallery))
    asked, gold = (bank, known) if gallery is scored else (_correlated(processor, scored), np.array(_golds(scored)))
    ranks: list[np.ndarray] = []
    precisions: list[np.ndarray] = []
    for start in range(0, len(asked), 256):
        similarity = (asked[start : start + 256] @ bank.t()).numpy()
        if gallery is scored:
            np.put_along_axis(similarity, np.arange(start, start + len(similarity))[:, None], -np.inf, 1)
        order = np.argsort(-similarity, 1, kind="stable")[:, : len(bank) - (gallery is scored)]
        relevant = known[order] == gold[start : start + 256, None]
        some = relevant.any(1)
        ranks.append(relevant[some].argmax(1))
        precisions.append(metrics.average_precision(relevant[some]))
    return {"method": "raw pixels by correlation", **metrics.retrieval(np.concatenate(ranks), np.concatenate(precisions))}


def _golds(store: Store) -> list[Any]:
    return [gold for _, gold in _examples(store)]


def _correlated(processor: Any, store: Store) -> Any:
    """Pixels [N, D] whose cosines are the pictures' correlations."""
    import torch
    from torch.nn import functional as F

    found = []
    for rows in np.array_split(np.arange(store.count), max(1, store.count // 1000)):
        pictures = processor.take(store, rows).float()
        if processor.size > SIDE:
            pictures = F.interpolate(pictures, (SIDE, SIDE), mode="area")
        flat = pictures.flatten(1)
        found.append(F.normalize(flat - flat.mean(1, keepdim=True), dim=-1))
    return torch.cat(found)


def _lookup(known: list[tuple[list[str], list[str]]], sentences: list[list[str]]) -> list[list[str]]:
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for words, tags in known:
        for word, tag in zip(words, tags, strict=True):
            seen[word][tag] += 1
    best = {word: tags.most_common(1)[0][0] for word, tags in seen.items()}
    return [[best.get(word, "O") for word in words] for words in sentences]

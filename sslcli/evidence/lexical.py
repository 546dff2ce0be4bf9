"""What shared words alone say of texts: cosines of TF-IDF over pieces of words, which needs neither labels nor a network."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from sslcli import metrics
from sslcli.data.examples import examples_of
from sslcli.data.store import Store

METHOD = "TF-IDF over letters by cosine"
TOGETHER = 256  # queries that are looked for at a time


def _fitted(texts: Sequence[str]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 4)).fit(texts)


def _lines(store: Store) -> list[dict[str, Any]]:
    examples = examples_of(store)
    return [json.loads(examples.text(i)) for i in range(examples.count)]


def similar(scored: Store) -> dict[str, Any]:
    """Of pairs with scores."""
    lines = _lines(scored)
    first, second = ([line["input"][side] for line in lines] for side in ("text_a", "text_b"))
    weights = _fitted([*first, *second])
    said = np.asarray(weights.transform(first).multiply(weights.transform(second)).sum(1)).ravel()
    return {"method": METHOD, **metrics.similarity([line["gold"] for line in lines], said)}


def found(task: Any, scored: Store) -> dict[str, Any]:
    """Of queries in the passages that they look in."""
    passages, lines = [line["input"] for line in _lines(task.passages(scored))], _lines(scored)
    weights = _fitted(passages)
    known, asked = weights.transform(passages), weights.transform([line["input"] for line in lines])
    ranked = []
    rows = scored["owner"].values[:, 0]  # queries too long may have been dropped
    for part in np.array_split(np.arange(scored.count), -(-scored.count // TOGETHER)):
        order = np.argsort(-(asked[rows[part]] @ known.T).toarray(), 1, kind="stable")
        ranked += [task.ranked(o, right) for o, right in zip(order, scored["positives"].take(part), strict=True)]
    return {"method": METHOD, **task.score(ranked, ranked)}

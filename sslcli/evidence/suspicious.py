"""Labels that are probably wrong: what a cheap probe says of rows that it was not fitted on, against what they are labelled as.

Confident learning (Northcutt, Jiang and Chuang 2021). Nothing is changed or left out: rows are listed, for people to look at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FOLDS, STRENGTH = 5, 3.0  # of the cross-fit, and C of its logistic regression on vectors of unit length
LEAST = 2  # rows of a label without which it cannot be learnt outside of its own fold
TERMS = 256  # dimensions that words are brought down to (latent semantic analysis)


@dataclass(frozen=True)
class Suspicion:
    """Of a row: what it should rather be called, by how much the probe prefers that, and how likely it holds it for."""

    row: int
    suggested: int
    margin: float
    confidence: float


def out_of_fold(vectors: np.ndarray, label: np.ndarray, classes: int, group: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """Probabilities [N, C] of rows [N, D] with labels [N], each by a probe that saw none of its fold. Rows of a `group` [N] stay together
    (words of a sentence). A label that is in no other fold has probability 0."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, StratifiedKFold

    found = np.zeros((len(label), classes))
    if group is None:
        folds = StratifiedKFold(_folds(label), shuffle=True, random_state=seed).split(vectors, label)
    else:
        folds = GroupKFold(min(FOLDS, len(np.unique(group)))).split(vectors, label, group)
    for known, asked in folds:
        if len(np.unique(label[known])) < 2:
            found[np.ix_(asked, label[known][:1])] = 1.0
            continue
        probe = LogisticRegression(C=STRENGTH, max_iter=300).fit(vectors[known], label[known])
        found[np.ix_(asked, probe.classes_)] = probe.predict_proba(vectors[asked])
    return found


def best(candidates: Sequence[np.ndarray], label: np.ndarray, classes: int) -> np.ndarray:
    """Out-of-fold probabilities by those vectors that leave the least loss: whether words help depends on the texts and their number."""
    found = [out_of_fold(vectors, label, classes) for vectors in candidates]
    rows = np.arange(len(label))
    return min(found, key=lambda p: float(-np.log(p[rows, label].clip(1e-6)).mean()))


def confident(probabilities: np.ndarray, label: np.ndarray) -> list[Suspicion]:
    """Rows [N, C] whose label [N] is contradicted, the surest first. A row counts as of a class where its probability is at least the mean
    of those that are labelled so (their self-confidence); of several such classes, as of the likeliest. It is suspicious where that is
    another one than its label; ranked by the normalised margin."""
    rows = np.arange(len(label))
    own = probabilities[rows, label]
    count = np.bincount(label, minlength=probabilities.shape[1])
    mean = np.bincount(label, own, probabilities.shape[1]) / np.maximum(count, 1)
    over = np.where((probabilities >= mean) & (count > 0), probabilities, -1.0)
    counted = over.argmax(1)
    odd = np.flatnonzero((over.max(1) >= 0) & (counted != label) & (probabilities[rows, counted] > own))
    margin = probabilities[odd, counted[odd]] - own[odd]
    order = np.argsort(-margin, kind="stable")
    return [Suspicion(int(odd[i]), int(counted[odd[i]]), float(margin[i]), float(probabilities[odd[i], counted[odd[i]]])) for i in order]


def directions(vectors: np.ndarray) -> np.ndarray:
    """[N, D] as seen from their mean, of length 1: vectors of a network often point nearly all the same way."""
    seen = vectors - vectors.mean(0)
    return seen / np.maximum(np.linalg.norm(seen, axis=1, keepdims=True), 1e-12)


def words(texts: Sequence[str]) -> np.ndarray | None:
    """[N, D] of what words texts are made of (of characters, where a language has no spaces); None where that says nothing."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    from sslcli.evidence.baseline import ngrams

    try:
        counts = TfidfVectorizer(sublinear_tf=True, min_df=2, **ngrams(texts)).fit_transform(texts)
    except ValueError:  # no word occurs twice
        return None
    most = min(TERMS, *(n - 1 for n in counts.shape))
    return TruncatedSVD(most, random_state=0).fit_transform(counts) if most > 1 else None


def _folds(label: np.ndarray) -> int:
    return max(2, min(FOLDS, int(np.bincount(label).max())))

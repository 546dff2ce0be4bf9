"""Which unlabelled rows are worth a label: those that the network is least sure of, spread out so that no two teach the same."""

import warnings

import numpy as np

from sslcli.evidence.projection import Projection, project
from sslcli.evidence.suspicious import STRENGTH, directions

WIDER = 10  # times as many uncertain rows as are wanted are spread out
SHARES = (0.25, 0.35, 0.5, 0.7, 1.0)  # of the labels, from which the curve is read
DRAWS = 20  # subsets of each size
LEAST = 20  # labels, and rows to score on, without which there is no curve


def margins(probabilities: np.ndarray) -> np.ndarray:
    """[N]: how far the likeliest of [N, C] is ahead of the next; small is uncertain (Scheffer et al. 2001)."""
    best = np.sort(probabilities, axis=1)[:, -2:]
    return best[:, 1] - best[:, 0] if best.shape[1] > 1 else np.zeros(len(best))


def choose(vectors: np.ndarray, probabilities: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Rows [count] of [N, D] to label, in the order in which to label them: of those with the smallest margins, WIDER times as many as are
    wanted, one from each of `count` clusters, to whose middle it is the nearest; clusters are drawn to what is uncertain (Zhdanov 2019)."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    margin = margins(probabilities)
    order = np.argsort(margin, kind="stable")[: WIDER * count]
    if len(order) <= count:
        return order
    seen, weight = directions(vectors[order]), 1 - margin[order] + 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # rows that are alike fill fewer clusters
        clusters = KMeans(count, n_init=1, max_iter=30, random_state=seed).fit(seen, sample_weight=weight)
    away = clusters.transform(seen)
    own = away[np.arange(len(order)), clusters.labels_]
    nearest = [order[rows[own[rows].argmin()]] for c in range(count) if len(rows := np.flatnonzero(clusters.labels_ == c))]
    rest = [row for row in order.tolist() if row not in set(nearest)]  # where rows are alike, clusters are empty
    chosen = np.array((nearest + rest)[:count])
    return chosen[np.argsort(margin[chosen], kind="stable")]


def gain(
    vectors: np.ndarray, label: np.ndarray, scored: np.ndarray, gold: np.ndarray, count: int, seed: int = 0
) -> tuple[Projection | None, list[tuple[int, float]]]:
    """What `count` more labels, drawn at random, would add to the accuracy of a linear layer: carried on from its curve over parts of the
    labels that are there (vectors [N, D]; scored on [M, D]). None where they are too few. And the points of that curve."""
    from sklearn.linear_model import LogisticRegression

    if len(label) < LEAST or len(gold) < LEAST or len(np.unique(label)) < 2:
        return None, []
    random = np.random.Generator(np.random.Philox(key=[seed, 0x7EAC4]))
    points = []
    for size in sorted({round(share * len(label)) for share in SHARES}):
        found = []
        for _ in range(DRAWS if size < len(label) else 1):
            rows = random.permutation(len(label))[:size]
            if len(np.unique(label[rows])) > 1:
                probe = LogisticRegression(C=STRENGTH, max_iter=300).fit(vectors[rows], label[rows])
                found.append(float(probe.score(scored, gold)))
        if found:
            points.append((size, float(np.mean(found))))
    return project([n for n, _ in points], [s for _, s in points], len(label) + count), points

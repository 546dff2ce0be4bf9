"""Near-duplicates among many sets: MinHash (Broder 1997) with bands finds candidates, the Jaccard similarity itself decides."""

import numpy as np

from sslcli.evidence.shingles import distinct, mixed

BANDS, ROWS = 20, 4  # a pair of similarity 0.73 is a candidate 998 times in 1000, one of 0.3 in 15 of 100
BUCKET = 64  # of one bucket, so many are candidates: the rest is a template that fills the corpus
PIECE = 50_000  # pairs that are verified at once
_MULTIPLY = mixed(np.arange(BANDS * ROWS, dtype=np.uint64)) | np.uint64(1)
_ADD = mixed(np.arange(1000, 1000 + BANDS * ROWS, dtype=np.uint64))


def signatures(features: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[N, BANDS] uint64 of sets that stand one after the other in `features` (uint32), `counts` [N] long. An empty set's is 0."""
    some = np.flatnonzero(counts)
    found = np.zeros((len(counts), BANDS), np.uint64)
    if not len(some):
        return found
    starts = (np.cumsum(counts) - counts)[some]
    values = features.astype(np.uint64)
    for band in range(BANDS):
        key = np.zeros(len(some), np.uint64)
        for i in range(band * ROWS, (band + 1) * ROWS):
            smallest = np.minimum.reduceat((values * _MULTIPLY[i] + _ADD[i]) >> np.uint64(32), starts)
            key = mixed(key ^ smallest)
        found[some, band] = key
    return found


def candidates(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pairs [P, 2] of rows of two sets of signatures that share a band, each once."""
    found = []
    for band in range(BANDS):
        order = np.argsort(first[:, band], kind="stable")
        keys = first[order, band]
        low, high = (np.searchsorted(keys, second[:, band], side) for side in ("left", "right"))
        count = np.minimum(high - low, BUCKET) * (second[:, band] != 0)
        rows = np.repeat(np.arange(len(second)), count)
        places = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
        found.append(order[places].astype(np.uint64) << np.uint64(32) | rows.astype(np.uint64))
    pairs = distinct(np.concatenate(found))
    return np.stack([pairs >> np.uint64(32), pairs & np.uint64(0xFFFFFFFF)], 1).astype(np.int64)


def jaccard(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], pairs: np.ndarray) -> np.ndarray:
    """The similarity [P] of each pair [P, 2] of sets; a side is (features uint32, counts), a set's features all unlike."""
    return np.concatenate([_jaccard(first, second, pairs[i : i + PIECE]) for i in range(0, len(pairs), PIECE)] or [np.zeros(0)])


def _jaccard(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], pairs: np.ndarray) -> np.ndarray:
    keys, sizes = zip(*(_members(*side, pairs[:, i]) for i, side in enumerate((first, second))), strict=True)
    both = np.sort(np.concatenate(keys))
    common = np.bincount((both[1:][both[1:] == both[:-1]] >> np.uint64(32)).astype(np.int64), minlength=len(pairs))
    return common / np.maximum(sizes[0] + sizes[1] - common, 1)


def _members(features: np.ndarray, counts: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(which pair, and feature, as one number; sizes) of the sets of these rows."""
    starts, sizes = (np.cumsum(counts) - counts)[rows], counts[rows]
    pair = np.repeat(np.arange(len(rows), dtype=np.uint64), sizes)
    places = np.arange(len(pair)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + np.repeat(starts, sizes)
    return pair << np.uint64(32) | features[places].astype(np.uint64), sizes

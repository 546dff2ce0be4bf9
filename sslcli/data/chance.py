"""Chance that depends on nothing but its key: the same row in the same epoch draws alike on any rank, in any batch, after any resume.

A counter-based generator (splitmix64's finaliser, Steele et al. 2014) over whole arrays.
"""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_A, _B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that scatters neighbouring numbers."""
    x = (x ^ (x >> np.uint64(30))) * _A
    x = (x ^ (x >> np.uint64(27))) * _B
    return x ^ (x >> np.uint64(31))


def keys(seed: int, epoch: int, rows: np.ndarray) -> np.ndarray:
    """One key a row, [B] uint64."""
    with np.errstate(over="ignore"):
        base = mix(mix(np.full(1, seed, np.uint64) + _GOLDEN) + np.uint64(epoch) * _GOLDEN + np.uint64(1))
        return mix(np.asarray(rows).astype(np.uint64) * _GOLDEN + base)


def bits(keys: np.ndarray, n: int, stream: int = 0) -> np.ndarray:
    """[B, n] uint64; another `stream` gives independent draws from the same keys."""
    with np.errstate(over="ignore"):
        counters = (np.arange(n, dtype=np.uint64) + np.uint64(1) + (np.uint64(stream) << np.uint64(40))) * _GOLDEN
        return mix(mix(keys[:, None] + counters[None, :]))


def uniform(keys: np.ndarray, n: int, stream: int = 0) -> np.ndarray:
    """[B, n] float32 in [0, 1)."""
    return (bits(keys, n, stream) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def integers(keys: np.ndarray, n: int, high: int, stream: int = 0) -> np.ndarray:
    """[B, n] int64 in [0, high)."""
    return ((bits(keys, n, stream) >> np.uint64(32)) * np.uint64(high) >> np.uint64(32)).astype(np.int64)


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of an epoch."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n)

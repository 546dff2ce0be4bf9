"""The position is the state: the same global batches for any number of ranks, little padding, chance keyed by row."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sslcli.core import Places
from sslcli.data import chance
from sslcli.data.store import Store, Writer, built
from sslcli.data.stream import Stream, in_order
from sslcli.data.text import few, held_out
from sslcli.errors import BadInput


def stream(count: int = 100, size: int = 8, lengths: np.ndarray | None = None, **more: object) -> Stream:
    read = lambda rows, keys: {"rows": torch.from_numpy(np.asarray(rows)), "keys": torch.from_numpy(keys.astype(np.int64))}  # noqa: E731
    return Stream(Places(count, lengths), read, size, 3, **more)


def rows(s: Stream, step: int) -> list[int]:
    return [int(r) for batch in s.batches(step) for r in batch["rows"]]


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_any_number_of_ranks_sees_the_same_global_batch(world) -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 100)
    for places in (None, lengths):
        whole = stream(lengths=places)
        for step in range(30):
            ranks = [rows(stream(lengths=places, rank=r, world=world), step) for r in range(world)]
            assert sorted(r for rank in ranks for r in rank) == sorted(whole.rows(step).tolist())


def test_an_epoch_sees_every_row_once_and_the_next_in_another_order() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 100)
    for places in (None, lengths):
        s = stream(lengths=places)
        first = [s.rows(i).tolist() for i in range(s.steps_per_epoch)]
        second = [s.rows(s.steps_per_epoch + i).tolist() for i in range(s.steps_per_epoch)]
        assert sorted(r for b in first for r in b) == sorted(r for b in second for r in b) == list(range(100)) and first != second


def test_a_step_depends_on_its_number_alone() -> None:
    a, b = stream(), stream()
    for _ in range(20):
        a.rows(0)
    assert a.rows(17).tolist() == b.rows(17).tolist() and a.rows(3).tolist() == b.rows(3).tolist()


def test_sorting_leaves_under_five_percent_of_padding() -> None:
    lengths = np.random.default_rng(1).geometric(1 / 25, 5000) + 4
    s = stream(5000, 32, lengths)
    pieces = [b["rows"].numpy() for i in range(s.steps_per_epoch) for b in s.batches(i)]
    assert sorted(np.concatenate(pieces).tolist()) == list(range(5000))
    assert 1 - lengths.sum() / sum(lengths[p].max() * len(p) for p in pieces) < 0.05
    assert len(pieces) < 1.5 * s.steps_per_epoch, "few batches are worth two forward passes"
    assert abs(np.mean([lengths[s.rows(i)].mean() for i in range(20)]) - lengths.mean()) < 0.4 * lengths.mean(), "still a mix"


@pytest.mark.parametrize("limit", [{"micro_rows": 3}, {"micro_tokens": 100}, {"micro_rows": 2, "micro_tokens": 90}])
def test_pieces_keep_within_their_limits_and_lose_nothing(limit) -> None:
    lengths = np.random.default_rng(2).integers(3, 60, 100)
    s, whole = stream(lengths=lengths, **limit), stream(lengths=lengths)
    for step in range(13):
        pieces = [b["rows"].numpy() for b in s.batches(step)]
        assert np.concatenate(pieces).tolist() == rows(whole, step)
        for piece in pieces:
            assert len(piece) <= limit.get("micro_rows", 99)
            assert len(piece) == 1 or lengths[piece].max() * len(piece) <= limit.get("micro_tokens", 10**9)


def test_a_coupled_batch_is_never_cut_and_never_incomplete() -> None:
    s = stream(30, 8, whole=True, micro_rows=2)
    assert s.steps_per_epoch == 3 and all(len(s.batches(i)) == 1 and len(rows(s, i)) == 8 for i in range(6))
    assert len(rows(stream(5, 8, whole=True), 0)) == 5


def test_a_batch_that_ranks_cannot_share_names_those_they_can() -> None:
    with pytest.raises(BadInput, match=r"trainer\.batch_size=10 is not divisible by trainer\.devices=4; use 8 or 12"):
        stream(size=10, world=4)


def test_chance_is_keyed_by_seed_epoch_and_row() -> None:
    keys = chance.keys(1, 2, np.arange(50))
    assert (chance.uniform(keys, 7)[10] == chance.uniform(chance.keys(1, 2, np.array([10])), 7)[0]).all()
    others = [chance.keys(1, 3, np.arange(50)), chance.keys(2, 2, np.arange(50)), chance.keys(1, 2, np.arange(50, 100))]
    assert len({k for ks in (keys, *others) for k in ks.tolist()}) == 200
    big = chance.uniform(chance.keys(0, 0, np.arange(20_000)), 5)
    assert abs(big.mean() - 0.5) < 0.005 and abs(big.std() - 12**-0.5) < 0.005
    assert abs(np.corrcoef(big[:, 0], big[:, 1])[0, 1]) < 0.03 and abs(np.corrcoef(big[:-1, 0], big[1:, 0])[0, 1]) < 0.03
    assert np.bincount(chance.integers(keys, 4000, 5).ravel(), minlength=5).min() > 38_000


def test_an_evaluation_reads_every_row_once_longest_first() -> None:
    lengths = np.random.default_rng(3).integers(1, 50, 60)
    for world in (1, 3):
        parts = [in_order(Places(60, lengths), 100, r, world) for r in range(world)]
        assert sorted(np.concatenate([x for p in parts for x in p]).tolist()) == list(range(60))
        assert all(lengths[b].max() * len(b) <= 100 or len(b) == 1 for p in parts for b in p)


def test_held_out_rows_are_stratified_and_seeded() -> None:
    strata = [0] * 100 + [1] * 20 + [2] * 3 + [3]
    chosen = held_out(5, strata, 0.2)
    assert np.bincount([strata[i] for i in chosen], minlength=4).tolist() == [20, 4, 1, 0]
    assert chosen.tolist() == held_out(5, strata, 0.2).tolist() != held_out(6, strata, 0.2).tolist()


def test_few_labels_are_nested() -> None:
    strata = np.random.default_rng(0).integers(0, 3, 200).tolist()
    previous: set[int] = set()
    for shots in (1, 4, 8, 16):
        chosen = set(few(7, strata, shots).tolist())
        assert np.bincount([strata[i] for i in chosen]).tolist() == [shots] * 3 and previous <= chosen
        previous = chosen


def write(folder: Path) -> None:
    writer = Writer(folder, {"ids": np.uint16, "label": np.int32}, {"ids"})
    writer.append(2, {"ids": np.array([3, 1])}, ids=np.array([1, 2, 3, 4]), label=np.array([7, 8]))
    writer.append(1, {"ids": np.array([0])}, ids=np.zeros(0), label=np.array([9]))
    writer.finish()


def test_a_store_gives_back_what_was_laid_down(tmp_path) -> None:
    write(tmp_path)
    store = Store(tmp_path)
    assert store.count == 3 and store["ids"].lengths().tolist() == [3, 1, 0]
    assert [r.tolist() for r in store["ids"].take(np.array([1, 2, 0]))] == [[4], [], [1, 2, 3]]
    assert store["label"].values.tolist() == [[7], [8], [9]]


def test_a_store_is_built_once_and_another_key_is_another_store(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SSL_CACHE", str(tmp_path / "cache"))
    calls = []

    def build(folder: Path) -> None:
        calls.append(folder)
        write(folder)

    a = built({"file": "x", "option": 1}, build)
    assert built({"option": 1, "file": "x"}, build) == a and len(calls) == 1
    assert built({"file": "x", "option": 2}, build) != a and len(calls) == 2


def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SSL_CACHE", str(tmp_path / "cache"))

    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        built({"file": "x"}, build)
    assert not [p for p in (tmp_path / "cache" / "stores").iterdir() if p.is_dir()]

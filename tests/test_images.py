"""The front door of pictures: where they come from, labels and held-out parts, nothing decoded twice."""

import csv
import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sslcli.data import decoded, image_store
from sslcli.data.decoded import in_order
from sslcli.data.digits import Digits
from sslcli.data.examples import examples_of
from sslcli.data.image_look import look, settled
from sslcli.data.image_source import Folder
from sslcli.data.labels import LabelCoder
from sslcli.data.pixels import Pixels
from sslcli.data.store import MOST_READERS
from sslcli.errors import BadInput
from tests.image_files import corpus, encoded, folder_of_classes, node, processor, scene


def labelled(train: Any, labelling: Any = "auto", size: int = 16, **keys: Any):
    return image_store.examples(node(train, **keys), LabelCoder(labelling, "image"), processor(size))


def lines(store) -> list[dict]:
    examples = examples_of(store)
    return [json.loads(examples.text(i)) for i in range(examples.count)]


def test_the_folders_of_classes_are_labels(tmp_path: Path) -> None:
    root = folder_of_classes(tmp_path / "photos")
    (root / "cat" / "deeper").mkdir()
    scene(seed=99).save(root / "cat" / "deeper" / "x.png")
    (root / "README.txt").write_text("not a picture")
    prepared = labelled(root)
    assert prepared.labels == ["cat", "dog"] and prepared.facts["columns"]["train"] == {"image": "file", "label": "folder"}
    shown = lines(prepared.stores["train"])
    assert shown[-1] == {"input": str(root / "dog" / "011.png"), "gold": "dog"} and prepared.facts["train"]["per_label"]["cat"] == 13
    for spec in (f"{root}/*/*.png", [str(root / "cat"), str(root / "dog")], f"{root}/"):
        assert labelled(spec).labels == ["cat", "dog"], spec
    assert "label" in corpus(root).stores["train"], "for watching"


def test_no_labels_is_said_with_what_to_do(tmp_path: Path) -> None:
    root = folder_of_classes(tmp_path / "photos")
    (tmp_path / "flat").mkdir()
    scene().save(tmp_path / "flat" / "a.png")
    with pytest.raises(BadInput, match=r"no labels; put the pictures of each class in a folder of their own"):
        labelled(tmp_path / "flat")
    scene().save(root / "stray.png")
    with pytest.raises(BadInput, match=r"stray.png lies in none of the folders of classes; move it into one"):
        labelled(root)
    splits = folder_of_classes(tmp_path / "data", classes=("train", "test"))
    with pytest.raises(BadInput, match=r"test, train are folders of splits; name one for each of data.train"):
        labelled(splits)
    assert "label" not in corpus(splits).stores["train"], "train and test are no classes"


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_with_its_labels_beside(end: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (50, 9, 9), dtype=np.uint8)
    pack = gzip.compress if end else bytes
    (tmp_path / f"train-images-idx3-ubyte{end}").write_bytes(pack(idx(values)))
    (tmp_path / f"train-labels-idx1-ubyte{end}").write_bytes(pack(idx(np.arange(50, dtype=np.uint8) % 5)))
    path = tmp_path / f"train-images-idx3-ubyte{end}"
    prepared = labelled(path, size=9)
    assert prepared.labels == list("01234") and lines(prepared.stores["train"])[7] == {"input": f"{path}#8", "gold": "2"}
    assert (processor(9).take(prepared.stores["train"], np.arange(50)).numpy() == values[:, None]).all()
    seen = look(node(tmp_path))
    assert (seen.size, seen.channels) == (9, 1) and seen.mean[0] == pytest.approx(values.mean() / 255, abs=1e-6)
    path.write_bytes(pack(idx(values)[:-20]))
    with pytest.raises(BadInput, match=r"its header says 50 items, it holds 49 \(cut off\?\)"):
        corpus(path, on_bad_record="skip")
    (tmp_path / f"train-labels-idx1-ubyte{end}").write_bytes(pack(idx(np.zeros(49, np.uint8))))
    with pytest.raises(BadInput, match=r"holds 49 labels, but .* 50 pictures"):
        labelled(path)


def test_parquet_with_structs_bytes_and_paths(tmp_path: Path) -> None:
    scene(seed=3).save(tmp_path / "c.png")
    data = [encoded(scene(seed=i), "JPEG") for i in range(2)]
    forms = {
        "struct": pa.array([{"bytes": d, "path": f"{i}.jpg"} for i, d in enumerate(data)]),
        "binary": pa.array(data, pa.binary()),
        "path": pa.array(["c.png", "c.png"]),
    }
    for name, column in forms.items():
        pq.write_table(pa.table({"img": column, "other": [1.5, 2.5], "label": [[0, 3], [3]]}), tmp_path / f"{name}.parquet")
        prepared = labelled(tmp_path / f"{name}.parquet")
        assert prepared.labels == ["0", "3"] and prepared.facts["labelling"] == "multi"
        assert prepared.stores["train"]["label"].values.tolist() == [[1, 1], [0, 1]]
        expected = str(tmp_path / "c.png") if name == "path" else f"{tmp_path}/{name}.parquet#1"
        assert lines(prepared.stores["train"])[0] == {"input": expected, "gold": ["0", "3"]}


def test_lists_with_relative_paths(tmp_path: Path) -> None:
    root = folder_of_classes(tmp_path / "photos", each=3)
    names = sorted(p.relative_to(root) for p in root.rglob("*.png"))
    with (root / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("filename", "label"), *((n, n.parent.name) for n in names[:-1])])
    prepared = labelled(root / "list.csv")
    assert prepared.labels == ["cat", "dog"] and prepared.facts["train"]["counted"] == {"unlisted": 1}, "I14: on disk, not in the list"
    assert lines(prepared.stores["train"])[0]["input"] == str(root / names[0])
    (root / "list.tsv").write_text("cat\tdog\tpath\n" + "".join(f"{int('cat' in str(n))}\t1\t{n}\n" for n in names))
    prepared = labelled(root / "list.tsv", columns={"image": None, "label": ["cat", "dog"]})
    assert prepared.facts["labelling"] == "multi" and lines(prepared.stores["train"])[0]["gold"] == ["cat", "dog"]
    (root / "list.jsonl").write_text("".join(json.dumps({"image": str(n), "label": n.parent.name}) + "\n" for n in names))
    assert labelled(root / "list.jsonl").labels == ["cat", "dog"]
    assert "unlisted" not in corpus(root / "list.jsonl").facts["train"]["counted"]
    with pytest.raises(BadInput, match=r"list\.tsv: no column mouse; found cat, dog, path"):
        labelled(root / "list.tsv", columns={"image": None, "label": ["mouse"]})


def test_a_data_set_laid_out_for_the_hub(tmp_path: Path) -> None:
    root = folder_of_classes(tmp_path / "photos", each=2)
    prepared = labelled(f"hf:{root}")
    assert prepared.labels == ["cat", "dog"] and prepared.facts["train"]["examples"] == 4


def test_digits_come_with_their_own_test(tmp_path: Path) -> None:
    train, test = Digits("data.train", "digits"), Digits("data.test", "digits:test")
    assert [len(d.fingerprint()) and d.fingerprint()[0]["pictures"] for d in (train, test)] == [1438, 359]
    both = [np.array([p.image for p in d]) for d in (train, test)]  # type: ignore[union-attr]
    assert abs(np.bincount([p.label for p in test]).max() / 359 - 0.1) < 0.01, "stratified"  # type: ignore[union-attr]
    assert both[0].shape == (1438, 8, 8) and both[0].max() == 255
    prepared = labelled("digits", size=8, valid_fraction=0.05)
    assert prepared.labels == list("0123456789") and [prepared.stores[s].count for s in ("train", "valid", "test")] == [1368, 70, 359]
    seen = look(node("digits"))
    assert (seen.size, seen.channels) == (8, 1)
    with pytest.raises(BadInput, match="no such part"):
        Digits("data.train", "digits:all")


# splits


def test_held_out_and_few(tmp_path: Path) -> None:
    root = folder_of_classes(tmp_path / "photos", each=40, classes=("a", "b", "c"))
    prepared = labelled(root, valid_fraction=0.25)
    train, valid = (prepared.stores[s]["place"].values[:, 0] for s in ("train", "valid"))
    assert sorted([*train, *valid]) == list(range(120)) and prepared.facts["valid"]["per_label"] == {"a": 10, "b": 10, "c": 10}
    places = {n: set(labelled(root, shots=n).stores["train"]["place"].values[:, 0].tolist()) for n in (2, 4)}
    assert len(places[2]) == 6 and places[2] < places[4], "nested"
    unlabelled = corpus(root, valid_fraction=0.25)
    parts = [set(unlabelled.stores[s]["place"].values[:, 0].tolist()) for s in ("train", "valid")]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 120 and 15 < len(parts[1]) < 45
    assert unlabelled.stores["train"].meta["pixels"] == prepared.stores["train"].meta["pixels"], "decoded once for both"
    with pytest.raises(BadInput, match=r"data\.shots: means nothing for an unlabelled corpus"):
        corpus(root, shots=1)


def test_labels_that_training_has_not(tmp_path: Path) -> None:
    folder_of_classes(tmp_path / "train", each=3)
    folder_of_classes(tmp_path / "test", each=2, classes=("cat", "fox"))
    with pytest.raises(BadInput, match=r"fox.*: the label fox is not in the training data"):
        labelled(tmp_path / "train", test=str(tmp_path / "test"))
    data = node(tmp_path / "train", test=str(tmp_path / "test"))
    prepared = image_store.examples(data, LabelCoder("single", "image", unseen=True), processor())
    assert prepared.stores["test"]["label"].values[:, 0].tolist() == [0, 0, -1, -1]
    assert [x["gold"] for x in lines(prepared.stores["test"])] == ["cat", "cat", "fox", "fox"]


# once, in bounded memory


def test_a_second_run_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_of_classes(tmp_path / "photos")
    first = corpus(root)
    look(node(root))
    monkeypatch.setattr(decoded, "decode_one", None)
    monkeypatch.setattr("sslcli.data.image_look.decode_one", None)
    again = corpus(root)
    assert {s: x.path for s, x in again.stores.items()} == {s: x.path for s, x in first.stores.items()} and again.facts == first.facts
    look(node(root))
    monkeypatch.undo()
    scene(seed=7).save(root / "cat" / "000.png")
    changed = corpus(root)
    assert changed.stores["train"].path != first.stores["train"].path
    assert (changed.facts["files"]["train"][0]["sha256"]) != first.facts["files"]["train"][0]["sha256"]


def test_what_is_read_ahead_is_bounded() -> None:
    """A slow consumer does not make the pictures of a whole data set wait in memory."""
    pulled = 0

    def source():
        nonlocal pulled
        for i in range(5000):
            pulled += 1
            yield i

    ahead = 0
    for done, block in enumerate(in_order(source(), lambda block: block, 4), 1):
        ahead = max(ahead, pulled - 4 * done)
        assert block == list(range(4 * done - 4, 4 * done)), "in order"
    assert pulled == 5000 and ahead <= 4 * (2 * MOST_READERS + 2)


def test_the_working_size() -> None:
    assert settled([28] * 9) == 28 and settled([64] * 3) == 64, "small ones that are alike: as they are"
    assert settled([105] * 5) == 96 and settled([480] * 5) == 128 and settled([20, 30, 40]) == 32 and settled([70, 70, 20]) == 64


def test_a_batch_is_slices_and_draws(tmp_path: Path) -> None:
    class Half:
        draws = 3

        def views(self, pixels: torch.Tensor, draws: torch.Tensor, mirror: bool) -> list[torch.Tensor]:
            return [pixels.float() / 255 * draws[:, :1, None, None]] * 2

    store = corpus(folder_of_classes(tmp_path / "photos")).stores["train"]
    pixels = Pixels(16, 3, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7], True, Half())
    rows, keys = np.array([3, 1]), np.array([11, 12], np.uint64)
    batch, alone = pixels.read(store, rows, keys), pixels.read(store, rows[1:], keys[1:])
    assert batch["pixels"].dtype == torch.uint8 and batch["draws"].shape == (2, 3) and float(batch["weight"]) == 2
    assert torch.equal(batch["draws"][1:], alone["draws"]) and torch.equal(batch["pixels"][1:], alone["pixels"])
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (pixels.mean, pixels.std))
    first, second = pixels.views(batch)
    assert torch.allclose(first, (batch["pixels"] / 255 * batch["draws"][:, :1, None, None] - mean) / std, atol=1e-5)
    assert torch.equal(first, second)
    assert torch.allclose(pixels.plain(batch["pixels"]), (batch["pixels"] / 255 - mean) / std, atol=1e-5)


def test_a_copy_of_a_folder_is_the_same_data_under_its_own_name(tmp_path: Path) -> None:
    a, b = (folder_of_classes(tmp_path / name / "photos") for name in ("a", "b"))
    prints = [Folder([(str(root), [])]).fingerprint()[0] for root in (a, b)]
    assert prints[0] == prints[1], "a run goes on where its data was moved to"
    for root in (a, b):
        assert lines(labelled(root).stores["train"])[0]["input"] == str(root / "cat" / "000.png")
    assert labelled(f"{b}/").stores["train"].path == labelled(b).stores["train"].path

"""The pictures of a run: they open, have the size that their cells make, and show what they say."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from sslcli.data.pixels import Pixels
from sslcli.data.store import Store
from sslcli.errors import BadInput
from sslcli.report import pictures
from sslcli.report.album import album
from sslcli.report.sheet import BLUE, FRAME, GREEN, LARGE, RED, Cell, fitted, picture, sheet, shortened
from tests.splits import Small, split

NAMES = [str(i) for i in range(10)]


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, list[str]]:
    found = load_digits()
    return (found.images / 16 * 255).astype(np.uint8)[:, None], [str(t) for t in found.target]


@pytest.fixture(scope="module")
def store(digits, tmp_path_factory: pytest.TempPathFactory) -> Store:
    images, gold = digits
    return split(tmp_path_factory.mktemp("splits") / "test", images[:200], gold[:200], NAMES)


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def count(drawn: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((drawn == colour).all(-1).sum())


def frames(drawn: np.ndarray, colour: tuple[int, int, int], side: int) -> int:
    """How many frames of this colour there are, by the rows that are as long as their upper edge."""
    length = side + 2 * FRAME
    runs = np.diff(np.pad((drawn == colour).all(-1).astype(int), ((0, 0), (1, 1))), axis=1)
    found = 0
    for row in runs:
        starts, ends = np.flatnonzero(row == 1), np.flatnonzero(row == -1)
        found += int(((ends - starts) == length).sum())
    return found // (2 * FRAME)


def test_small_pictures_keep_their_pixels_and_large_ones_come_down() -> None:
    small = np.arange(64, dtype=np.uint8).reshape(1, 8, 8) * 4
    drawn = np.asarray(picture(small))
    assert drawn.shape == (80, 80, 3) and (drawn[::10, ::10, 0] == small[0]).all() and (drawn[..., 0] == drawn[..., 2]).all()
    assert picture(np.zeros((3, 300, 300), np.uint8)).size == (LARGE, LARGE)
    colours = np.zeros((3, 4, 4), np.float32)
    colours[1] = 1.7  # beyond what can be shown
    assert picture(colours).getpixel((0, 0)) == (0, 255, 0)
    assert picture(np.zeros((5, 6, 6), np.uint8)).mode == "RGB"


def test_text_never_leaves_its_room() -> None:
    assert shortened("horse", 9) == "horse" and shortened("a very long name 17", 9) == "a very…17" and len(shortened("x" * 50, 12)) == 13
    assert fitted("ab", 500) == "ab" and len(fitted("a name that is much too long to be shown", 90)) < 20
    with_text = sheet([[Cell(picture(np.full((1, 8, 8), 255, np.uint8)), ("w" * 60, "v" * 60))] * 2], "t")
    drawn = np.asarray(with_text)
    between = drawn[-60:, 20 + 80 + 2 * FRAME + 6 : 20 + 80 + 2 * FRAME + 8]
    assert (between == 255).all(), "captions of neighbours do not touch"


def test_a_page_of_neighbours_frames_what_is_right_and_wrong(tmp_path: Path, digits) -> None:
    images, _ = digits
    labels = [["0", "0", "1"], ["2", "1", "1"]]
    pictures.neighbours(tmp_path / "n.png", images[:2], ["0", "1"], [images[2:5], images[5:8]], labels, [[0.9, 0.8, 0.7]] * 2)
    drawn = opened(tmp_path / "n.png")
    assert [frames(drawn, c, 80) for c in (BLUE, GREEN, RED)] == [2, 4, 2]
    pictures.neighbours(tmp_path / "u.png", images[:2], None, [images[2:5], images[5:8]], None, [[0.9, 0.8, 0.7]] * 2)
    drawn = opened(tmp_path / "u.png")
    assert [frames(drawn, c, 80) for c in (BLUE, GREEN, RED)] == [2, 0, 0], "without labels nothing is right or wrong"


def test_a_page_of_reconstructions_has_three_rows(tmp_path: Path) -> None:
    parts = [torch.full((4, 1, 16, 16), value) for value in (0.2, 0.5, 0.8)]
    pictures.reconstructions(tmp_path / "r.png", *parts)
    drawn = opened(tmp_path / "r.png")
    for value in (51, 128, 204):
        assert count(drawn, (value, value, value)) >= 4 * 80 * 80
    rows = [np.flatnonzero((drawn == v).all(-1).sum(1) >= 4 * 80) for v in (51, 128, 204)]
    assert rows[0].max() < rows[1].min() and rows[1].max() < rows[2].min(), "original, masked, reconstruction, from above"


def test_a_confusion_matrix_is_dark_where_pictures_are(tmp_path: Path) -> None:
    gold, said = ["a"] * 9 + ["b"] * 9, ["a"] * 9 + ["a"] * 8 + ["b"]
    pictures.confusion(tmp_path / "c.png", gold, said, ["a", "b"])
    drawn = opened(tmp_path / "c.png").astype(int).sum(-1)
    pictures.confusion(tmp_path / "d.png", gold, gold, ["a", "b"])
    right = opened(tmp_path / "d.png").astype(int).sum(-1)
    assert drawn.shape == right.shape
    darker = np.argwhere(drawn < right - 200)
    assert len(darker) > 500 and darker[:, 1].mean() < np.argwhere(right < drawn - 200)[:, 1].mean(), "of row b, column a instead of b"
    names = [f"class {i}" for i in range(80)]
    pictures.confusion(tmp_path / "e.png", names, names[1:] + names[:1], names)
    assert opened(tmp_path / "e.png").shape[0] < 2200, "many classes: those that are confused most"


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_map_tells_clusters_apart(tmp_path: Path, method) -> None:
    random = np.random.default_rng(0)
    centers = np.eye(3).repeat(40, 0)
    names = ["one", "two", "three"]
    pictures.embedding_map(tmp_path / "m.png", centers + random.normal(0, 0.05, (120, 3)), np.repeat(names, 40).tolist(), method)
    drawn = opened(tmp_path / "m.png")
    assert drawn.shape[1] > drawn.shape[0] > 400
    kinds = {tuple(c) for c in drawn.reshape(-1, 3) if int(max(c)) - int(min(c)) > 60}
    assert len(kinds) > 3, "colours"
    many = [f"label {i % 40}" for i in range(120)]
    pictures.embedding_map(tmp_path / "many.png", centers + random.normal(0, 0.5, (120, 3)), many, method)
    assert opened(tmp_path / "many.png").shape == drawn.shape


def test_without_matplotlib_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits, store) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BadInput, match=r"pip install 'sslcli\[report\]'"):
        pictures.confusion(tmp_path / "c.png", ["a"], ["a"], ["a"])
    drawn, missing = album(tmp_path, goal(), Small().eval(), store)
    assert drawn == ["neighbours.png"] and missing is not None and missing.startswith("map.png: not drawn: matplotlib")


def goal(**more: Any) -> Any:
    return type("Goal", (), {"processor": Pixels(8, 1, [0.3], [0.37], False), **more})()


def test_the_album_of_a_pretraining_run(tmp_path: Path, store) -> None:
    def reconstruct(_: Any, model: Any, batch: Any) -> tuple[torch.Tensor, ...]:
        whole = batch["pixels"].float() / 255
        return whole, whole * 0.5, whole

    def read(self: Any, store: Store, rows: np.ndarray, keys: np.ndarray) -> Any:
        return self.processor.read(store, rows, keys)

    drawn, missing = album(tmp_path, goal(reconstruct=reconstruct, read=read), Small().eval(), store)
    assert drawn == ["reconstruction.png", "neighbours.png", "map.png"] and missing is None
    shown = opened(tmp_path / "neighbours.png")
    assert frames(shown, BLUE, 80) == 10 and frames(shown, GREEN, 80) + frames(shown, RED, 80) == 80


def test_the_album_of_a_classifier(tmp_path: Path, digits, store) -> None:
    gold = digits[1][:200]
    said = ["7" if i % 10 == 0 else g for i, g in enumerate(gold)]
    lines = [
        {"id": i, "gold": g, "prediction": s, "probabilities": {n: 0.9 if n == s else 0.01 for n in NAMES}}
        for i, (g, s) in enumerate(zip(gold, said, strict=True))
    ]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn, missing = album(tmp_path, goal(), Small().eval(), store)
    assert drawn == ["errors.png", "confusion.png"] and missing is None
    wrong = [i for i in range(200) if gold[i] != said[i]]
    shown = opened(tmp_path / "errors.png")
    first = np.asarray(picture(digits[0][wrong[0]]))
    places = [(y, x) for y in range(40, 110) for x in range(10, 40) if (shown[y : y + 80, x : x + 80] == first).all()]
    assert len(places) == 1, "the first picture is that of the first error"
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps({**line, "prediction": line["gold"]}) + "\n" for line in lines))
    assert album(tmp_path, goal(), Small().eval(), store)[0] == ["confusion.png"], "no errors, no page of them"


def test_the_album_of_a_search(tmp_path: Path, digits, store) -> None:
    gold = digits[1][:200]
    near = [[{"id": (i + j) % 200, "gold": gold[(i + j) % 200], "similarity": 1 - j / 20} for j in range(1, 11)] for i in range(200)]
    lines = [{"id": i, "gold": gold[i], "prediction": near[i][0]["gold"], "nearest": near[i]} for i in range(200)]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn, _ = album(tmp_path, goal(), Small().eval(), store)
    assert drawn == ["results.png", "errors.png"]
    assert frames(opened(tmp_path / "results.png"), BLUE, 80) == 10, "a query a label"

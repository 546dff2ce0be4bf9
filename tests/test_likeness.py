"""Pictures that are there again, re-encoded, resized or cropped, are found; a run says what its score owes to rows that it trained on."""

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps

from sslcli.evidence import likeness
from tests.conftest import TINY, rows, write_jsonl


def photo(seed: int, side: int = 96) -> Image.Image:
    """Blobs and edges in colour: smooth as photographs are, no two alike."""
    chance = np.random.default_rng(seed)
    coarse = chance.integers(0, 255, (7, 7, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    patch = Image.fromarray(chance.integers(0, 255, (3, 3, 3), np.uint8)).resize((side // 3, side // 3), Image.Resampling.NEAREST)
    picture.paste(patch, tuple(chance.integers(0, side // 2, 2).tolist()))
    return picture.filter(ImageFilter.GaussianBlur(0.6))


def reencoded(picture: Image.Image, chance: random.Random) -> Image.Image:
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=chance.randint(40, 80))
    return Image.open(held).convert("RGB")


def resized(picture: Image.Image, chance: random.Random) -> Image.Image:
    side = chance.choice((48, 64, 150, 200))
    return picture.resize((side, side), Image.Resampling.BILINEAR)


def cropped(picture: Image.Image, chance: random.Random) -> Image.Image:
    side = picture.width
    keep = round(0.95 * side)
    x, y = chance.randint(0, side - keep), chance.randint(0, side - keep)
    return picture.crop((x, y, x + keep, y + keep)).resize((side, side), Image.Resampling.BICUBIC)


def looks(pictures: list[Image.Image]) -> likeness.Looks:
    held = torch.cat([likeness.grey(torch.from_numpy(np.array(p)).permute(2, 0, 1)[None]) for p in pictures])
    return likeness.Looks.of(len(held), lambda rows: held[rows])


@pytest.mark.parametrize("how", [lambda p, c: p, reencoded, resized, cropped])
def test_pictures_shown_again_are_found(how: Callable) -> None:
    chance, train = random.Random(0), [photo(i) for i in range(300)]
    rows_ = chance.sample(range(300), 100)
    again = [how(train[i], chance) for i in rows_] + [photo(1000 + i) for i in range(100)]
    pairs = likeness.between(looks(train), looks(again))
    right = [p for p in pairs if p.second < 100 and p.first == rows_[p.second]]
    assert len(right) >= 95 and not [p for p in pairs if p.second >= 100]
    if how not in (reencoded, resized, cropped):
        assert len(right) == 100 and all(p.kind == "exact" for p in right)


def test_where_all_pictures_look_alike_more_is_asked() -> None:
    base = photo(0)
    noise = np.random.default_rng(1)

    def like(seed: int) -> Image.Image:
        """One picture with a little of another."""
        return Image.blend(base, Image.fromarray(noise.integers(0, 255, (96, 96, 3), np.uint8)), 0.3)

    train, own = looks([like(i) for i in range(200)]), looks([like(i) for i in range(100)])
    assert likeness.enough(train) <= likeness.enough(looks([photo(i) for i in range(100)])) == likeness.UNLIKE / likeness.TIMES
    assert len(likeness.between(train, own)) <= 1
    again = [like(1000 + i) for i in range(40)]
    pairs = likeness.between(looks([like(i) for i in range(160)] + again), looks([reencoded(p, random.Random(0)) for p in again]))
    assert len([p for p in pairs if p.first == 160 + p.second]) >= 38, "each is told from the others all the same"
    assert not likeness.between(looks([base]), likeness.Looks.of(0, lambda r: torch.zeros(0, 64, 64)))


def test_pictures_that_are_there_many_times_and_pictures_of_nothing() -> None:
    """More copies than candidates; a blank page is equal to another, and like nothing else; a negative is no copy."""
    chance, many = random.Random(1), [photo(i) for i in range(250)]
    train = [*many, *([reencoded(many[0], chance) for _ in range(9)]), Image.new("RGB", (96, 96), "white")]
    test = [reencoded(many[0], chance), Image.new("RGB", (96, 96), "white"), Image.new("RGB", (96, 96), "grey"), ImageOps.invert(many[3])]
    pairs = likeness.between(looks(train), looks(test))
    assert [(p.second, p.kind) for p in pairs] == [(0, "near"), (1, "exact")] and pairs[1].first == 259


def test_a_set_of_one() -> None:
    pairs = likeness.between(looks([photo(0)]), looks([cropped(photo(0), random.Random(0)), photo(1)]))
    assert [(p.first, p.second) for p in pairs] == [(0, 0)] and pairs[0].similarity > 0.98


def test_pictures_by_the_command(ssl, tmp_path: Path) -> None:
    for part, seeds in (("train", range(30)), ("test", range(25, 40))):
        (tmp_path / part).mkdir()
        for i in seeds:
            photo(i).save(tmp_path / part / f"{i}.png" if part == "train" else tmp_path / part / f"{i}.jpg")
    done = ssl("leaks", "data.kind=image", "data.train=train", "data.test=test", "out=found")
    assert done.code == 0, done.err
    assert done.result["overlap"][0]["rows"] == 5 and "5 of 15 rows of test (33.3%) stand in train as well" in done.err
    with (tmp_path / "found" / "pairs.csv").open(newline="") as file:
        assert {Path(r["place"]).stem == Path(r["in_place"]).stem for r in csv.DictReader(file)} == {True}


def test_texts_by_the_command(ssl, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": f"=1+1 {r['text']}"} for r in rows(40)])
    write_jsonl(tmp_path / "test.jsonl", [{"text": f"=1+1 {r['text'].upper()}\n"} for r in rows(40)[30:]] + [{"text": "nothing like it"}])
    done = ssl("leaks", "data.train=train.jsonl", "data.test=test.jsonl")
    assert done.code == 0 and json.loads((tmp_path / "leaks" / "leaks.json").read_text()) == done.result
    assert done.result["overlap"] == [{"part": "test", "in": "train", "exact": 10, "near": 0, "piece": 0, "rows": 10, "share": 0.909091}]
    with (tmp_path / "leaks" / "pairs.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert (first["row"], first["in_row"], first["place"]) == ("1", "31", "test.jsonl:1") and first["text"][:2] == "'="
    assert ssl("leaks", "data.train=train.jsonl", "data.test=test.jsonl").code == 0  # its own folder is written over
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("")
    for words, what in (
        (("data.train=train.jsonl",), "two parts"),
        (("data.train=train.jsonl", "data.test=test.jsonl", "out=mine"), "out=mine"),
    ):
        assert (refused := ssl("leaks", *words)).code == 2 and what in refused.err
    write_jsonl(tmp_path / "other.jsonl", [{"text": "a wholly different thing to say"}])
    clean = ssl("leaks", "data.train=train.jsonl", "data.test=other.jsonl", "out=none", "--dry-run")
    assert "no row of test was found in train" in clean.err and not (tmp_path / "none").exists()


def test_a_run_says_what_its_score_owes_to_rows_that_it_trained_on(ssl, tmp_path: Path, labelled: Path) -> None:
    found = [json.loads(line) for line in labelled.read_text().splitlines()]
    write_jsonl(
        tmp_path / "test.jsonl", [*found[:20], *({"text": f"quite another remark about {i * 13} {i}", "label": "dog"} for i in range(10))]
    )
    words = ("finetune", *TINY, f"data.train={labelled}", "data.test=test.jsonl", "trainer.steps=4", "data.max_length=32")
    done = ssl(*words, "run.dir=run")
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["leaks"]["of"] == "test" and metrics["leaks"]["rows"] == 20  # a few of them nearly, where their own row was held out
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    right = [r["gold"] == r["prediction"] for r in lines if r["id"] >= 20]
    assert metrics["test_without_leaks"]["accuracy"] == pytest.approx(np.mean(right))
    assert "20 rows of test also stand in the training data; accuracy without them" in done.err
    again = ssl("evaluate", "run=run", "data.test=test.jsonl", "out=again").result
    assert again["leaks"] == metrics["leaks"] and again["test_without_leaks"]["accuracy"] == metrics["test_without_leaks"]["accuracy"]
    assert "leaks" not in ssl("evaluate", "run=run", "data.test=test.jsonl", "out=off", "leaks=false").result
    gone = labelled.rename(tmp_path / "moved.jsonl")
    lost = ssl("evaluate", "run=run", "data.test=test.jsonl", "out=lost")
    assert lost.code == 0 and "leaks" not in lost.result and "leaks  not looked for: the training data cannot be read" in lost.err
    gone.rename(labelled)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "in the training data" in page and "Content-Security-Policy" in page
    assert (tmp_path / "run" / "model" / "README.md").read_text().startswith("---\nlibrary_name: transformers\npipeline_tag: text-class")

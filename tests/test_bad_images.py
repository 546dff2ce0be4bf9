"""Every kind of bad picture of the product's reliability plan (I1 to I14) ends in one line: file, record, what is wrong, what to do;
before anything is trained, nothing half made."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sslcli.data import picture
from sslcli.data.picture import Form, Refused, decode
from sslcli.data.store import cache
from sslcli.errors import BadInput, Refusal, Unsafe
from tests.image_files import bomb, corpus, encoded, flipped_png, png_with, scene, several, with_text

HTML = b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>"
SVG = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>'
WHOLE = {kind: encoded(scene(), kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")}

FILES: list[tuple[str, str, bytes, str, type[Refusal]]] = [
    ("I1 0 bytes", "b.png", b"", r"0 bytes", BadInput),
    *[
        (f"I2 truncated {k}", f"b.{k.lower()}", WHOLE[k][:cut], r"the picture is cut off; fetch it again", BadInput)
        for k in WHOLE
        for cut in (len(WHOLE[k]) // 2, -10 if k != "TIFF" else -400)
    ],
    ("I2 a header alone", "b.jpg", WHOLE["JPEG"][:12], r"the picture is cut off", BadInput),
    ("I2 zeros", "b.jpg", bytes(5000), r"holds zero bytes only", BadInput),
    ("I3 HTML", "b.jpg", HTML, r"is HTML \(the error page of a download\?\), not a picture", BadInput),
    ("I3 text", "b.jpg", b"access denied\n", r"is text, not a picture", BadInput),
    ("K15 an archive", "b.jpg", b"PK\x03\x04" + bytes(60), r"is an archive, which is never unpacked here", BadInput),
    ("I3 a pointer of LFS", "b.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", r"run git lfs pull", BadInput),
    ("I3 noise", "b.jpg", bytes(range(128, 256)), r"is not a picture of a known kind", BadInput),
    ("I5 a bomb", "b.png", bomb(), r"14000 x 14000 pixels are more than data\.max_pixels=50,000,000 \(a decompression bomb\?\)", BadInput),
    ("I6 a huge text", "b.png", with_text(), r"a text or colour profile of more than 1 MB", BadInput),
    ("I6 a huge profile", "b.png", png_with(b"iCCP", b"x" * 2_000_000), r"a text or colour profile of more than 1 MB", BadInput),
    *[(f"I7 frames in {k}", f"b.{k.lower()}", several(k), r"data\.frames=first", BadInput) for k in ("GIF", "TIFF", "WEBP", "PNG")],
    ("I8 32 bits", "b.tif", encoded(scene().convert("F"), "TIFF"), r"32 bits a pixel.*convert it to 8 or 16 bits", BadInput),
    ("I9 1 x 1", "b.png", encoded(scene(1, 1), "PNG"), r"1 x 1 pixels: a side is under data\.min_side=8", BadInput),
    ("I9 1 x 10,000", "b.png", encoded(scene(1, 10_000), "PNG"), r"1 x 10000 pixels: a side is under data\.min_side=8", BadInput),
    ("I11 a wrong checksum", "b.png", flipped_png(), r"the checksum of its IDAT chunk at byte 33 is wrong", BadInput),
    ("I12 Photoshop", "b.jpg", b"8BPS\0\1" + bytes(99), r"is a Photoshop file; only JPEG, PNG, WebP, BMP, TIFF and GIF are opened", Unsafe),
    ("I12 FITS", "b.png", b"SIMPLE  =                    T", r"is FITS; only", Unsafe),
    ("I12 PostScript", "b.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n", r"is PostScript; only", Unsafe),
    ("I12 SVG", "b.svg", SVG, r"is an SVG drawing; only", Unsafe),
    ("I12 GD", "b.gd", b"\xff\xfe\0\2\0\2" + bytes(20), r"is a GD picture; only", Unsafe),
    ("I12 HEIC", "b.heic", b"\0\0\0\x18ftypheic\0\0\0\0", r"is HEIC; only .* convert it", Unsafe),
]


def refused(make: Callable[[], Any]) -> tuple[type, list[str]]:
    stores = set((cache() / "stores").glob("*")) if (cache() / "stores").exists() else set()
    with pytest.raises(Refusal) as caught:
        make()
    left = {p for p in (cache() / "stores").glob("*") if p.suffix != ".lock"} - stores
    assert not left, "nothing half made"
    return caught.type, str(caught.value).splitlines()


@pytest.mark.parametrize(("name", "file", "content", "expected", "kind"), FILES, ids=[f[0] for f in FILES])
def test_one_line_says_it(name: str, file: str, content: bytes, expected: str, kind: type[Refusal], tmp_path: Path) -> None:
    for i in range(2):
        scene(seed=i).save(tmp_path / f"a{i}.png")
    (tmp_path / file).write_bytes(content)
    raised, said = refused(lambda: corpus(tmp_path))
    assert raised is kind and re.search(rf"^{re.escape(str(tmp_path / file))}: .*{expected}", said[0]), said
    assert said[1] == "checked 3 records: 2 good, 1 bad; mend them, or leave them out with data.on_bad_record=skip" and len(said) == 2
    assert all(line.isprintable() for line in said) and len(said[0]) < 400
    prepared = corpus(tmp_path, on_bad_record="skip")
    assert prepared.bad[0]["file"] == str(tmp_path / file) and sum(s.count for s in prepared.stores.values()) == 2
    raised, again = refused(lambda: corpus(tmp_path))
    assert raised is kind and again == said, "what was prepared with skip does not pass with fail"


def test_a_run_ends_before_its_first_step(ssl, tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / "photos").mkdir(exist_ok=True)
        scene(seed=i).save(tmp_path / "photos" / f"{i}.png")
    for content, code, reason in ((b"", 2, "0 bytes"), (SVG, 10, "is an SVG drawing")):
        (tmp_path / "photos" / "bad.png").write_bytes(content)
        done = ssl("pretrain", "data=images", "data.train=photos", "model=vit_micro", "run.dir=run")
        assert done.code == code and f"photos/bad.png: {reason}" in done.err and "Traceback" not in done.err, done.err
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_simplejpeg_or_not_the_same_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    form = Form(16, 3, "crop", 50_000_000, 8, "one")
    for without in (False, True):
        with monkeypatch.context() as patch:
            if without:
                patch.setattr(picture, "simplejpeg", None)
            for cut in range(20, len(WHOLE[kind]), 97):
                with pytest.raises(Refused, match=r"cut off|is not a|checksum"):
                    decode(WHOLE[kind][:cut], form)


@pytest.mark.filterwarnings("ignore")
def test_bytes_that_were_changed_never_crash() -> None:
    """T10: 1,000 fuzzed files; each is decoded or refused in a sentence."""
    random = np.random.default_rng(0)
    form = Form(16, 3, "crop", 1_000_000, 8, "first")
    refusals = 0
    for i in range(1000):
        data = bytearray(list(WHOLE.values())[i % 6])
        for place in random.integers(0, min(len(data), 400 if i % 2 else len(data)), random.integers(1, 9)):
            data[place] = random.integers(0, 256)
        try:
            assert decode(bytes(data), form, "x.png").pixels.shape == (3, 16, 16)
        except Refused as error:
            refusals += 1
            assert error.reason and "\n" not in error.reason and "Traceback" not in error.reason
    assert 300 < refusals < 1000


def test_a_wrong_suffix_is_accepted_and_counted(tmp_path: Path) -> None:
    """I4"""
    for i in range(3):
        (tmp_path / f"a{i}.png").write_bytes(encoded(scene(seed=i), "JPEG" if i else "PNG"))
    (tmp_path / "nameless").write_bytes(WHOLE["PNG"])
    prepared = corpus(tmp_path)
    assert prepared.facts["train"]["counted"] == {"wrong_suffix": 2} and sum(s.count for s in prepared.stores.values()) == 4


def test_the_first_frame_if_asked(tmp_path: Path) -> None:
    """I7"""
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        (tmp_path / f"{kind}.x").write_bytes(b"")
        (tmp_path / f"{kind}.{kind.lower()}").write_bytes(several(kind))
    prepared = corpus(tmp_path, frames="first")
    assert prepared.facts["train"]["counted"]["first_frame"] == 4


def test_odd_entries_of_a_folder_never_block(tmp_path: Path) -> None:
    """I13"""
    outside = tmp_path / "outside"
    outside.mkdir()
    scene().save(outside / "secret.png")
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(20):
        scene(seed=i).save(root / f"a{i:02d}.png")
    (root / "broken.png").symlink_to(root / "nothing.png")
    (root / "leads_out.png").symlink_to(outside / "secret.png")
    (root / "within.png").symlink_to(root / "a00.png")
    (root / "linked").symlink_to(outside)
    (root / "folder.png").mkdir()
    (root / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe.png")
    _, said = refused(lambda: corpus(root))
    expected = {
        "broken.png": "is a link to nothing",
        "leads_out.png": "is a link that leads out of the folder and is not followed",
        "zero.png": "is a link that leads out of the folder",
        "linked": "is a link to a folder and is not followed",
        "folder.png": "is a folder named as a picture",
        "pipe.png": "is not a regular file",
    }
    for name, reason in expected.items():
        assert any(line.startswith(f"{root / name}: {reason}") for line in said), (name, said)
    assert said[-1].startswith("checked 27 records: 21 good, 6 bad")
    prepared = corpus(root, on_bad_record="skip")
    assert len(prepared.bad) == 6 and sum(s.count for s in prepared.stores.values()) == 21


def test_listed_and_not_there(tmp_path: Path) -> None:
    """I14; and what else a list may say."""
    scene().save(tmp_path / "a.png")
    scene().save(tmp_path / "unlisted.png")
    (tmp_path / "b.png").write_bytes(HTML)
    os.mkfifo(tmp_path / "pipe")
    wrong = ["gone.png", "b.png", "https://x.org/c.png", "/dev/zero", "pipe", ".", "a\\u0000.png"]
    (tmp_path / "list.jsonl").write_text(
        "".join(f'{{"image": "{p}"}}\n' for p in ["a.png", "a.png", *wrong]) + '{"image": 7}\n{"image": ""}\n'
    )
    _, said = refused(lambda: corpus(tmp_path / "list.jsonl"))
    assert said[-1].startswith("checked 11 records: 2 good, 9 bad")
    told = "\n".join(said)
    for line, reason in [
        (3, r"\S+/gone\.png is not there; mend the path or remove the record"),
        (4, r"\S+/b\.png is HTML"),
        (5, r"https://x\.org/c\.png is an address, not a file"),
        (6, r"/dev/zero is not a regular file"),
        (7, r"\S+/pipe is not a regular file"),
        (8, r"\S+/\. is a folder"),
        (9, r"\S+\\x00\.png cannot be read"),
        (10, r"image is a number; expected a path"),
        (11, r"image is empty; fill it in"),
    ]:
        assert re.search(rf"list\.jsonl:{line}: {reason}", told), (line, told)
    counted = corpus(tmp_path / "list.jsonl", on_bad_record="skip").facts["train"]["counted"]
    assert counted["missing"] == 1 and counted["unlisted"] == 1


def test_bad_records_of_a_container_are_named_by_number(tmp_path: Path) -> None:
    data = [WHOLE["PNG"], WHOLE["JPEG"][:300], HTML, None, SVG]
    table = {"image": pa.array([None if d is None else {"bytes": d, "path": "x.png"} for d in data]), "label": [0, 1, 0, 1, 0]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    raised, said = refused(lambda: corpus(tmp_path / "a.parquet"))
    assert raised is Unsafe and [re.sub(r".*a\.parquet", "", line)[:14] for line in said[:4]] == [
        ":2: the pictur", ":3: is HTML (t", ":4: image (the", ":5: is an SVG ",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("nothing", r"data\.train=\S*nothing: no such file"),
        ("empty", r"no pictures in this folder \(looked for \.bmp"),
        ("*.webp", r"no file matches"),
        ("-", r"pictures cannot be read from standard input"),
        ("a.idx1", r"holds labels; name the file of the pictures"),
        ("splits", r"holds several splits \(test\.parquet, train\.parquet\); name the file of one"),
        (["a.png", "list.csv"], r"names pictures and tables together"),
    ],
)
def test_what_data_train_may_not_name(spec: Any, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "splits").mkdir()
    for name in ("train", "test"):
        pq.write_table(pa.table({"image": [WHOLE["PNG"]]}), tmp_path / "splits" / f"{name}.parquet")
    (tmp_path / "a.idx1").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]))
    (tmp_path / "list.csv").write_text("image\na.png\n")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.png")
    _, said = refused(lambda: corpus(spec))
    assert re.search(expected, said[0]), said


def test_many_bad_pictures_are_listed_to_twenty_and_counted(tmp_path: Path) -> None:
    for i in range(60):
        (tmp_path / f"{i:02d}.png").write_bytes(WHOLE["PNG"] if i % 2 else b"")
    _, said = refused(lambda: corpus(tmp_path))
    assert len(said) == 22 and said[20] == "... and 10 more" and said[-1].startswith("checked 60 records: 30 good, 30 bad; mend them")
    _, said = refused(lambda: corpus(tmp_path, on_bad_record="skip"))
    assert said[-1].startswith("checked 60 records: 30 good, 30 bad") and "leaves out at most 10 of 60" in said[-1]

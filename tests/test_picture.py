"""One picture: every format and mode in the one stated form, the same by simplejpeg and by Pillow, the same as transformers makes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from sslcli.data import picture
from sslcli.data.picture import Form, decode
from sslcli.data.pixels import Pixels
from sslcli.errors import BadCheckpoint
from tests.image_files import corpus, encoded, processor, scene, several, turned

FORM = Form(16, 3, "crop", 50_000_000, 8, "one")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_every_format_is_read(kind: str, tmp_path: Path) -> None:
    scene().save(tmp_path / f"a.{kind.lower()}")
    prepared = corpus(tmp_path, size=30)
    got = processor(30).take(prepared.stores["train"], np.arange(1))[0].permute(1, 2, 0).numpy()
    assert np.abs(got.astype(int) - np.asarray(scene())[:, 5:35]).mean() < (12 if kind in ("JPEG", "GIF", "WEBP") else 1e-9)
    assert prepared.facts["train"] == {
        "examples": 1, "pixels": [3, 30, 30], "per_label": {}, "counted": {"palette": 1} if kind == "GIF" else {},
    }  # fmt: skip


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("size", [16, 30, 64, 128])
def test_it_is_what_transformers_makes_of_it(fit: Any, size: int, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    ours = Pixels(size, 3, [0.4, 0.5, 0.6], [0.2, 0.3, 0.25], True, None, fit)
    ours.save(tmp_path)
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(scene(150, 101), return_tensors="pt")["pixel_values"]
    form = Form(size, 3, fit, 50_000_000, 8, "one")
    made = ours.plain(torch.from_numpy(decode(encoded(scene(150, 101), "PNG"), form).pixels.copy())[None])
    assert (made - theirs).abs().max() <= 1.01 / 255 / 0.2 and (made - theirs).abs().mean() < 0.02 / 255
    again = Pixels.load(tmp_path)
    assert (again.size, again.fit, again.mean, again.std, again.mirror) == (size, fit, ours.mean, ours.std, True)


def test_a_folder_without_a_processor_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="this is not a model of images"):
        Pixels.load(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": 3}')
    with pytest.raises(BadCheckpoint, match="does not say how pictures are prepared"):
        Pixels.load(tmp_path)


def test_padding_keeps_all_of_it() -> None:
    made = decode(encoded(scene(40, 20), "PNG"), Form(20, 3, "pad", 10**8, 8, "one")).pixels
    assert not made[:, :5].any() and not made[:, 15:].any() and made[:, 5:15].any(0).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_rotation_by_exif_is_applied(kind: str) -> None:
    """I10, all eight of them, as Pillow's own function does it."""
    for orientation in range(1, 9):
        data = turned(scene(41, 30), kind, orientation, **({"lossless": True} if kind == "WEBP" else {}))
        straight = encoded(ImageOps.exif_transpose(Image.open(io.BytesIO(data))), "PNG")
        made = decode(data, FORM)
        assert (made.pixels == decode(straight, FORM).pixels).all(), orientation
        assert ("rotated" in made.counted) == (orientation > 1 and kind != "TIFF")


def test_other_modes_become_the_form() -> None:
    """I8: the stated rule."""
    grey = np.arange(16 * 16, dtype=np.uint8).reshape(16, 16)
    clear = np.dstack([np.zeros((16, 16, 3), np.uint8), grey])  # black, ever less transparent
    deep = Image.fromarray((grey.astype(np.uint16) << 8) + 7)
    cases = [
        (Image.fromarray(grey), "PNG", grey, []),
        (deep, "PNG", grey, ["16_bit"]),
        (deep, "TIFF", grey, ["16_bit"]),
        (Image.fromarray(clear), "PNG", 255 - grey, ["transparent"]),
        (Image.fromarray(clear).convert("LA"), "PNG", 255 - grey, ["transparent"]),
        (Image.fromarray(grey).convert("LA"), "PNG", grey, []),
        (Image.fromarray(grey > 99), "PNG", (grey > 99) * 255, []),
        (Image.fromarray(grey).convert("P"), "PNG", grey, ["palette"]),
    ]
    for image, kind, expected, counted in cases:
        made = decode(encoded(image, kind), FORM)
        assert np.abs(made.pixels.astype(int) - expected).max() <= 1 and made.counted == counted, (image.mode, kind)
    holes = scene(16, 16).convert("P")
    made = decode(encoded(holes, "PNG", transparency=int(np.asarray(holes)[0, 0])), FORM)
    assert (made.pixels[:, 0, 0] == 255).all() and made.counted == ["transparent"]
    made = decode(encoded(scene(16, 16).convert("CMYK"), "TIFF"), FORM)
    assert made.counted == ["cmyk"] and np.abs(made.pixels.transpose(1, 2, 0).astype(int) - np.asarray(scene(16, 16))).max() <= 2
    luma = decode(encoded(scene(16, 16), "PNG"), Form(16, 1, "crop", 10**8, 8, "one"))
    assert (luma.pixels[0] == np.asarray(scene(16, 16).convert("L"))).all() and luma.counted == ["colour_to_grey"]
    for mode in ("I", "F"):
        with pytest.raises(picture.Refused, match="holds 32 bits a pixel"):
            decode(encoded(Image.fromarray(grey).convert(mode), "TIFF"), FORM)


JPEGS = {
    "plain": encoded(scene(300, 200), "JPEG", quality=90),
    "4:4:4": encoded(scene(300, 200), "JPEG", subsampling=0),
    "progressive": encoded(scene(300, 200), "JPEG", progressive=True),
    "odd sides": encoded(scene(301, 203), "JPEG"),
    "grey": encoded(scene(300, 200).convert("L"), "JPEG"),
    "CMYK": encoded(scene(300, 200).convert("CMYK"), "JPEG"),
    "turned": turned(scene(300, 200), "JPEG", 6),
    "several pictures (MPO)": several("MPO"),
    "damaged but readable": encoded(scene(300, 200), "JPEG")[:-2] + b"\0" * 9 + b"\xff\xd9",
}


@pytest.mark.skipif(picture.simplejpeg is None, reason="simplejpeg is not installed (extra vision)")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", JPEGS)
def test_simplejpeg_and_pillow_agree(name: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (16, 48, 150):
        form = Form(size, channels, "crop", 50_000_000, 8, "one")
        fast = decode(JPEGS[name], form)
        with monkeypatch.context() as without:
            without.setattr(picture, "simplejpeg", None)
            slow = decode(JPEGS[name], form)
        assert np.abs(fast.pixels.astype(int) - slow.pixels).max() <= 1 and sorted(fast.counted) == sorted(slow.counted), size

"""Views of pictures: what holds of all recipes."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.nn import functional as F

from sslcli import schema
from sslcli.augment import Augment, preview
from sslcli.augment.blur import Blur
from sslcli.augment.colour import Colour
from sslcli.augment.mix import Mix
from sslcli.augmentations.views import Views
from sslcli.errors import BadInput
from tests.conftest import CONFIGS

RECIPES = sorted(p.stem for p in (CONFIGS / "augment").glob("*.yaml") if "modality: image" in p.read_text())


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def photos(count: int = 6, channels: int = 3, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth coloured fields with some grain, uint8."""
    coarse = F.interpolate(uniform(count, channels, 5, 5, seed=seed), (size, size), mode="bicubic").clamp(0, 1)
    return ((0.9 * coarse + 0.1 * uniform(count, channels, size, size, seed=seed + 1)) * 255).round().byte()


def recipe(name: str, **changed: object) -> Views:
    problems: list[str] = []
    node = {**yaml.safe_load((CONFIGS / "augment" / f"{name}.yaml").read_text()), **changed}
    assert node.pop("modality") == "image"
    part = schema._check_part("augment", Augment, node, (), problems)
    assert not problems, problems
    return part.build()


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (3, 50), (1, 8), (4, 33)])
def test_every_recipe_makes_views_of_any_picture(name, channels, size) -> None:
    augment, pixels = recipe(name), photos(5, channels, size)
    draws, before = uniform(5, augment.draws), torch.get_rng_state()
    kept = pixels.clone()
    views = augment.views(pixels, draws, True)
    first, *more = (v for v in views if v.shape[-1] == size)
    assert not any(torch.equal(one, other) for one in first for v in more for other in v), "each view has its own draws"
    assert [v.shape[-1] for v in views] == [size] * augment.count + [size // 2] * augment.local
    assert all(v.dtype == torch.float32 and v.shape[:2] == (5, channels) for v in views)
    assert all(v.min() >= 0 and v.max() <= 1 and v.isfinite().all() for v in views)
    assert torch.equal(pixels, kept) and torch.equal(torch.get_rng_state(), before), "all chance comes from the draws"


@pytest.mark.parametrize("name", RECIPES)
def test_a_view_does_not_depend_on_the_batch(name, monkeypatch) -> None:
    augment, pixels = recipe(name), photos(9, 3, 48)
    draws = uniform(9, augment.draws)
    whole = augment.views(pixels, draws, True)
    for rows in ([4], [8, 0, 3]):
        for one, other in zip(augment.views(pixels[rows], draws[rows], True), whole, strict=True):
            assert torch.allclose(one, other[rows], atol=1e-6)
    monkeypatch.setattr("sslcli.augmentations.views.CHUNK", 2 * 3 * 48 * 48)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(augment.views(pixels, draws, True), whole, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(augment.views(pixels, draws, True), whole, strict=True))


@pytest.mark.parametrize("name", RECIPES)
def test_on_a_gpu_all_stays_there_and_nothing_waits(name, monkeypatch) -> None:
    """Tensors without values, on a device of their own: whatever asks for a value, or brings a tensor from elsewhere, raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none for that device
    augment = recipe(name)
    draws = torch.rand(4, augment.draws, device="meta")
    views = augment.views(torch.zeros(4, 3, 48, 48, dtype=torch.uint8, device="meta"), draws, True)
    mixed, target = augment.mix(views[0], torch.zeros(4, 5, device="meta"), draws)
    assert all(t.device.type == "meta" for t in (*views, mixed, target)) and mixed.shape == (4, 3, 48, 48)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", RECIPES)
def test_a_gpu_makes_the_same_views(name) -> None:
    augment, pixels = recipe(name), photos(64, 3, 48)
    draws = uniform(64, augment.draws)
    found = augment.views(pixels.cuda(), draws.cuda(), True)
    for one, other in zip(augment.views(pixels, draws, True), found, strict=True):
        # a rounding may move a value over a threshold of a solarised, posterised or equalised picture
        assert ((one - other.cpu()).abs() > 0.01).float().mean() < 0.02 and torch.isfinite(other).all()


def test_none_is_the_picture_and_a_flip_waits_for_permission() -> None:
    pixels, plain = photos(), photos().float() / 255
    assert torch.equal(recipe("none").views(pixels, uniform(6, 99), True)[0], plain)
    always = recipe("none", flip=1.0)
    assert torch.equal(always.views(pixels, uniform(6, always.draws), True)[0], plain.flip(-1))
    assert torch.equal(always.views(pixels, uniform(6, always.draws), False)[0], plain)
    cropped = recipe("mae", flip=0.5)
    draws = uniform(64, cropped.draws)
    one, other = (cropped.views(photos(64), draws, mirror)[0] for mirror in (True, False))
    mirrored = torch.tensor([torch.allclose(a, b.flip(-1), atol=1e-4) for a, b in zip(one, other, strict=True)])
    assert torch.equal(mirrored, draws[:, 0] < 0.5) and torch.allclose(one[~mirrored], other[~mirrored])


def test_mixing_takes_the_last_draws_and_is_off_unless_asked() -> None:
    images, target = uniform(4, 3, 8, 8), torch.eye(4)
    assert recipe("light").mix(images, target, uniform(4, 10))[0] is images
    strong = recipe("strong")
    draws = uniform(4, strong.draws)
    assert torch.equal(strong.mix(images, target, draws)[0], Mix(1.0, 0.8, 1.0)(images, target, draws[:, -6:])[0])
    alone = strong.mix(images[:1], target[:1], draws[:1])
    assert torch.allclose(alone[0], images[:1]) and torch.allclose(alone[1], target[:1])


def test_views_have_their_own_probabilities() -> None:
    byol = recipe("byol", colour={"probability": 0, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}, grey=0)
    plain = recipe("byol", blur={"probability": 0, "sigma": [1, 1], "smallest": 1}, solarise=0, grey=0, colour=vars(Colour(0, 0, 0, 0, 0)))
    pixels = photos(200, 3, 48)
    draws = uniform(200, byol.draws)
    first, second = byol.views(pixels, draws, True)
    bare = plain.views(pixels, torch.cat([draws[:, :10], draws[:, 12:22]], 1), True)
    changed = [(v - b).abs().amax((1, 2, 3)) > 1e-3 for v, b in zip((first, second), bare, strict=True)]
    assert changed[0].float().mean() > 0.8 and 0.15 < changed[1].float().mean() < 0.45
    with pytest.raises(
        BadInput, match=r"augment: solarise=\[0.0, 0.2\]: expected one number, or 2, one for each view, and one for the local"
    ):
        recipe("dino", solarise=[0, 0.2])
    assert recipe("dino", views=1, solarise=[0.1, 0.0], blur=vars(Blur(0.5, (0.1, 2.0), 48))).count == 1


def test_strengths_are_checked() -> None:
    node = yaml.safe_load((CONFIGS / "augment" / "simclr.yaml").read_text())
    node.pop("modality")
    node["crop"] = {"scale": [0.5, 0.2], "ratio": [1, 1]}
    node["colour"]["hue"] = 0.7
    node["blur"]["sigmas"] = 1
    problems: list[str] = []
    schema._check_part("augment", Augment, node, (), problems)
    text = "\n".join(problems)
    assert "scale=[0.5, 0.2]: expected two numbers from 0.0001 to 1, the smaller first" in text
    assert "augment.colour.hue=0.7" in text and "augment.blur.sigmas" in text and len(problems) == 3


def test_the_preview_shows_originals_beside_their_views(tmp_path) -> None:
    for channels, name in ((3, "dino"), (1, "grey")):
        augment, pixels = recipe(name), photos(4, channels, 32)
        preview.draw(tmp_path / "sheet.png", augment, pixels, uniform(4, augment.draws), True)
        page = Image.open(tmp_path / "sheet.png")
        assert page.size == ((1 + augment.count + augment.local) * 68 + 8, 4 * 68 + 4)
        shown = np.array(page)[4:68:2, 4:68:2]
        assert np.array_equal(shown, pixels[0].permute(1, 2, 0).expand(-1, -1, 3).numpy())


def test_the_receipt_doubts_views_that_are_the_same_or_unrelated() -> None:
    pixels = photos(80, 3, 32)
    fine = recipe("simclr")
    found = preview.receipt(fine, pixels, uniform(80, fine.draws), True)
    assert found["different_pictures"] < found["same_picture"] < 0.95 and preview.doubt(found) is None
    twice = recipe("none", views=2)
    found = preview.receipt(twice, pixels, uniform(80, twice.draws), True)
    assert found["same_picture"] == pytest.approx(1) and "nearly the same" in str(preview.doubt(found))
    lost = recipe("simclr", crop={"scale": [0.01, 0.02], "ratio": [1, 1]})
    found = preview.receipt(lost, pixels, uniform(80, lost.draws), True)
    assert found["told_apart"] < 0.6 and "hardly more alike" in str(preview.doubt(found))
    opposite = torch.cat([pixels[:1], 255 - pixels[:1]])
    assert preview.receipt(twice, opposite, uniform(2, twice.draws), True)["different_pictures"] == pytest.approx(-1)
    one = recipe("none")
    assert preview.doubt(preview.receipt(one, pixels, uniform(80, 50), True)) is None, "one view is never compared with another"

"""Views of pictures: each operation against Pillow, colorsys or a naive loop, and what holds of all recipes."""

import colorsys
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageEnhance, ImageOps
from torch.nn import functional as F

from sslcli import schema
from sslcli.augment import Augment, preview
from sslcli.augment.blur import Blur, blurred
from sslcli.augment.colour import BRIGHTNESS, CONTRAST, ORDERS, SATURATION, Colour, Grey, Solarise, enhanced, hue
from sslcli.augment.geometry import Affine, Crop, Geometry
from sslcli.augment.mix import Erase, Mix, quantiles
from sslcli.augment.randaugment import (
    CHANGES,
    RandAugment,
    autocontrast,
    equalise,
    posterise,
    rotate,
    sharpness,
    shear_x,
    solarise,
    translate_y,
)
from sslcli.augmentations.views import Views
from sslcli.errors import BadInput
from tests.conftest import CONFIGS

LEVEL = 1 / 255
RECIPES = sorted(p.stem for p in (CONFIGS / "augment").glob("*.yaml") if "modality: image" in p.read_text())
WHOLE, STILL = Crop((1.0, 1.0), (1.0, 1.0)), Affine(0, 0, 0, 0)


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def photos(count: int = 6, channels: int = 3, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth coloured fields with some grain, uint8."""
    coarse = F.interpolate(uniform(count, channels, 5, 5, seed=seed), (size, size), mode="bicubic").clamp(0, 1)
    return ((0.9 * coarse + 0.1 * uniform(count, channels, size, size, seed=seed + 1)) * 255).round().byte()


def pil(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).numpy())


def unpil(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


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


def test_a_crop_is_a_box_cut_out_and_resized() -> None:
    """Against slicing and F.interpolate, with the box worked out by hand from the draws."""
    size, crop, pixels = 40, Crop((0.2, 0.9), (0.75, 4 / 3)), photos(50, 3, 40)
    draws = uniform(50, Geometry.draws)
    found = Geometry(crop, STILL, 0.5)(pixels, draws, size, True)
    for i, (flip, area, ratio, top, left) in enumerate(draws[:, :5].tolist()):
        area = 0.2 + 0.7 * area
        low, high = max(math.log(0.75), math.log(area)), min(math.log(4 / 3), -math.log(area))
        ratio = math.exp(low + (high - low) * ratio)
        width, height = round(math.sqrt(area * ratio) * size), round(math.sqrt(area / ratio) * size)
        top, left = int(top * (size - height + 1)), int(left * (size - width + 1))
        cut = pixels[i : i + 1, :, top : top + height, left : left + width].float() / 255
        expected = F.interpolate(cut, (size, size), mode="bilinear", align_corners=False)[0]
        assert torch.allclose(found[i], expected.flip(-1) if flip < 0.5 else expected, atol=2e-4), i


def test_boxes_cover_the_area_asked_for_and_reach_every_corner() -> None:
    """A picture of its own coordinates: a view says where it looked."""
    size, count = 64, 2000
    ramp = torch.arange(size).mul(4).byte()
    pixels = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size)]).expand(count, 2, size, size)
    views = Geometry(Crop((0.1, 0.5), (0.5, 2.0)), STILL, 0)(pixels, uniform(count, 10), size, True) * 255 / 4
    width, height = views[:, 0, 0, -1] - views[:, 0, 0, 0] + 1, views[:, 1, -1, 0] - views[:, 1, 0, 0] + 1
    area = width * height / size**2
    assert area.min() > 0.09 and area.max() < 0.52 and abs(area.mean() - 0.3) < 0.01
    assert (width / height).min() > 0.45 and (width / height).max() < 2.2 and abs((width / height).log().mean()) < 0.05
    assert views[:, 0, 0, 0].min() < 0.5 and views[:, 0, 0, -1].max() > size - 1.5 and abs(views[:, 0].mean() - (size - 1) / 2) < 1


def test_a_shift_is_by_whole_pixels_and_repeats_the_border() -> None:
    pixels, draws = photos(30), uniform(30, 10)
    found = Geometry(WHOLE, Affine(0, 0.125, 0, 0), 0)(pixels, draws, 32, True)
    padded = F.pad(pixels.float() / 255, (4,) * 4, mode="replicate")
    for i, (right, down) in enumerate(((draws[:, 5:7] * 2 - 1) * 4).round().int().tolist()):
        assert torch.allclose(found[i], padded[i, :, 4 + down : 36 + down, 4 + right : 36 + right], atol=1e-4)


def test_a_turn_is_a_rotation_about_the_middle() -> None:
    disc = photos(1, 3, 65)
    draws = torch.full((1, 10), 0.5)
    draws[:, 8] = 1.0
    found = Geometry(WHOLE, Affine(20, 0, 0, 0), 0)(disc, draws, 65, True)[0]
    expected = unpil(pil(disc[0]).rotate(20, Image.Resampling.BILINEAR))
    at = torch.arange(65) - 32
    inside = (at[:, None] ** 2 + at**2) < 30**2
    assert (found - expected)[:, inside].abs().max() < 3 * LEVEL


@pytest.mark.parametrize(("which", "name"), [(BRIGHTNESS, "Brightness"), (CONTRAST, "Contrast"), (SATURATION, "Color")])
@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
def test_enhancements_are_pillows(which, name, factor) -> None:
    pixels = photos()
    found = enhanced(pixels.float() / 255, torch.full((6,), which), torch.full((6,), factor))
    expected = torch.stack([unpil(getattr(ImageEnhance, name)(pil(p)).enhance(factor)) for p in pixels])
    assert (found - expected).abs().max() < 2 * LEVEL


def test_hue_is_that_of_colorsys() -> None:
    pictures, turn = uniform(7, 3, 4, 4), torch.tensor([-0.5, -0.2, -0.01, 0.0, 0.1, 0.3, 0.5])
    pictures[0, :, 0], pictures[1, :, 1], pictures[2, 1], pictures[3, :, 0, 0] = 0.5, 1.0, pictures[2, 2], 0.0
    found = hue(pictures, turn)
    for i, shift in enumerate(turn.tolist()):
        for y in range(4):
            for x in range(4):
                h, s, v = colorsys.rgb_to_hsv(*pictures[i, :, y, x].tolist())
                assert found[i, :, y, x].tolist() == pytest.approx(colorsys.hsv_to_rgb((h + shift) % 1, s, v), abs=2e-6)


def test_colour_changes_follow_one_another_in_each_pictures_own_order() -> None:
    colour, count = Colour(0.7, 0.4, 0.5, 0.6, 0.1), 60
    pictures, draws = photos(count, 3, 8).float() / 255, uniform(count, 6)
    found = colour(pictures.clone(), draws)
    orders = set()
    for i in range(count):
        expected, number = pictures[i : i + 1], int(draws[i, 5] * 24)
        steps: list = [(k, 1 + s * (2 * draws[i : i + 1, k + 1] - 1)) for k, s in enumerate((0.4, 0.5, 0.6))]
        steps = [steps[k] for k in ORDERS[number // 4]]
        steps.insert(number % 4, None)
        orders.add(number)
        for step in steps if draws[i, 0] < 0.7 else []:
            turn = 0.1 * (2 * draws[i : i + 1, 4] - 1)
            expected = enhanced(expected, torch.tensor([step[0]]), step[1]) if step else hue(expected, turn)
        assert torch.allclose(found[i], expected[0], atol=1e-5), i
    assert len(orders) > 15


def test_grey_and_solarised_pictures() -> None:
    pixels = photos(400, 3, 8)
    pictures, draws = pixels.float() / 255, uniform(400, 1)
    grey = Grey(0.2)(pictures.clone(), draws)
    drawn = draws[:, 0] < 0.2
    expected = torch.stack([unpil(pil(p).convert("L").convert("RGB")) for p in pixels[drawn]])
    assert 0.1 < drawn.float().mean() < 0.3 and torch.allclose(grey[~drawn], pictures[~drawn])
    assert (grey[drawn] - expected).abs().max() < 1.01 * LEVEL
    inverted = Solarise(0.2)(pictures.clone(), draws)
    assert torch.equal(inverted[~drawn], pictures[~drawn])
    assert torch.allclose(inverted[drawn], torch.stack([unpil(ImageOps.solarize(pil(p), 128)) for p in pixels[drawn]]), atol=1e-6)


def test_blur_is_a_gaussian_of_each_pictures_own_width() -> None:
    pictures, sigma = photos(3, 2, 12).double() / 255, torch.tensor([0.3, 1.0, 2.0])
    found = blurred(pictures.float(), sigma, 6)
    at = [i if i >= 0 else -i for i in range(-6, 12)] + [10 - i for i in range(6)]  # reflected
    for b, s in enumerate(sigma.double()):
        weights = torch.exp(-0.5 * (torch.arange(-6, 7) / s) ** 2)
        kernel = torch.outer(weights, weights) / weights.sum() ** 2
        padded = pictures[b][:, at][:, :, at]
        expected = sum(kernel[i, j] * padded[:, i : i + 12, j : j + 12] for i in range(13) for j in range(13))
        assert torch.allclose(found[b].double(), expected, atol=1e-6)
    chosen = Blur(0.5, (1.0, 2.0), 1)
    draws, pictures = uniform(40, 2), photos(40).float() / 255
    same = (chosen(pictures.clone(), draws) == pictures).flatten(1).all(1)
    assert torch.equal(same, draws[:, 0] >= 0.5)
    assert torch.equal(Blur(1.0, (1.0, 2.0), 48)(pictures.clone(), draws), pictures), "small pictures stay sharp"


def test_the_changes_of_randaugment_are_pillows() -> None:
    pixels = photos(4, 3, 33)
    pictures, up = pixels.float() / 255, torch.ones(4)

    def against(change, strength: float, reference, inner: int = 0, tolerance: float = 1.01) -> None:
        found = change(pictures, strength * up)[..., inner : 33 - inner, inner : 33 - inner]
        expected = torch.stack([unpil(reference(pil(p))) for p in pixels])[..., inner : 33 - inner, inner : 33 - inner]
        assert (found - expected).abs().max() < tolerance * LEVEL

    against(posterise, 0.5, lambda p: ImageOps.posterize(p, 6), tolerance=0.01)
    against(solarise, 0.5, lambda p: ImageOps.solarize(p, 128), tolerance=0.01)
    against(autocontrast, 1.0, ImageOps.autocontrast)
    against(equalise, 1.0, ImageOps.equalize, tolerance=0.01)
    for strength in (-0.8, 0.6):
        against(sharpness, strength, lambda p, s=strength: ImageEnhance.Sharpness(p).enhance(1 + 0.9 * s), tolerance=2)
    against(rotate, 0.5, lambda p: p.rotate(15, Image.Resampling.BILINEAR), inner=7, tolerance=3)
    move = (Image.Transform.AFFINE, (1, 0.15, -0.15 * 16.5, 0, 1, 0), Image.Resampling.BILINEAR)
    against(shear_x, 0.5, lambda p: p.transform(p.size, *move), inner=6, tolerance=3)
    shifted = translate_y(pictures, 331 / 150 / 33 * 5 * up)
    assert torch.allclose(shifted[:, :, :-5], pictures[:, :, 5:], atol=1e-4)
    flat = torch.full((1, 3, 5, 5), 0.3)
    assert torch.allclose(autocontrast(flat, up[:1]), flat) and (equalise(flat, up[:1]) - flat).abs().max() < LEVEL


def test_randaugment_draws_for_each_picture() -> None:
    count = 14 * 40
    pictures = (photos(1, 3, 16).float() / 255).expand(count, -1, -1, -1).clone()
    draws = uniform(count, 2)
    found = RandAugment(1, 18)(pictures.clone(), draws)
    for i in range(0, count, 7):
        kind, sign = int(draws[i, 0] * 14), -1.0 if draws[i, 1] < 0.5 else 1.0
        expected = pictures[i : i + 1] if kind == 13 else CHANGES[kind](pictures[i : i + 1], torch.tensor([sign * 0.6]))
        assert torch.allclose(found[i], expected[0], atol=1e-5), kind
    assert (draws[:, 0] * 14).long().unique().numel() == 14 and RandAugment(3, 9).draws == 6


def test_a_hidden_box_has_its_share_and_one_colour() -> None:
    pictures, draws = torch.zeros(3000, 3, 32, 32), uniform(3000, 8).clamp(min=0.01)
    hidden = Erase(0.25, (0.02, 0.33))(pictures, draws).ne(0).all(1)
    share = hidden.float().mean((1, 2))
    assert abs((share > 0).float().mean() - 0.25) < 0.03 and abs(share[share > 0].mean() - 0.175) < 0.02 and share.max() < 0.36
    rows, columns = hidden.any(2).sum(1), hidden.any(1).sum(1)
    assert torch.equal(rows * columns, hidden.sum((1, 2))), "a box"


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 3.0])
def test_shares_of_mixing_follow_the_beta_distribution(alpha) -> None:
    from scipy.special import betaincinv

    expected = betaincinv(alpha, alpha, np.linspace(0, 1, 1025))
    assert np.abs(np.array(quantiles(alpha)) - expected).max() < 1e-3


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixing_gives_pictures_and_labels_the_same_shares(mixup, cutmix) -> None:
    """Pictures that hold their own number in every pixel, and labels that say it: what is mixed can be read off."""
    count, side = 64, 16
    images = torch.eye(count)[:, :, None, None].expand(-1, -1, side, side)
    mix, draws = Mix(0.75, mixup, cutmix), uniform(count, 6, seed=3)
    mixed, target = mix(images, torch.eye(count), draws)
    assert torch.allclose(mixed.mean((2, 3)), target, atol=1e-5), "labels are mixed as the pixels are"
    assert torch.allclose(target.sum(1), torch.ones(count)) and (target > 0).sum(1).max() == 2
    own = target.diagonal()
    assert torch.equal(own[draws[:, 0] >= 0.75], torch.ones(int((draws[:, 0] >= 0.75).sum()))), "only those that were drawn"
    cut = ((mixed == 0) | (mixed == 1)).flatten(1).all(1) & (own < 1)
    assert cut.any() == (cutmix > 0) and (~cut & (own < 1)).any() == (mixup > 0)
    again, others = (mix(images, torch.eye(count), d) for d in (draws, uniform(count, 6, seed=4)))
    assert torch.equal(again[0], mixed) and torch.equal(again[1], target)
    pairs, differing = ((t > 0) & ~torch.eye(count, dtype=torch.bool) for t in (target, others[1]))
    assert (pairs & differing).sum() < count / 8, "other draws, other pairs"


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

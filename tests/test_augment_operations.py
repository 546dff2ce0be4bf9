"""Each operation on pictures against Pillow, colorsys, a distribution or a naive loop."""

import colorsys
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch.nn import functional as F

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
from tests.test_augment import photos, uniform

LEVEL = 1 / 255


WHOLE, STILL = Crop((1.0, 1.0), (1.0, 1.0)), Affine(0, 0, 0, 0)


def pil(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).numpy())


def unpil(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


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

"""Corruptions of pictures (Hendrycks and Dietterich 2019), uint8 [B, C, S, S] -> float32 from 0 to 255, mild to strong."""

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sslcli.augment.blur import CUT, blurred


def noise(pixels: Tensor, strength: float, keys: np.ndarray) -> Tensor:
    """Gaussian; strength: its deviation, of the range."""
    drawn = [np.random.Generator(np.random.Philox(key=int(k))).standard_normal(pixels[0].shape, np.float32) for k in keys]
    return (pixels.float() + torch.from_numpy(np.stack(drawn)) * (255 * strength)).clamp(0, 255)


def blur(pixels: Tensor, strength: float, keys: np.ndarray) -> Tensor:
    """Gaussian; strength: its deviation, of the side."""
    sigma = strength * pixels.shape[-1]
    radius = min(max(1, round(CUT * sigma)), pixels.shape[-1] - 1)
    return blurred(pixels.float(), torch.full((len(pixels),), sigma), radius).clamp(0, 255)


def brightness(pixels: Tensor, strength: float, keys: np.ndarray) -> Tensor:
    """Lighter by this share of the range."""
    return (pixels.float() + 255 * strength).clamp(0, 255)


def contrast(pixels: Tensor, strength: float, keys: np.ndarray) -> Tensor:
    """Less by this share, around the picture's mean."""
    values = pixels.float()
    mean = values.mean((1, 2, 3), keepdim=True)
    return torch.lerp(values, mean.expand_as(values), strength)


def jpeg(pixels: Tensor, strength: float, keys: np.ndarray) -> Tensor:
    """Of quality 100 * (1 - strength)."""
    return torch.stack([_compressed(picture, round(100 * (1 - strength))) for picture in pixels])


def _compressed(picture: Tensor, quality: int) -> Tensor:
    array = picture.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(buffer, "JPEG", quality=quality)
    again = np.atleast_3d(np.asarray(Image.open(buffer), np.float32))
    return torch.from_numpy(again).permute(2, 0, 1)


def pixelate(pixels: Tensor, strength: float, keys: np.ndarray) -> Tensor:
    """Of a side smaller by this share, and blown up again."""
    side = pixels.shape[-1]
    small = max(1, round(side * (1 - strength)))
    return F.interpolate(F.adaptive_avg_pool2d(pixels.float(), small), (side, side), mode="nearest")


CORRUPTIONS: dict[str, tuple[Callable[[Tensor, float, np.ndarray], Tensor], Sequence[float]]] = {
    "noise": (noise, (0.05, 0.1, 0.2)),
    "blur": (blur, (0.02, 0.04, 0.08)),
    "brightness": (brightness, (0.1, 0.2, 0.3)),
    "contrast": (contrast, (0.4, 0.6, 0.8)),
    "jpeg": (jpeg, (0.5, 0.8, 0.9)),
    "pixelate": (pixelate, (0.25, 0.5, 0.75)),
}

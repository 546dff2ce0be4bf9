"""Looking at views before training on them: a picture of them, and how different they are."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sslcli.augmentations.views import Views

CELL, GAP = 64, 4  # pixels: the least side of a picture on the sheet, and the grey between two
IDENTICAL, UNRELATED = 0.95, 0.6  # measured on photographs, clothing and digits: pairs that were shuffled are told apart in 0.50 to 0.53


def draw(path: Path, augment: Views, pixels: Tensor, draws: Tensor, mirror: bool) -> None:
    """A PNG with a row for each of pixels (uint8 [N, C, S, S]): the picture, and beside it the views that these draws give."""
    with torch.no_grad():
        sheet([pixels.float() / 255, *augment.views(pixels, draws, mirror)]).save(path, "PNG")


def sheet(columns: Sequence[Tensor]) -> Image.Image:
    """Pictures [N, C, s, s] between 0 and 1 in columns; a wider gap sets the first apart. Small pictures are enlarged, pixels visible."""
    side = columns[0].shape[-1]
    enlarged = -(-CELL // side)
    side *= enlarged
    across, down = len(columns) * (side + GAP) + 2 * GAP, len(columns[0]) * (side + GAP) + GAP
    page = Image.new("RGB", (across, down), "lightgrey")
    for i, column in enumerate(columns):
        left = GAP + i * (side + GAP) + (GAP if i else 0)
        for j, picture in enumerate(column):
            page.paste(_image(picture, enlarged), (left, GAP + j * (side + GAP)))
    return page


def _image(picture: Tensor, enlarged: int) -> Image.Image:
    values = picture.mul(255).round().clamp(0, 255).byte().cpu()
    values = values if len(values) == 3 else values[:1].expand(3, -1, -1)
    image = Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())
    return image.resize((image.width * enlarged, image.height * enlarged), Image.Resampling.NEAREST)


def receipt(augment: Views, pixels: Tensor, draws: Tensor, mirror: bool) -> dict[str, float | int]:
    """How alike views are (correlation of their pixels): two of one picture, two of different pictures, and how often the two of one
    picture are the more alike. With one view, it is compared with its picture. A few hundred pictures say it to about 0.02."""
    with torch.no_grad():
        views = augment.views(pixels, draws, mirror)
    first, second = (views[0], views[1]) if augment.count > 1 else (pixels.float() / 255, views[0])
    alike = _standardised(first) @ _standardised(second).t()
    others = ~torch.eye(len(alike), dtype=torch.bool, device=alike.device)
    same = alike.diagonal()
    found: dict[str, float | int] = {"pictures": len(pixels), "views": augment.count, "local_views": augment.local}
    found["same_picture"] = round(float(same.mean()), 3)
    if augment.count + augment.local == 1:
        found["changed"] = round(float((first != second).flatten(1).any(1).float().mean()), 3)
    elif len(pixels) > 1:
        found["different_pictures"] = round(float(alike[others].mean()), 3)
        found["told_apart"] = round(float((same[:, None] > alike)[others].float().mean()), 3)
    return found


def doubt(found: dict[str, float | int], asked: bool = False) -> str | None:
    """What a receipt warns about, in a sentence. `asked`: the augmentation is to change pictures."""
    same, apart = found["same_picture"], found.get("told_apart", 1.0)
    if asked and not found.get("changed", 1):
        return f"augment had no effect: the views of {found['pictures']:,} pictures are those pictures"
    if found["views"] > 1 and same > IDENTICAL:
        return f"two views of a picture are nearly the same (correlation {same:.2f}): they can be matched without learning; augment more"
    if apart < UNRELATED:
        remedy = "augment less, or choose augment=grey for drawings and digits"
        return f"two views of a picture are hardly more alike than those of two pictures (in {apart:.0%} of comparisons): {remedy}"
    return None


def changes(augment: Views, mirror: bool) -> bool:
    """Whether the first view is configured to be another picture."""
    view = augment._views[0]
    look = view.look
    return bool(view.changes) or not (look.crop.whole and look.affine.still) or bool(mirror and look.flip)


def _standardised(pictures: Tensor) -> Tensor:
    """[N, D] of mean 0 and length 1, from at most 32 pixels a side: it is what is where that counts, not the grain."""
    side = min(32, pictures.shape[-1])
    values = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True).flatten(1)
    return F.normalize(values - values.mean(1, keepdim=True), dim=1)

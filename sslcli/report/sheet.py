"""Pictures on a sheet of paper: rows of cells with captions, a title, a legend. Needs Pillow only."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, PALE, PAPER = (34, 34, 34), (120, 120, 120), (255, 255, 255)
GREEN, RED, BLUE = (0, 140, 70), (205, 45, 45), (40, 90, 190)
SMALL, LARGE = 84, 148  # pixels of a cell's side: small pictures are blown up to about the first, large ones brought down to the second
FRAME, GAP, MARGIN, TEXT, TITLE = 4, 12, 20, 13, 18
FONTS = ("NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "wqy-microhei.ttc", "PingFang.ttc", "msyh.ttc", "DejaVuSans.ttf")


@dataclass
class Cell:
    picture: Image.Image | None
    lines: Sequence[str] = ()  # beneath it
    frame: tuple[int, int, int] | None = None
    ink: tuple[int, int, int] = INK  # of the first line


def picture(pixels: Any) -> Image.Image:
    """uint8 (or float between 0 and 1) [C, S, S] at the size of a cell, whole pixels kept where it is small."""
    array = np.asarray(pixels)
    if array.dtype != np.uint8:
        array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    array = array[0] if len(array) in (1, 2) else array[:3].transpose(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(array)).convert("RGB")
    side = max(image.size)
    if side <= SMALL:
        factor = max(1, round(SMALL / side))
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    scale = min(1.0, LARGE / side)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def sheet(
    rows: Sequence[Sequence[Cell]],
    title: str,
    legend: Sequence[tuple[tuple[int, int, int], str]] = (),
    columns: Sequence[str] = (),
    sides: Sequence[str] = (),
    apart: int | None = None,
) -> Image.Image:
    """Cells of one size in rows. `columns` stand above them, `sides` before the rows; after column `apart` there is room."""
    faces = [cell.picture for row in rows for cell in row if cell.picture is not None]
    font, head = _font(TEXT), _font(TITLE)
    side = max((max(f.size) for f in faces), default=SMALL)
    depth = max((len(cell.lines) for row in rows for cell in row), default=0)
    width, height = side + 2 * FRAME + GAP, side + 2 * FRAME + GAP + depth * (TEXT + 4)
    left = MARGIN + (max((int(font.getlength(s)) for s in sides), default=0) + GAP if sides else 0)
    top = MARGIN + TITLE + GAP + (TEXT + GAP if legend else 0) + (TEXT + 8 if columns else 0)
    count = max((len(row) for row in rows), default=1)
    room = GAP * 2 if apart is not None else 0
    said = sum(int(font.getlength(text)) + 3 * GAP for _, text in legend)
    full = max(left + count * width + room, MARGIN + int(head.getlength(title)), MARGIN + said) + MARGIN
    paper = Image.new("RGB", (full, top + len(rows) * height + MARGIN), PAPER)
    pen = ImageDraw.Draw(paper)
    pen.text((MARGIN, MARGIN - 4), title, INK, head)
    at = MARGIN
    for colour, text in legend:
        y = MARGIN + TITLE + GAP
        pen.rectangle((at, y, at + TEXT - 2, y + TEXT - 2), colour)
        pen.text((at + TEXT + 4, y - 3), text, INK, font)
        at += int(font.getlength(text)) + 3 * GAP
    for i, text in enumerate(columns):
        x = left + i * width + (room if apart is not None and i > apart else 0)
        pen.text((x + width / 2 - GAP / 2, top - TEXT - 10), fitted(text, width - 4, font), PALE, font, anchor="ma")
    for r, row in enumerate(rows):
        y = top + r * height
        if r < len(sides):
            pen.text((MARGIN, y + side / 2), sides[r], INK, font, anchor="lm")
        for i, cell in enumerate(row):
            x = left + i * width + (room if apart is not None and i > apart else 0)
            _cell(paper, pen, cell, (x, y), side, width - 10, font)
    return paper


def _cell(paper: Image.Image, pen: ImageDraw.ImageDraw, cell: Cell, at: tuple[int, int], side: int, room: int, font: Any) -> None:
    x, y = at
    if cell.picture is not None:
        w, h = cell.picture.size
        place = (x + FRAME + (side - w) // 2, y + FRAME + (side - h) // 2)
        if cell.frame is not None:
            pen.rectangle((place[0] - FRAME, place[1] - FRAME, place[0] + w + FRAME - 1, place[1] + h + FRAME - 1), cell.frame)
        else:  # a thin line, so that a white picture has an edge
            pen.rectangle((place[0] - 1, place[1] - 1, place[0] + w, place[1] + h), None, (225, 225, 225))
        paper.paste(cell.picture, place)
    for i, line in enumerate(cell.lines):
        below = y + side + 2 * FRAME + 3 + i * (TEXT + 4)
        pen.text((x + FRAME + side / 2, below), fitted(line, room, font), cell.ink if i == 0 else PALE, font, anchor="ma")


def fitted(text: str, room: float, font: Any = None) -> str:
    """`text`, its middle left out where it is wider than the room: names often differ at either end."""
    font = font or _font(TEXT)
    shown, kept = text, len(text)
    while kept > 1 and font.getlength(shown) > room:
        kept -= 1
        shown = shortened(text, kept)
    return shown


def shortened(text: str, most: int) -> str:
    """At most so many letters and an ellipsis."""
    if len(text) <= most:
        return text
    tail = most // 3
    return text[: most - tail].rstrip() + "…" + (text[-tail:].lstrip() if tail else "")


def save(paper: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    paper.save(path, "PNG", optimize=True)


@cache
def _font(size: int) -> Any:
    """One that this machine has for the world's letters, else Pillow's own."""
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)

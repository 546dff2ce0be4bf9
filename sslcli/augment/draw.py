"""What every operation is made of: ranges, values out of uniform draws, and a change of only those pictures that were drawn."""

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Protocol, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Span: TypeAlias = tuple[float, float]


class Operation(Protocol):
    @property
    def draws(self) -> int:
        """How many uniform numbers a picture it takes."""

    def __call__(self, pictures: Tensor, draws: Tensor) -> Tensor:
        """Pictures [B, C, S, S] between 0 and 1 (it may change them in place) and draws [B, n] in [0, 1) -> the same shape."""


def check(name: str, span: Span, least: float, most: float) -> None:
    low, high = span
    if not least <= low <= high <= most:
        raise ValueError(f"{name}=[{low:g}, {high:g}]: expected two numbers from {least:g} to {most:g}, the smaller first")


def between(draw: Tensor, span: Span) -> Tensor:
    """Uniform in the span."""
    low, high = span
    return draw * (high - low) + low


@cache
def constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Kept on the device: a copy in every step would make the host wait for it."""
    return torch.tensor(values, device=device)


def only(chosen: Tensor, change: Callable[..., Tensor], pictures: Tensor, *parameters: Tensor) -> Tensor:
    """`change(pictures, *parameters)` for the chosen pictures ([B], bool), the others as they are.

    On a CPU the others cost nothing; elsewhere gathering the chosen would make the host wait for the device, so all are computed.
    """
    if pictures.device.type != "cpu":
        return change(pictures, *parameters).where(chosen[:, None, None, None], pictures)
    rows = chosen.nonzero()[:, 0]
    if len(rows) == len(pictures):
        return change(pictures, *parameters)
    if len(rows):
        pictures[rows] = change(pictures[rows], *(p[rows] for p in parameters))
    return pictures

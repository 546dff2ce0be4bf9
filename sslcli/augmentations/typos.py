"""Slips of the fingers: neighbouring keys, letters dropped, doubled or swapped (Belinkov and Bisk 2018)."""

from random import Random
from typing import Annotated

from pydantic import Field

from sslcli.augment.text import Rewriting
from sslcli.augment.words import Text, mistype


class Typos(Rewriting):
    """`rate`: of the words that are mistyped."""

    def __init__(self, *, probability: Annotated[float, Field(ge=0, le=1)], rate: Annotated[float, Field(gt=0, lt=1)]):
        super().__init__(probability, rate)

    def rewrite(self, text: Text, random: Random) -> str:
        mistype(text, self.rate, random)
        return "mistype"

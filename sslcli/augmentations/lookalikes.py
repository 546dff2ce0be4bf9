"""Characters replaced by others that look or sound alike: what people and recognisers of writing and speech confuse."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Annotated, Any

from pydantic import Field

from sslcli.augment.lookalikes import By, Confusions, Lookalikes
from sslcli.augment.synonyms import File
from sslcli.augment.text import Rewriting
from sslcli.augment.words import Text, confuse
from sslcli.data.store import Store
from sslcli.data.tokenizer import Tokenizer


class Lookalike(Rewriting):
    """`rate`: of the words, in each of which one character is replaced. `confusions`: a file, a character, a tab and those that it is taken
    for, separated by spaces, a line; by default what Python knows of shapes and sounds (augment.lookalikes)."""

    def __init__(
        self,
        *,
        probability: Annotated[float, Field(ge=0, le=1)],
        rate: Annotated[float, Field(gt=0, lt=1)],
        by: Annotated[list[By], Field(min_length=1)],
        confusions: Path | None,
    ):
        super().__init__(probability, rate)
        self.known: Confusions = Lookalikes(by) if confusions is None else File(confusions, "confusions")
        self.said = self.known.said if isinstance(self.known, File) else ""

    def begin(self, model: Any, tokenizer: Tokenizer, store: Store) -> None:
        super().begin(model, tokenizer, store)

        @cache
        def alike(character: str) -> Sequence[str]:
            """Those that are another character to the tokenizer too, which may drop marks, or case."""
            own = tokenizer.hf.tokenize(character)
            return [c for c in self.known(character) if tokenizer.hf.tokenize(c) != own]

        self.alike: Confusions = alike

    def rewrite(self, text: Text, random: Random) -> str:
        confuse(text, self.rate, random, self.alike)
        return "confuse"

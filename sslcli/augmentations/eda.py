"""Easy data augmentation (Wei and Zou 2019): synonyms, insertions, swaps, deletions; one of them a text and epoch."""

from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

from pydantic import Field

from sslcli.augment.synonyms import File, Neighbours
from sslcli.augment.text import Rewriting
from sslcli.augment.words import Synonyms, Text, delete, insert, replace, swap
from sslcli.data.store import Store
from sslcli.data.tokenizer import Tokenizer

Operation = Literal["replace", "insert", "swap", "delete"]


class Eda(Rewriting):
    """`rate`: of the words that are changed (alpha in the paper). `synonyms`: a file, or by default the model's own neighbours."""

    def __init__(
        self,
        *,
        probability: Annotated[float, Field(ge=0, le=1)],
        rate: Annotated[float, Field(gt=0, lt=1)],
        operations: Annotated[list[Operation], Field(min_length=1)],
        synonyms: Path | None,
    ):
        super().__init__(probability, rate)
        self.operations, self.file = operations, synonyms

    def begin(self, model: Any, tokenizer: Tokenizer, store: Store) -> None:
        super().begin(model, tokenizer, store)
        if {"replace", "insert"} & set(self.operations):
            self.synonyms: Synonyms = File(self.file) if self.file is not None else Neighbours(model, tokenizer)
            self.said = self.synonyms.said

    def rewrite(self, text: Text, random: Random) -> str:
        operation = random.choice(self.operations)
        if operation == "replace":
            replace(text, self.rate, random, self.synonyms)
        elif operation == "insert":
            insert(text, self.rate, random, self.synonyms)
        elif operation == "swap":
            swap(text, self.rate, random)
        else:
            delete(text, self.rate, random)
        return operation

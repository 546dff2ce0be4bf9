"""Self-training: a finished model labels the unlabelled rows, and a student learns those it was sure of, with noise (Noisy Student, Xie et
al. 2020)."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any

from pydantic import Field

from sslcli.augment import Augment
from sslcli.pseudo import Pseudo, Said
from sslcli.schema import Part


class SelfTraining(Pseudo):
    """The student begins where its teacher began; the noise is its dropout and the strong view.

    `teacher`: a finished run of the same labels; null: one is trained on the labels alone first, and every one of `rounds` students teaches
    the next.
    """

    name = "self_training"

    def __init__(
        self,
        model: Any,
        processor: Any,
        task: Any,
        store: Any,
        *,
        strong: Part[Augment],
        teacher: str | None,
        rounds: Annotated[int, Field(ge=1, le=20)],
        threshold: Annotated[float, Field(ge=0, lt=1)],
        balance: bool,
    ):
        super().__init__(model, processor, task, store, strong)
        self.teacher, self.threshold, self.balance = teacher, threshold, balance

    def labels(self, look: Any, ask: Callable[[str], Iterator[Said]]) -> Iterator[Said]:
        assert self.teacher is not None, "every round but the first names one"
        return ask(self.teacher)

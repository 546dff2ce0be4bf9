"""What differs between text and pictures, behind one face: data, the network that it starts from, and the files that stay."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from sslcli.core import Backbone, Batch, Objective
from sslcli.errors import BadInput
from sslcli.schema import Part


class Processor(Protocol):
    """What turns raw input into a network's: a tokenizer and the length of its rows, or the size and scale of pictures."""

    length: int  # tokens of a row, or pixels of a side
    said: str  # for the screen

    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class Start:
    """Where a run begins."""

    source: str | None  # from=
    head: str | None  # the pretrained head that objective or task borrows
    length: int  # tokens of a row where the user names no number
    columns: Sequence[str]  # roles that are read
    seed: int
    dropout: float | None = None
    random: bool = False  # the architecture of `source` with untrained weights
    views: int = 1  # of a picture that are used
    pooling: str | None = None  # of a text's states to one vector, where not as the model has it
    beside: str | None = None  # the pretrained head that a second, self-supervised loss borrows

    @classmethod
    def of(
        cls,
        goal: Part[Any],
        source: str | None,
        columns: Sequence[str],
        seed: int,
        dropout: float | None = None,
        random: bool = False,
        pooling: str | None = None,
        second: Part[Objective] | None = None,
    ) -> "Start":
        head, length, views = goal.cls.starts_from(goal.config), goal.cls.row_length, getattr(goal.cls, "least_views", 1)
        beside = second.cls.starts_from(second.config) if second else None
        return cls(source, head, length, columns, seed, dropout, random, views, pooling, beside)


class Modality(ABC):
    """The `data` node: what a user said about data of one kind, and how that kind becomes batches, networks and files."""

    room: ClassVar[str] = "modalities"
    corpus_roles: Sequence[str]  # that are read of a corpus
    verbatim: bool  # whether its text is kept beside its tokens
    seed: int
    train: Any
    unlabelled: Any  # data.train, where the user names nothing
    shots: int | None
    valid: Any
    test: Any
    labels: list[str] | None
    descriptions: dict[Any, str] | list[str] | None  # of labels
    columns: Any
    allow_changed: bool

    @property
    @abstractmethod
    def has_test(self) -> bool: ...

    def serving(self, goal: Part[Any]) -> "Modality":
        """The same, reading of a corpus what this objective needs."""
        self.corpus_roles, self.verbatim = goal.cls.columns(goal.config) or self.corpus_roles, goal.cls.verbatim
        return self

    @staticmethod
    def prepared(done: int) -> str:
        """How far preparing a corpus is."""
        return f"{done:,}"

    @abstractmethod
    def start(self, first: Start, model: Any, tokenizer: Any, augment: Any, say: Callable[[str], None]) -> tuple[Any, Any]:
        """(Processor, Backbone) of a new run; `model`, `tokenizer`, `augment` are checked nodes (schema.Part) or None."""

    @abstractmethod
    def corpus(self, processor: Any, progress: Callable[[int], None], only: str | None = None) -> Any:
        """Unlabelled stores by split (data.text.Prepared); `only`: the one split that is wanted, or "unlabelled": what data.unlabelled
        names, without it all inputs of data.train, a held-out part of which may be among them (its labels are not)."""

    @abstractmethod
    def beside(self, processor: Any, second: type[Objective], augment: Any) -> Any:
        """The processor of a self-supervised loss in a run whose task has this one: rows or views as that loss wants them."""

    @abstractmethod
    def examples(self, coder: Any, processor: Any, labels: list[str] | None = None, only: str | None = None) -> Any:
        """The same of labelled examples; `labels`: those of a trained model, to be kept."""

    @abstractmethod
    def reopen(self, folder: Path, goal: Part[Any], length: int, augment: Any, native: bool = True) -> tuple[Any, Any]:
        """(Processor, Backbone) out of a finished run's `model/`, for this objective. `native`: with the head in it."""

    @abstractmethod
    def save(self, folder: Path, model: Any, head: nn.Module | None, processor: Any, labels: Sequence[str] | None, multi: bool) -> None:
        """What plain transformers loads, where its classes can say it."""

    @abstractmethod
    def shown(self, batch: Batch, processor: Any, labels: Sequence[str]) -> str:
        """The first row of a batch as the network sees it, in a line."""

    def remarks(self, counted: Mapping[str, int]) -> Iterable[str]:
        """Sentences about what was found in a split, as counted while it was prepared."""
        return ()

    def changing(self, processor: Any, model: Backbone, store: Any) -> Any:
        """What changes the training batches of `store` as they are read; None where nothing does."""
        return None

    def preview(self, path: Path, processor: Any, store: Any) -> str | None:
        """Draw what training sees beside what it is made of; lines for the screen, where that can be said in words."""
        raise BadInput("--preview: draws views of pictures; this run has none")

    def views(self, processor: Any, store: Any) -> tuple[dict[str, Any], str | None]:
        """A receipt of how unlike the views of an input are, and a warning where they are too much so or too little."""
        return {}, None

    def watch(self, processor: Any, valid: Any, train: Any) -> Any:
        """What a network's features are worth, looked at beside pretraining (evidence.watch); None where nothing looks."""
        return None

    def compared(self, processor: Any, stores: Mapping[str, Any], labelled: Any, most: int) -> Callable[[Any], dict[str, float]]:
        """What a network's features are worth on one fixed sample of at most so many rows, by labels where there are any (`labelled`:
        data that was named for that), else by how they use their space: the same for every network, so that they can be compared."""
        raise BadInput("objective: features of this kind of data cannot be compared; name one objective")

    def transfer(self, model: Backbone, processor: Any, train: Any, test: Any) -> dict[str, Any]:
        """Scores of a pretrained network as it is, where the corpus has labels."""
        return {}

    def album(self, run: Path, goal: Any, model: Any, store: Any) -> tuple[list[str], str | None]:
        """Draw the pictures of a finished run: their names, and a line on those that could not be drawn."""
        return [], None

    @abstractmethod
    def graph(self, folder: Path, kind: str | None, longest: int, module: nn.Module | None = None) -> Any:
        """A finished model as a function of tensors (hf.graph.Graph), for exports; `module`: where the folder alone is not all of it."""

    @abstractmethod
    def sample(self, run: Path, count: int, processor: Any, coder: Any) -> Iterator[tuple[Batch, tuple[Tensor, ...], list[Any]]]:
        """Own rows of a finished run, a few at a time: for the trained model, for the exported one, and what was recorded of them."""

"""The six names: Backbone, Objective, Task, Adversary, Term (here) and Trainer (trainer.py).

A run minimises a sum of terms, L = sum_i w_i L_i. A term is an objective over a stream of batches, with a weight and an
adversary. A task is an objective that can also predict and be scored.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sslcli.calibration import Calibration

Batch: TypeAlias = dict[str, Tensor]
"""Tensors by name. `weight` (scalar) says how many examples or tokens the loss of this batch is a mean over; it is known before
the forward pass, so that accumulation and ranks can weigh by it while back-propagating each loss as it comes."""

Prediction: TypeAlias = dict[str, Any]
"""What a task says of one example: plain values, ready for a line of predictions.jsonl."""


@dataclass(frozen=True, slots=True)
class Output:
    loss: Tensor  # scalar, mean over `batch["weight"]` examples or tokens
    logs: Mapping[str, Tensor] = field(default_factory=dict)  # scalars, detached, on the device: the loop never waits for them
    logits: Tensor | None = None  # [N, ..., C]: distributions, one for each thing that `loss` is a mean over; what SMART and VAT compare
    seen: Mapping[str, Any] = field(default_factory=dict)  # what a collapse would show in (evidence.collapse)


class Backbone(nn.Module, ABC):
    """A network that turns inputs into vectors, behind one face whatever its family.

    Two towers (image and text) are one backbone whose `encode` looks at which keys the batch holds.
    """

    room: ClassVar[str] = "models"
    dim: int  # D, the width of what `encode` returns
    embedding: nn.Module  # where an adversary adds its noise: word, patch or frame embedding
    fresh_rate: ClassVar[float] = 1.0  # of a task's default learning rate, where nothing of the network was pretrained

    @abstractmethod
    def encode(self, batch: Batch) -> Tensor:
        """Hidden states [B, T, D]. A batch may name the places to look at (`visible`), which an MAE encoder then sees alone."""

    @abstractmethod
    def pool(self, hidden: Tensor, batch: Batch) -> Tensor:
        """One vector an example, [B, D]."""

    def checkpoint_gradients(self) -> None:
        """Trade time for memory: recompute activations in the backward pass."""
        raise ValueError(f"gradient checkpointing is not supported by {type(self).__name__}")


@dataclass
class Places:
    """What a permutation is drawn over: so many rows, each of a length (None: all alike)."""

    count: int
    lengths: np.ndarray | None = None
    width: int = 1  # of a row, in tokens, where all are alike
    packed: bool = False  # the network skips padding: rows of a batch need not be alike in length
    words: Callable[[], Iterator[np.ndarray]] | None = None  # the ids of all tokens that batches of these rows can hold, if that is known
    kinds: np.ndarray | None = None  # [count]: rows of one kind are drawn two and two, so that each meets its like in a batch


class Objective(nn.Module, ABC):
    """A loss and what it owns: heads, teacher, queue, and how records become its batches (masking, views)."""

    room: ClassVar[str] = "objectives"
    metric: ClassVar[str] = "loss"  # picks the best checkpoint; "": none is best, as where the loss moves with a teacher
    higher_is_better: ClassVar[bool] = False
    head_kind: ClassVar[str | None] = None  # the pretrained head that it borrows, if there is one: masked_lm, token_classification, ...
    couples_rows: ClassVar[bool] = False  # True: rows of a batch are each other's negatives, so a batch is never cut in pieces
    batch_size: ClassVar[int] = 32  # examples of a step where the user names no number,
    row_length: ClassVar[int] = 128  # and tokens of a row
    lr_times_width: ClassVar[float] = 0.13  # the default peak rate of fresh weights, for AdamW
    tuned_times_width: float = 0.04  # and of pretrained ones
    least: ClassVar[int] = 1  # rows without which there is nothing to learn
    verbatim: ClassVar[bool] = False  # it needs the text of a corpus, not only its tokens
    causes: ClassVar[Mapping[str, str]] = {}  # of a collapse, by what shows (evidence.collapse): the likeliest, a key of evidence.causes
    embeds: ClassVar[bool] = False  # what it makes is a vector a text: exports give that, not the states of its tokens

    @staticmethod
    def columns(config: Mapping[str, Any]) -> Sequence[str]:
        """Roles that it reads of a corpus, from its configuration; none: those of the modality (`text`, `image`)."""
        return ()

    @classmethod
    def starts_from(cls, config: Mapping[str, Any]) -> str | None:
        """The pretrained head that it borrows as it is configured; `language_model`: the one that the network was pretrained with."""
        return cls.head_kind

    @abstractmethod
    def rows(self, store: Any) -> Places:
        """The places of `store` that this objective draws from."""

    @abstractmethod
    def read(self, store: Any, rows: np.ndarray, keys: np.ndarray) -> Batch:
        """The batch of these rows. `keys` (one uint64 a row, of seed, epoch and row) is the only source of chance: the same row in
        the same epoch is masked alike whatever the rank, the micro-batch or the number of resumes. Runs in the prefetch thread."""

    @abstractmethod
    def forward(self, model: Backbone, batch: Batch) -> Output: ...

    def begin(self, model: Backbone, stream: Any) -> None:
        """Before the first step of a run (not of a resumed one): what the data decides, such as a head solved on the frozen network."""

    def conclude(self, model: Backbone, stream: Any) -> None:
        """After the last step, and before a score on the way: what is solved on the network as it is by now."""

    def after_step(self, model: Backbone, progress: float) -> None:
        """Called after each optimizer step, `progress` in [0, 1]: teachers, queues and centres move here."""

    def receipt(self, stream: Any) -> dict[str, Any]:
        """Measured traces that this objective's options took effect; an AssertionError where they contradict the configuration."""
        return {}

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """Held-out scores from the weighted means of `loss` and of the logs."""
        return means


class Task(Objective, ABC):
    """An objective that can also predict and be scored."""

    room: ClassVar[str] = "tasks"
    higher_is_better: ClassVar[bool] = True
    classifies: ClassVar[bool] = True  # its logits are of classes, not a descriptor
    head: nn.Module
    labels: Sequence[str]
    passes: int = 3  # over the data where the user names neither steps nor epochs,
    least_steps: int = 100  # and at least so many steps
    gallery: Any = None  # a store beside the one that is predicted, in which retrieval looks
    risk: float | None = None  # the share of answers that may be wrong; the rest is abstained from
    calibration: Calibration = Calibration()  # how logits are read, once held-out examples have said it

    @staticmethod
    @abstractmethod
    def coder(config: Mapping[str, Any]) -> Any:
        """How examples of this task are read (data.examples.Coder), from the task's configuration alone: no model is known yet."""

    @classmethod
    def untrained(cls, config: Mapping[str, Any], model: Any) -> Mapping[str, Any]:
        """How a pretrained model (its config.json) does this task as it is: the configuration with every `auto` decided."""
        raise ValueError("has to be trained first; ssl finetune does that")

    @abstractmethod
    def predict(self, model: Backbone, batch: Batch) -> list[Prediction]:
        """What is found in each row of the batch. A long example is several rows (windows)."""

    @abstractmethod
    def merge(self, parts: Sequence[Prediction], example: Any) -> Prediction:
        """The prediction for an example, from those of its rows."""

    def last_layer(self) -> nn.Linear | None:
        """What gives the `logits` that `predict` tells of each row, one a label: where a temperature can be divided in."""
        return None

    def look(self, model: Backbone, store: Any) -> None:
        """Before a store is predicted: what has to be known of all of it (a gallery's index)."""

    def index_lines(self) -> Iterator[dict[str, Any]]:
        """What was looked in, for index.jsonl."""
        return iter(())

    def kept(self, prediction: Prediction) -> Any:
        """What `score` needs of a prediction; all else is written down and forgotten."""
        return prediction["prediction"]

    @abstractmethod
    def score(self, predictions: Sequence[Any], gold: Sequence[Any]) -> dict[str, Any]:
        """The field's standard scores of what was predicted (`prediction` of each example) against gold, aligned by position."""


class Noise(Protocol):
    """Where an adversary perturbs, and by how much so far: zero when a batch comes. Each example has noise of its own, which every later
    pass over the batch adds. Sizes are in units of what is perturbed (noise.py): 0.1 is a tenth of it."""

    def feel(self, loss: Tensor) -> None:
        """Back-propagate `loss` into the noise alone. A loss that the loop has back-propagated was felt as well."""

    def follow(self, size: float, steepest: bool = True) -> None:
        """Take a step of that size along the gradient that was felt, in the adversary's norm; not `steepest`: along the gradient itself,
        its largest value made `size`."""

    def point(self, size: float) -> None:
        """The same from zero: whatever was there is forgotten."""

    def draw(self, size: float) -> None:
        """Random directions, of that size."""

    def within(self, radius: float) -> None:
        """Back to the nearest noise that is no larger than `radius`."""

    def logits(self, output: Output) -> Tensor:
        """Those of a pass; a BadInput where the objective has none."""


class Adversary(Protocol):
    """A generator of losses around one term; their gradients are summed. `forward` is a pass with the noise as it is, the first one clean,
    all with the same dropout. The loop back-propagates each output before asking for the next."""

    room: ClassVar[str] = "adversarial"

    def __call__(self, forward: Callable[[], Output], noise: Noise) -> Iterator[Output]: ...


class Export(Protocol):
    """A format that a finished model can leave in. What was written is opened again and compared with the trained model."""

    room: ClassVar[str] = "exports"

    def write(self, graph: Any, folder: Path) -> None:
        """A finished model (hf.graph.Graph) into an empty folder."""

    def open(self, graph: Any, folder: Path) -> Callable[[Sequence[Tensor]], np.ndarray]:
        """What was written, as a function of the graph's inputs."""


@dataclass
class Term:
    name: str
    objective: Objective
    stream: Any  # data.stream.Stream: step -> this rank's micro-batches; random access, so that resuming is one integer
    adversary: Adversary
    weight: float = 1.0


class _Gather(torch.autograd.Function):
    """All ranks' rows, in the order of ranks; gradients find their way back to the rank that made them."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        ctx.rank, ctx.rows = dist.get_rank(), len(mine)
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[ctx.rank * ctx.rows : (ctx.rank + 1) * ctx.rows]


def gathered(rows: Tensor) -> tuple[Tensor, int]:
    """(rows of all ranks [world * B, D], where this rank's begin): negatives are shared, with gradient."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows, 0
    return _Gather.apply(rows), dist.get_rank() * len(rows)

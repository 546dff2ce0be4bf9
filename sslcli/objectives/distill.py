"""A small network learns the vectors that a finished one gives to texts (of sentences: Reimers and Gurevych 2020)."""

from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslcli.core import Backbone, Batch, Objective, Output, Places
from sslcli.data.blocks import Documents, padded
from sslcli.data.pairs import laid
from sslcli.data.store import Store
from sslcli.data.tokenizer import Tokenizer
from sslcli.hf.folder import model_folder
from sslcli.losses import off_diagonal


class Distill(Objective):
    """`teacher`: a run, a model folder or a hub name; it reads the corpus's own text with its own tokenizer, so that the two need have
    nothing in common. It learns nothing, and stands in no checkpoint.

    `loss`: mse or cosine of the pooled vectors, through a linear layer where they differ in width; relational: of the cosines between
    the texts of a batch (Park et al. 2019, Tung and Mori 2019), which asks for no layer.
    """

    embeds = verbatim = True
    lr_times_width = 0.4
    batch_size, row_length = 64, 128

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        *,
        teacher: Annotated[str, Field(min_length=1)],
        loss: Literal["mse", "cosine", "relational"],
        length: Annotated[int, Field(ge=8)],
    ):
        super().__init__()
        folder = model_folder(teacher, "objective.teacher")
        network = type(model).load(folder, None, 0.0).requires_grad_(False).eval()
        words = Tokenizer.load(folder)
        words.length = min(length, network.positions)
        self.loss, self.documents, self.teacher = loss, Documents(tokenizer), _Teacher(network, words)
        self.couples_rows = loss == "relational"  # type: ignore[misc]
        self.least = 2 if self.couples_rows else 1  # type: ignore[misc]
        apart = loss != "relational" and network.dim != model.dim
        self.project = nn.Linear(model.dim, network.dim) if apart else None

    def rows(self, store: Store) -> Places:
        return self.documents.places(store)

    def read(self, store: Store, rows: np.ndarray, keys: np.ndarray) -> Batch:
        batch = self.documents.batch(self.documents.read(store, rows))
        texts = [x.tobytes().decode("utf-8") for x in store["text"].take(self.documents.rows(store)[rows, 0])]
        taught = {f"teacher_{key}": value for key, value in self.teacher.read(texts).items()}
        return {**batch, **taught, "weight": torch.tensor(float(len(rows)))}

    def forward(self, model: Backbone, batch: Batch) -> Output:
        vector = model.pool(model.encode(batch), batch).float()
        goal = self.teacher({key.removeprefix("teacher_"): value for key, value in batch.items() if key.startswith("teacher_")})
        said = vector if self.project is None else self.project(vector.to(self.project.weight.dtype)).float()
        if self.loss == "relational":
            ours, theirs = (F.normalize(x, dim=-1) for x in (vector, goal))
            loss = F.mse_loss(off_diagonal(ours @ ours.t()), off_diagonal(theirs @ theirs.t()))
            return Output(loss, {}, seen={"first": vector})
        cosine = F.cosine_similarity(said, goal, dim=-1).mean()
        return Output(
            F.mse_loss(said, goal) if self.loss == "mse" else 1 - cosine, {"teacher_cosine": cosine.detach()}, seen={"first": vector}
        )

    def receipt(self, stream: Any) -> dict[str, Any]:
        """Whose vectors were learnt; that the teacher is what it was."""
        return {"teacher": self.teacher.receipt(), "cut": self.documents.cut}


class _Teacher:
    """A finished network and its tokenizer: no module, so that nobody trains, lowers or saves it."""

    def __init__(self, network: Any, words: Tokenizer):
        self.network, self.words = network, words
        self.before = self._sum()

    def read(self, texts: list[str]) -> Batch:
        ids, mask = padded([ids for ids, _ in laid(self.words, texts, self.words.length)], int(self.words.pad or 0))
        return {"ids": ids} if mask is None else {"ids": ids, "mask": mask}

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """[B, D], in fp32 whatever the student is kept in."""
        network = self.network.to(batch["ids"].device)
        with torch.autocast(batch["ids"].device.type, enabled=False):
            return network.pool(network.encode(batch), batch).float()

    def receipt(self) -> dict[str, Any]:
        assert self._sum() == self.before, "the teacher's weights have moved"
        size = sum(p.numel() for p in self.network.parameters())
        return {**self.network.loaded, "parameters": size, "pooling": self.network.pooling, "checksum": self.before}

    def _sum(self) -> float:
        return float(sum(p.detach().double().abs().sum().cpu() for p in self.network.parameters()))

"""Most words of a sentence are deleted; from the one vector of what is left, a small decoder writes it again (TSDAE, Wang et al. 2021)."""

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from sslcli.core import Backbone, Batch, Objective, Output, Places
from sslcli.data import chance
from sslcli.data.blocks import Documents, padded
from sslcli.data.store import Store
from sslcli.data.tokenizer import Tokenizer
from sslcli.heads import Layer
from sslcli.losses import linear_cross_entropy

Count = Annotated[int, Field(ge=1)]


class TSDAE(Objective):
    """`ratio` of the tokens is deleted, at least one stays. The decoder's word embeddings, in and out, are the network's; all that it
    hears of the text is the pooled vector: attention over that one alone is a linear layer of it, the same at every place."""

    embeds = True
    batch_size, row_length = 32, 128

    def __init__(
        self, model: Any, tokenizer: Tokenizer, *, ratio: Annotated[float, Field(ge=0, lt=1)], layers: Count, heads: Count, inner: Count
    ):
        width = int(model.embedding.weight.shape[1])  # that of the word embeddings, which some families have narrower than the network
        if width % heads:
            raise ValueError(f"heads={heads} do not divide the {width} features of this network's word embeddings; use another number")
        super().__init__()
        self.ratio, self.documents = ratio, Documents(tokenizer)
        self.start, self.stop = int((tokenizer.prefix or [tokenizer.end])[0]), int((tokenizer.suffix or [tokenizer.end])[0])
        self.positions = nn.Embedding(self.documents.longest + 1, width)
        self.told = nn.ModuleList(nn.Linear(model.dim, width) for _ in range(layers))
        self.decoder = nn.ModuleList(Layer(width, heads, inner) for _ in range(layers))
        self.leave = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(len(model.embedding.weight)))
        nn.init.normal_(self.positions.weight, std=0.02)

    def rows(self, store: Store) -> Places:
        return self.documents.places(store)

    def read(self, store: Store, rows: np.ndarray, keys: np.ndarray) -> Batch:
        whole = self.documents.read(store, rows)
        draws = chance.uniform(keys, max(map(len, whole)))
        left = [text[self.chosen(draw[: len(text)])] for text, draw in zip(whole, draws, strict=True)]
        said, real = padded([np.append(text, self.stop) for text in whole], -1)
        asked, _ = padded([np.insert(text, 0, self.start) for text in whole], self.documents.pad)
        where = torch.arange(said.numel()) if real is None else real.flatten().nonzero()[:, 0]
        batch = {**self.documents.batch(left), "asked": asked, "where": where, "target": said.flatten()[where]}
        deleted = 1 - sum(map(len, left)) / sum(map(len, whole))
        return {**batch, "weight": torch.tensor(float(len(where))), "deleted": torch.tensor(deleted)}

    def chosen(self, draw: np.ndarray) -> np.ndarray:
        """The places that stay of so many, in order."""
        stay = max(1, round((1 - self.ratio) * len(draw)))
        return np.sort(np.argsort(draw, kind="stable")[:stay])

    def forward(self, model: Backbone, batch: Batch) -> Output:
        vector = model.pool(model.encode(batch), batch)
        hidden = self.decode(model, vector, batch["asked"]).flatten(0, 1)[batch["where"]]  # [N, E]
        words: Any = model.embedding
        loss, accuracy = linear_cross_entropy(hidden, words.weight, self.bias, batch["target"])
        return Output(loss, {"accuracy": accuracy.detach()}, seen={"first": vector})

    def decode(self, model: Backbone, vector: Tensor, asked: Tensor) -> Tensor:
        """What the decoder would say after each of the tokens asked [B, T] of the texts with these vectors [B, D]: [B, T, E]."""
        x = model.embedding(asked) + self.positions(torch.arange(asked.shape[1], device=asked.device))
        for told, layer in zip(self.told, self.decoder, strict=True):
            x = layer(x + told(vector)[:, None], causal=True)
        return self.leave(x)

    def receipt(self, stream: Any) -> dict[str, Any]:
        """The share of tokens that a few batches delete."""
        batches = [b for step in range(min(8, stream.steps_per_epoch)) for b in stream.batches(step)]
        tokens = [float(b["weight"]) - len(b["ids"]) for b in batches]
        share = sum(float(b["deleted"]) * n for b, n in zip(batches, tokens, strict=True)) / sum(tokens)
        long = sum(tokens) > 20 * sum(len(b["ids"]) for b in batches)  # of very short texts the one that stays is a large share
        assert not long or abs(share - self.ratio) < 0.05, f"{share:.3f} of the tokens are deleted, not {self.ratio}"
        return {"deleted": {"asked": self.ratio, "measured": round(share, 4)}, "cut": self.documents.cut}

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        return {"loss": means["loss"], "token_accuracy": means["accuracy"]}

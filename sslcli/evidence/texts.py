"""What the vectors of a text network are worth on one fixed sample, so that networks can be compared."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslcli.core import Backbone, Places
from sslcli.data import chance
from sslcli.data.blocks import Documents
from sslcli.data.labels import named
from sslcli.data.store import Store
from sslcli.data.stream import in_order, to_device
from sslcli.data.text import TextData
from sslcli.data.tokenizer import Tokenizer
from sslcli.errors import BadInput
from sslcli.evidence import neighbours, probe, spread
from sslcli.losses import spread as deviation

TOKENS = 16_384  # of one forward pass
READ = 100_000  # labelled texts that the sample is drawn from
LEAST = 8  # tokens of a half of a text
SEED = 0x7E875

Labelled = list[tuple[str, str]]


class Compared:
    """`compared(model)`. With labels: `knn` and `probe`, each leaving one out; without: `alignment`, that of the two halves of a document.
    With scored pairs (`pairs`): `spearman`. Always: `rankme`, `feature_std`, `uniformity`."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        store: Store,
        labelled: Labelled | None,
        pairs: Callable[[Any], dict[str, float]] | None,
        most: int,
    ):
        self.documents, self.pairs, self.label = Documents(tokenizer), pairs, None
        if labelled is None:
            self.texts = self.documents.read(store, np.sort(chance.permutation(SEED, 0, len(self.documents.rows(store)))[:most]))
            halves = [(t[: len(t) // 2], t[len(t) // 2 :]) for t in self.texts if len(t) >= 2 * LEAST] or [(t, t) for t in self.texts]
            self.halves = [list(side) for side in zip(*halves, strict=True)]
        else:
            chosen = [labelled[i] for i in np.sort(chance.permutation(SEED, 0, len(labelled))[:most]).tolist()]
            names = {name: i for i, name in enumerate(sorted({label for _, label in chosen}))}
            self.label = torch.tensor([names[label] for _, label in chosen])
            coded = tokenizer.hf([text for text, _ in chosen], add_special_tokens=False)["input_ids"]
            self.texts = [np.array(ids or [tokenizer.unknown or 0], np.int64)[: self.documents.longest] for ids in coded]

    def __call__(self, model: Backbone) -> dict[str, float]:
        model.eval()
        found = self._vectors(model, self.texts)
        scores = {"rankme": spread.rankme(found), "feature_std": float(deviation(found)), "uniformity": spread.uniformity(found)}
        if self.label is None:
            scores["alignment"] = spread.alignment(*(self._vectors(model, half) for half in self.halves))
        else:
            label = self.label.to(found.device)
            scores |= {
                "rows": len(label),
                "knn": neighbours.accuracy(found, label),
                "probe": probe.ridge(found, label, int(label.max()) + 1)[2],
            }
        return {**scores, **(self.pairs(model) if self.pairs is not None else {})}

    @torch.no_grad()
    def _vectors(self, model: Backbone, texts: list[np.ndarray]) -> Tensor:
        device = next(model.parameters()).device
        vectors: Tensor | None = None
        for part in in_order(Places(len(texts), np.array([len(t) for t in texts])), TOKENS):
            batch = to_device(self.documents.batch([texts[i] for i in part]), device)
            made = model.pool(model.encode(batch), batch).float()
            vectors = made.new_zeros(len(texts), made.shape[1]) if vectors is None else vectors
            vectors[torch.from_numpy(np.asarray(part)).to(device)] = made
        assert vectors is not None
        return vectors


def labels_beside(data: TextData, perhaps: bool) -> Labelled | None:
    """(text, label) of the training data where it has labels of more than one kind. `perhaps`: it need not have any."""
    try:
        reader = data.reader("train", ("text", "label"))
        assert reader is not None
        found = [(str(e["text"]), e["label"]) for _, (_, _, e) in zip(range(READ), reader, strict=False)]
        reader.finish()
    except BadInput:
        if perhaps:
            return None
        raise
    some = [(text, named(label)) for text, label in found if text.strip() and not isinstance(label, (list, dict)) and label is not None]
    kinds = len({label for _, label in some})
    if 1 < kinds < len(some):
        return some
    if perhaps:
        return None
    raise BadInput("objective.labelled: needs texts with labels of more than one kind, several texts of a kind")

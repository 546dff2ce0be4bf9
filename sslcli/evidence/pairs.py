"""What the vectors of a network are worth beside its pretraining: whether pairs of texts that people call alike are near."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sslcli import metrics
from sslcli.core import Backbone, Places
from sslcli.data import chance
from sslcli.data.blocks import padded
from sslcli.data.store import Store
from sslcli.data.stream import in_order, to_device

MOST, TOKENS = 1000, 16_384  # pairs of a look, and tokens of one forward pass
SEED = 0x9A125


class PairWatch:
    """`watch(model)`: Spearman's correlation over one fixed sample of the pairs with scores (data.pairs)."""

    metric = "spearman"  # what a checkpoint is best chosen by; higher is better

    def __init__(self, store: Store, pad: int):
        self.store, self.pad = store, pad
        self.sample = np.sort(chance.permutation(SEED, 0, store.count)[:MOST])

    @property
    def rows(self) -> int:
        """Texts that a look costs a forward pass of."""
        return 2 * len(self.sample)

    def __call__(self, model: Backbone, last: bool = False) -> dict[str, float]:
        return {"spearman": metrics.similarity(*compared(model, self.store, self.sample, self.pad))["spearman"]}


def transfer(model: Backbone, store: Store, pad: int) -> dict[str, Any]:
    """The same over all pairs, once, at the end, with intervals."""
    return metrics.similarity(*compared(model, store, np.arange(store.count), pad))


@torch.no_grad()
def compared(model: Backbone, store: Store, rows: np.ndarray, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """(scores, cosines) of pairs, [N] each."""
    device = next(model.parameters()).device
    said: Tensor = torch.zeros(len(rows), device=device)
    places = Places(len(rows), (store["ids"].lengths() + store["ids_b"].lengths())[rows])
    for part in in_order(places, TOKENS):
        ids, mask = padded([*store["ids"].take(rows[part]), *store["ids_b"].take(rows[part])], pad)
        batch = to_device({"ids": ids} if mask is None else {"ids": ids, "mask": mask}, device)
        first, second = F.normalize(model.pool(model.encode(batch), batch).float(), dim=-1).chunk(2)
        said[torch.from_numpy(part).to(device)] = (first * second).sum(-1)
    return np.asarray(store["score"].values[rows, 0], float), said.cpu().numpy()

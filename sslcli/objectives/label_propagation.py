"""Label propagation: labels flow from the few rows that have one to rows that are like them, before the network learns them all (Iscen et
al. 2019)."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from sslcli.augment import Augment
from sslcli.propagation import certainty, propagated
from sslcli.pseudo import Pseudo, Said
from sslcli.schema import Part


class LabelPropagation(Pseudo):
    """`neighbours` of each row, by the cosine of vectors as the run begins, seen from their mean; `reach`: what share of its label a row
    takes from them, pass by pass (alpha in the paper; near 1, labels flow far). A row counts by how certain its label is,
    1 - entropy / log C, over the mean of those that are learnt."""

    name = "label_propagation"
    who = "the graph"

    def __init__(
        self,
        model: Any,
        processor: Any,
        task: Any,
        store: Any,
        *,
        strong: Part[Augment],
        neighbours: Annotated[int, Field(ge=1, le=1000)],
        reach: Annotated[float, Field(gt=0, lt=1)],
        threshold: Annotated[float, Field(ge=0, lt=1)],
        balance: bool,
    ):
        super().__init__(model, processor, task, store, strong)
        self.neighbours, self.reach, self.threshold, self.balance = neighbours, reach, threshold, balance

    def labels(self, look: Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]], ask: Any) -> Iterator[Said]:
        known, label, bank = look()
        seen, shares = ~np.isnan(bank[:, 0]), np.zeros((len(bank), len(self.task.labels)))
        found = propagated(known, np.eye(len(self.task.labels))[label], bank[seen], self.neighbours, self.reach)
        shares[seen], self.warning = found.shares, found.doubt()
        sure = certainty(shares)
        return ((self.task.labels[row.argmax()] if share else None, float(share)) for row, share in zip(shares, sure, strict=True))

    def counting(self, confidence: np.ndarray) -> np.ndarray:
        return confidence

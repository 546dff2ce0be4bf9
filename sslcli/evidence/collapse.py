"""Has a network that learns without labels collapsed? Told from what a training step has computed in any case (`Output.seen`).

| key of `seen` | what it is |
|---|---|
| first, second | vectors [B, D] that the network gives to the two views (or to what there is) |
| projected | [B, E]: what the loss compares of the first view |
| tokens | hidden states [B, T, D] |
| said | distributions [B, K] that are to be learnt: a teacher's, or codes |
| deviation | of projections, where the loss wants it to be 1: a scalar |
| chance | the loss of a guess, a number |
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sslcli.evidence import spread
from sslcli.losses import entropy
from sslcli.losses import spread as deviation

ROWS, PLACES = 128, 16  # rows, and tokens of a row, that are looked at
LEAST = 8  # rows that say something
CONSTANT = 0.01  # spread below which all rows are one
SAID = 1e-4  # nats: less is said of nothing
ALIKE = 1e-5  # of the largest value: two vectors that differ by less are one


@dataclass(frozen=True)
class Rule:
    """A collapse shows as `symptom` where `measure` is below `limit` (`over`: above it) at `looks` looks in a row, from step `after` on."""

    symptom: str
    measure: str
    limit: float
    after: int = 50
    looks: int = 2
    over: bool = False

    def broken(self, value: float) -> bool:
        return value > self.limit if self.over else value < self.limit


IDLE = Rule("idle", "moved", 1e-5, looks=1)  # of a part of the objective: how far its weights turned

# Limits stand between what healthy runs came to in their first 200 steps and what planted collapses did (scripts/bench collapse).
# The first that is broken names the cause: what follows from it comes later in this list.
RULES = (
    Rule("same_views", "same_views", 0.9, after=1, looks=1, over=True),
    Rule("same_views", "same_views", 0.25, after=1, over=True),  # not of one batch alone: it may be that of the shortest texts
    Rule("constant", "spread", CONSTANT),
    Rule("tokens", "token_spread", CONSTANT),
    Rule("uninformed", "shared", 0.9, over=True),
    Rule("shrunk", "deviation", 0.1),
    Rule("narrow", "projected_rank", 2.0),
    Rule("guessing", "gain", 0.01),
)


@torch.no_grad()
def measured(seen: Mapping[str, Any], loss: Tensor) -> dict[str, float]:
    """Spread, RankMe, uniformity and alignment of vectors; entropy of what is said of a row, how many codes are used, and the share of it
    (of its divergence from saying nothing) that is said of all rows alike; how far the loss is below that of a guess, as a share. Of few
    rows, nothing; of what is not finite neither."""
    if not all(bool(torch.isfinite(x).all()) for x in (loss, *seen.values()) if isinstance(x, Tensor)):
        return {}
    found: dict[str, float] = {}
    if "tokens" in seen:
        some = _some(seen["tokens"], ROWS // PLACES)
        found |= _tokens(some[:, :: -(-some.shape[1] // PLACES)].float())
    if "first" in seen and len(seen["first"]) >= LEAST:
        first = seen["first"][:ROWS].float()
        found |= {"spread": float(deviation(first)), "rankme": spread.rankme(first), "uniformity": spread.uniformity(first)}
        if "second" in seen:
            second = seen["second"][:ROWS].float()
            found["alignment"] = spread.alignment(first, second)
            if found["spread"] > CONSTANT:
                found["same_views"] = float(((first - second).abs().amax(1) <= ALIKE * first.abs().amax(1)).float().mean())
    if "projected" in seen and len(seen["projected"]) >= LEAST:
        found["projected_rank"] = spread.rankme(seen["projected"][:ROWS])
    if "said" in seen and len(seen["said"]) >= LEAST:
        said = seen["said"].float()
        each, together, nothing = float(entropy(said).mean()), float(entropy(said.mean(0))), math.log(said.shape[1])
        found |= {"entropy": each, "used": math.exp(together), "shared": (nothing - together) / max(nothing - each, SAID)}
    if "deviation" in seen:
        found["deviation"] = float(seen["deviation"])
    if "chance" in seen:
        found["gain"] = 1 - float(loss) / seen["chance"]
    return found


def _some(x: Tensor, most: int) -> Tensor:
    """`most` rows or fewer, from all over."""
    return x[:: -(-len(x) // most)]


def _tokens(hidden: Tensor) -> dict[str, float]:
    """Of hidden states [B, T, D]: spread over the rows, the places alike; over the places of a row; and the rank of all."""
    rows, places = hidden.shape[:2]
    found = {"rankme": spread.rankme(hidden.flatten(0, 1))}
    if rows >= LEAST:
        found["spread"] = float(deviation(hidden.flatten(1)))
    if places >= LEAST:
        found["token_spread"] = float(torch.stack([deviation(row) for row in hidden]).mean())
    return found

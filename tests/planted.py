"""What is planted to be found: score curves whose truth is known (with pretraining, L labels teach what k L teach without), collapses."""

from typing import Any

import numpy as np
import torch

from sslcli.evidence import causes
from sslcli.evidence.collapse import CONSTANT, IDLE, RULES, measured
from sslcli.evidence.efficiency import Curve

BUDGETS = np.array([80, 160, 320, 640, 1280])


def planted(seed: int, k: float, noise: float = 0.015, flat: bool = False, seeds: int = 3, rows: int = 1000) -> dict[str, Curve]:
    """Seeds differ by `noise` in each run and by two thirds of it in all runs of a seed and budget; rows differ in difficulty, which both
    networks see alike. `flat`: labels teach nothing."""
    random = np.random.default_rng(seed)
    shared = random.normal(0, noise / 1.5, (seeds, len(BUDGETS)))
    difficulty = random.random(rows)
    found = {}
    for name, worth in (("pretrained", k), ("from scratch", 1.0)):
        truth = np.full(len(BUDGETS), 0.1) if flat else 0.9 - 1.5 * (BUDGETS * worth) ** -0.35
        p = (truth + shared + random.normal(0, noise, shared.shape)).clip(0, 1)
        drawn = (difficulty + random.random((*p.shape, rows))) / 2  # triangular
        below = np.where(p < 0.5, np.sqrt(p / 2), 1 - np.sqrt((1 - p) / 2))  # its quantile at p
        right = (drawn < below[..., None]).astype(float)
        found[name] = Curve(np.stack([right, np.ones_like(right)], -1))
    return found


def a_collapse_shows(objective: Any, model: Any, batch: Any, monkeypatch: Any) -> None:
    """A network that gives every input one vector is told apart from a fresh one; each cause that is named has its settings."""
    encode = model.encode
    output = objective(model, batch)
    fresh = measured(output.seen, output.loss.detach())
    monkeypatch.setattr(model, "encode", lambda inner: torch.ones_like(encode(inner)))
    output = objective(model, batch)
    dead = measured(output.seen, output.loss.detach())
    assert fresh["spread"] > CONSTANT > dead["spread"] and fresh["rankme"] > 2 > dead["rankme"]
    for rule in (*RULES, IDLE):
        assert causes.sentence(causes.alarm(50, rule, 0.5, objective, part="head"))
    assert {*objective.causes} <= {rule.symptom for rule in RULES}

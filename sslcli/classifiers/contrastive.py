"""Texts of a label are drawn together and others apart; then a linear layer is solved on the vectors that this leaves.

The idea of SetFit (Tunstall et al. 2022) with the loss of Khosla et al. (2020): every two texts of a batch are a pair, so B texts that
are encoded once teach B^2 pairs. Pairs are the order in which rows are drawn (data.stream): there is no list of them.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sslcli.classifiers.classifier import Setting, solve, vectors
from sslcli.classifiers.linear import Linear
from sslcli.core import Backbone, Batch, Output, gathered
from sslcli.errors import BadInput
from sslcli.losses import supervised_contrastive

TEMPERATURE = 0.1  # of cosines, where the user names none
TOKENS = 4096  # padded tokens of a batch that keep what the backward pass needs; of longer batches, pieces are computed again


class Contrastive(Linear):
    kind, pooled, in_pairs = "contrastive", True, True
    batch_size, passes, least_steps, tuned_times_width = 64, 1, 30, 0.02

    def __init__(self, model: Any, tokenizer: Any, setting: Setting):
        super().__init__(model, tokenizer, setting)
        self.only("single", "ordinal")
        if setting.counts and max(setting.counts.values()) < 2:
            raise ValueError("head=contrastive: no label has two texts to compare; use head=linear, or more labelled texts")
        self.temperature = float(setting.options["temperature"] or TEMPERATURE)
        self.head.requires_grad_(False)  # solved, not trained

    def forward(self, model: Backbone, batch: Batch) -> Output:
        if "kept" in batch:
            raise BadInput("augment: mixes texts of several labels, and task.head=contrastive compares labels; use task.head=linear")
        mine, label = F.normalize(_vectors(model, batch).float(), dim=-1), batch["label"]
        everyone, first = gathered(mine)
        labels = gathered(label[:, None].float())[0][:, 0].long()
        loss, accuracy = supervised_contrastive(mine, label, everyone, labels, self.temperature, first)
        return Output(loss, {"pair_accuracy": accuracy})

    def begin(self, model: Backbone, stream: Any) -> None:
        """Nothing: no step reads the layer."""

    def conclude(self, model: Backbone, stream: Any) -> None:
        """From nought, in fp32: the same layer whenever it is asked for."""
        known, label = vectors(model, stream)
        layer = copy.deepcopy(self.head).float().requires_grad_(True)
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
        solve(layer, known, lambda logits: self.setting.losses(logits, label).mean())
        with torch.no_grad():
            for mine, solved in zip(self.head.parameters(), layer.parameters(), strict=True):
                mine.copy_(solved)


def _vectors(model: Backbone, batch: Batch) -> Tensor:
    """[B, D]; of a long batch by pieces whose states are forgotten and computed again in the backward pass (exact, as in GradCache)."""

    def vector(ids: Tensor, mask: Tensor | None) -> Tensor:
        part = {"ids": ids} if mask is None else {"ids": ids, "mask": mask}
        return model.pool(model.encode(part), part)

    ids, mask = batch["ids"], batch.get("mask")
    rows = max(1, TOKENS // ids.shape[1])
    if len(ids) <= rows:
        return vector(ids, mask)
    masks = [None] * -(-len(ids) // rows) if mask is None else mask.split(rows)
    return torch.cat([checkpoint(vector, i, m, use_reentrant=False) for i, m in zip(ids.split(rows), masks, strict=True)])

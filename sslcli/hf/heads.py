"""Heads on a Hugging Face network: the family's own, borrowed; or a pooled classifier of ours that the family's class can hold.

Training keeps network and head apart, so that one network carries several heads (joint training) and vocabulary logits are computed
only where a loss needs them. `assemble` puts both together again into the class that plain transformers loads.
"""

import copy
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

AUTO = {
    "masked_lm": transformers.AutoModelForMaskedLM,
    "causal_lm": transformers.AutoModelForCausalLM,
    "sequence_classification": transformers.AutoModelForSequenceClassification,
    "token_classification": transformers.AutoModelForTokenClassification,
}

# families whose classification class can express a linear layer on the mean of all hidden states
ADDED = "sslcli_pooling_layer"  # says in config.json that the last layer pools, and is none of the network's own
BERT_LIKE = {"bert", "roberta", "xlm-roberta", "camembert"}
POOLED = BERT_LIKE | {"modernbert"}
SCALE = 1e4  # of the mean against the one residual that stays in the pooling layer: leaves an error of 1e-4
SMALL = 1e-3  # tanh(x * SMALL) / SMALL is x to 1e-6


class _Given(nn.Module):
    """Stands where the network stood: returns the hidden states that were handed over."""

    hidden: Tensor

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPoolingAndCrossAttentions:
        pooler = self.__dict__.get("pooler")
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=self.hidden,
            pooler_output=pooler(self.hidden) if pooler is not None else None,
        )


class Borrowed(nn.Module):
    """The family's own head of an `AutoModelFor...`, applied to hidden states [B, T, D]."""

    def __init__(self, full: PreTrainedModel):
        super().__init__()
        self.full = full
        base = full.base_model
        given = _Given()
        pooler = getattr(base, "pooler", None)
        if isinstance(pooler, nn.Module):
            given.__dict__["pooler"] = pooler  # a part of the network: called here, owned there
        setattr(full, full.base_model_prefix, given)
        self.given = given

    def forward(self, hidden: Tensor, ids: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """`ids` and `mask` [B, T]: what a head that pools tells padding by."""
        self.given.__dict__["hidden"] = hidden
        try:
            return self.full(input_ids=ids, attention_mask=mask, inputs_embeds=None if ids is not None else hidden).logits
        finally:
            del self.given.__dict__["hidden"]


class VocabularyHead(Borrowed):
    """A language model's head, with its last (vocabulary) layer reachable on its own: `linear_cross_entropy` needs no logits."""

    def __init__(self, full: PreTrainedModel):
        decoder = full.get_output_embeddings()
        super().__init__(full)
        self.__dict__["decoder"] = decoder
        self.splits = self._splits()

    @property
    def weight(self) -> Tensor:
        return self.__dict__["decoder"].weight

    @property
    def bias(self) -> Tensor | None:
        return self.__dict__["decoder"].bias

    def features(self, hidden: Tensor) -> Tensor:
        """What the vocabulary layer sees, [N, D] -> [N, D]."""
        decoder = self.__dict__["decoder"]
        decoder.forward = lambda x: x
        try:
            return self(hidden[None])[0]
        finally:
            del decoder.forward

    def _splits(self) -> bool:
        """Whether logits are just the vocabulary layer of the features (some families scale or cap them afterwards)."""
        with torch.no_grad():
            width = self.full.config.get_text_config().hidden_size
            probe = torch.linspace(-1, 1, 2 * width).view(2, width).to(self.weight.dtype)
            return torch.allclose(F.linear(self.features(probe), self.weight, self.bias), self(probe[None])[0], atol=1e-4)


class Pooled(nn.Module):
    """A classifier on one vector an example: normalise, optionally one tanh layer, then linear.

    The normalisation carries no weights: a linear layer follows, which would absorb them. `normalise_last`: after the tanh layer,
    where the family's own class has it.
    """

    def __init__(self, dim: int, labels: int, layers: int, eps: float, dropout: float, normalise_last: bool):
        super().__init__()
        self.dim, self.eps, self.normalise_last = dim, eps, normalise_last and layers == 2
        self.dense = nn.Linear(dim, dim) if layers == 2 else None
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(dim, labels)
        for layer in filter(None, (self.dense, self.out)):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, vector: Tensor) -> Tensor:
        """[B, D] -> [B, labels]"""
        if not self.normalise_last:
            vector = F.layer_norm(vector, (self.dim,), eps=self.eps)
        if self.dense is not None:
            vector = torch.tanh(self.dense(vector))
        if self.normalise_last:
            vector = F.layer_norm(vector, (self.dim,), eps=self.eps)
        return self.out(self.dropout(vector))


def assemble(
    base: PreTrainedModel, head: nn.Module | None, labels: list[str] | None, multi: bool = False, pooling: str = "mean"
) -> PreTrainedModel:
    """The model that plain transformers loads: the class with this head on this network, in fp32, label names set. `pooling` (mean or
    cls): of what a classifier of ours sees."""
    if head is None:
        full = copy.deepcopy(base)
    elif isinstance(head, Borrowed):
        full = copy.copy(head.full)
        full.__dict__["_modules"] = dict(head.full._modules)
        setattr(full, full.base_model_prefix, base)
        full = copy.deepcopy(full)
    else:
        full = _classifier(base, head, pooling)  # type: ignore[arg-type]
    full.config._attn_implementation = "sdpa"
    full = full.float().eval()
    if labels:
        full.config.id2label = dict(enumerate(labels))
        full.config.label2id = {label: i for i, label in enumerate(labels)}
        full.config.problem_type = "multi_label_classification" if multi else "single_label_classification"
    full.config.architectures = [type(full).__name__]
    return full


def _classifier(base: PreTrainedModel, head: Pooled, pooling: str) -> PreTrainedModel:
    config = copy.deepcopy(base.config)
    config.num_labels = head.out.out_features
    if config.model_type in BERT_LIKE:
        config.num_hidden_layers += 1
        setattr(config, ADDED, True)
    else:
        config.classifier_activation = "tanh" if head.dense is not None else "linear"
        config.classifier_pooling, config.classifier_bias, config.classifier_dropout = pooling, True, 0.0
    full = AUTO["sequence_classification"].from_config(config, attn_implementation="sdpa")
    state = {f"{full.base_model_prefix}.{k}": v.float() for k, v in base.state_dict().items()}
    full.load_state_dict(state, strict=False)
    with torch.no_grad():
        if config.model_type in BERT_LIKE:
            _pooling_layer(full.base_model.encoder.layer[-1], head, pooling)
            _bert_head(full, head)
        else:
            full.head.dense.weight.copy_(head.dense.weight if head.dense is not None else torch.eye(head.dim))
            full.head.dense.bias.copy_(head.dense.bias if head.dense is not None else torch.zeros(head.dim))
            nn.init.ones_(full.head.norm.weight)
            if full.head.norm.bias is not None:
                nn.init.zeros_(full.head.norm.bias)
            full.classifier.weight.copy_(head.out.weight)
            full.classifier.bias.copy_(head.out.bias)
    return full


def _pooling_layer(layer: Any, head: Pooled, pooling: str) -> None:
    """Make a transformer layer compute LayerNorm(mean of all tokens): attention that looks everywhere alike, values as they are,
    the residual drowned by SCALE, a feed-forward part that adds nothing. For the first token: LayerNorm of what is there already."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    attention = layer.attention
    attention.self.value.weight.copy_(torch.eye(head.dim))
    if pooling == "mean":
        attention.output.dense.weight.copy_(torch.eye(head.dim) * SCALE)
    for norm in (attention.output.LayerNorm, layer.output.LayerNorm):
        nn.init.ones_(norm.weight)


def _bert_head(full: Any, head: Pooled) -> None:
    """BERT's own head is tanh(dense(first token)), then linear: a small enough slope makes the tanh straight."""
    dense, out = (full.bert.pooler.dense, full.classifier) if hasattr(full, "bert") else (full.classifier.dense, full.classifier.out_proj)
    scale = 1.0 if head.dense is not None else SMALL
    dense.weight.copy_(head.dense.weight if head.dense is not None else torch.eye(head.dim) * SMALL)
    dense.bias.copy_(head.dense.bias if head.dense is not None else torch.zeros(head.dim))
    out.weight.copy_(head.out.weight / scale)
    out.bias.copy_(head.out.bias)

"""Text encoders and decoders: Hugging Face networks, from scratch or pretrained, behind Backbone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, GPT2Config, ModernBertConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from sslcli.core import Backbone, Batch
from sslcli.data.tokenizer import Tokenizer
from sslcli.errors import BadCheckpoint, printable
from sslcli.hf import attention
from sslcli.hf.heads import ADDED, AUTO, POOLED, Borrowed, Pooled, VocabularyHead
from sslcli.hf.pooling import pooled, read_pooling
from sslcli.hf.pretrained import pretrained, read_config, set_dropout

# what only a causal language model's class exists for sees no later token
DECODERS = set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)


class Text(Backbone):
    """bert: post-norm, learnt positions. modernbert: pre-norm, rotary positions, gated units. gpt2: a left-to-right decoder."""

    _kept: Tensor | None = None  # during a pass: the features that its embeddings keep, [B, 1, D] or [1, N, D]

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        architecture: Literal["bert", "modernbert", "gpt2"],
        layers: Annotated[int, Field(ge=1)],
        width: Annotated[int, Field(ge=8)],
        heads: Annotated[int, Field(ge=1)],
        inner: Annotated[int, Field(ge=8)],
        positions: Annotated[int, Field(ge=16)],
        dropout: Annotated[float, Field(ge=0, lt=1)],
    ):
        super().__init__()
        config = _config(architecture, tokenizer, layers, width, heads, inner, positions, dropout)
        self._adopt(AutoModel.from_config(config))
        self.loaded: dict[str, Any] = {"tensors": 0, "new": len(list(self.base.parameters())), "unused": [], "from": None}

    @staticmethod
    def contradiction(keys: Mapping[str, Any]) -> str | None:
        width, heads = keys["width"], keys["heads"]
        return f"width={width} is not divisible by heads={heads}; {heads} heads need a multiple of {heads}" if width % heads else None

    @classmethod
    def load(
        cls, folder: Path, kind: str | None, dropout: float | None, random: bool = False, native: bool = False, pooling: str | None = None
    ) -> "Text":
        """From a model folder, with the head `kind` if one is to be borrowed. `random`: its architecture with untrained weights;
        `native`: keep the family's own classifier (a delivered model), where training would put a pooled one in its place. `pooling`:
        how texts are pooled, where not as the folder says."""
        config = read_config(folder)
        if dropout is not None:
            set_dropout(config, dropout)
        if kind == "sequence_classification" and config.model_type in POOLED and not native:
            kind = None  # these get a pooled classifier of ours
        language_model = "causal_lm" if config.model_type in DECODERS else "masked_lm"
        borrowed = {"language_model": language_model, "entailment": "sequence_classification"}
        asked, kind = kind, borrowed.get(kind or "", kind)
        if getattr(config, ADDED, False) and not native and asked != "entailment":  # a classifier of ours: its network is what goes on
            config.num_hidden_layers -= 1
            setattr(config, ADDED, False)
            kind = None if kind == "token_classification" else kind  # a head of that size tells texts, not words
        auto = AUTO[kind] if kind else AutoModel
        self = cls.__new__(cls)
        Backbone.__init__(self)
        full, self.loaded = pretrained(auto, folder, config, random)
        if asked in borrowed and not random:
            _refuse_lost(folder, full, self.loaded["new"], str(asked))
        self._adopt(full.base_model, full if kind else None, kind)
        own = kind == "sequence_classification"  # a family's own classifier pools by itself
        self.pooling = pooling or (None if own else read_pooling(folder)) or self.pooling
        return self

    def _adopt(self, base: PreTrainedModel, full: PreTrainedModel | None = None, kind: str | None = None) -> None:
        attention.register()
        self.base = base
        if kind != "sequence_classification" and isinstance(getattr(base, "pooler", None), nn.Module):
            base.pooler = None  # the first token's layer: saved, counted, and never trained
        text = base.config.get_text_config()
        if getattr(text, "pad_token_id", None) is None:
            end = getattr(text, "eos_token_id", None)
            text.pad_token_id = end[0] if isinstance(end, list) else end  # as the tokenizer does: a classifier tells padding by it
        self.dim = int(text.hidden_size)
        self.family = str(base.config.model_type)
        self.decoder = self.family in DECODERS
        self.pooling = "last" if self.decoder else "mean"  # hf.pooling: the last token of a decoder alone has seen all of them
        self.positions = int(getattr(text, "max_position_embeddings", 512))
        self.first_position = 0
        if self.family in ("roberta", "xlm-roberta", "camembert"):
            self.first_position = int(text.pad_token_id) + 1  # these count positions from the padding id
            self.positions -= 2
        self.pools_freely = self.family in POOLED and kind != "sequence_classification"
        # a plain dictionary, so that the module tree does not see the model a second time
        self._spare: dict[str, PreTrainedModel] = {kind: full} if kind and full is not None else {}
        whole = set(getattr(text, "layer_types", None) or ()) <= {"full_attention"}
        self.packing = False
        self._packs = self.family in POOLED and whole and _fused_attention(base)
        if _fused_attention(base):
            base.set_attn_implementation("sslcli")
            if full is not None:
                full.config._attn_implementation = "sslcli"

    @property
    def embedding(self) -> nn.Module:  # type: ignore[override]
        return self.base.get_input_embeddings()

    def cut_features(self) -> int:
        """From now on a batch may say which `features` [B, D] of its texts' embeddings stay, the others being nought; D."""

        def cut(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            return None if self._kept is None else output * self._kept

        place = getattr(self.base, "embeddings", None)  # with positions and norm, where a family has them in one module
        (self.embedding if place is None else place).register_forward_hook(torch.compiler.disable(cut))
        return int(self.base.get_input_embeddings().weight.shape[1])

    def encode(self, batch: Batch) -> Tensor:
        if "features" not in batch:
            return self._states(batch)
        self._kept = batch["features"][:, None]
        try:
            return self._states(batch)
        finally:
            self._kept = None

    def _states(self, batch: Batch) -> Tensor:
        mask = batch.get("mask")
        if self.packing and mask is not None and mask.device.type == "cpu" and float(mask.float().mean()) < 1 - attention.PADDED:
            return self._packed(batch, mask)
        output = self.base(
            input_ids=batch["ids"],
            attention_mask=batch.get("mask"),
            **({"position_ids": batch["positions"]} if "positions" in batch else {}),
            **({"use_cache": False} if self.decoder else {}),
            **({"token_type_ids": batch["types"]} if "types" in batch else {}),
            **self._more,
        )
        if self._more:
            batch["first"] = output.hidden_states[1]  # what `pool` will ask for
        return output.last_hidden_state

    @property
    def _more(self) -> dict[str, bool]:
        """What pooling needs of the network besides its last states."""
        return {"output_hidden_states": True} if self.pooling == "first_last" else {}

    def pack(self) -> bool:
        """Skip padding from now on, where this family's layers can; whether they do. It pays where the rows of a batch are of any length;
        batches of rows alike in length, as in pretraining, gain nothing."""
        self.packing = self._packs
        return self.packing

    def _packed(self, batch: Batch, mask: Tensor) -> Tensor:
        """The same hidden states from the real tokens alone, with zeros where padding is: no layer spends time on that."""
        ids, real = batch["ids"], mask.flatten().nonzero()[:, 0]
        places = torch.cat([real, (mask.flatten() == 0).nonzero()[: -len(real) % attention.ROUND, 0]])
        positions = (torch.arange(ids.shape[1]) + self.first_position).expand_as(ids).flatten()[places]
        types = {"token_type_ids": batch["types"].flatten()[places][None]} if "types" in batch else {}
        if self._kept is not None:
            self._kept = self._kept.expand(*ids.shape, -1).flatten(0, 1)[places][None]
        with attention.packed(mask):
            output = self.base(input_ids=ids.flatten()[places][None], position_ids=positions[None], **types, **self._more)

        def padded(states: Tensor) -> Tensor:
            rows = states.new_zeros(mask.numel(), states.shape[-1]).index_copy(0, real, states[0, : len(real)])
            return rows.unflatten(0, mask.shape)

        if self._more:
            batch["first"] = padded(output.hidden_states[1])
        return padded(output.last_hidden_state)

    def pool(self, hidden: Tensor, batch: Batch) -> Tensor:
        """A vector a text (hf.pooling). A batch may say how much of each is `kept` and with which `other` row's it is mixed."""
        vector = pooled(hidden, batch.get("mask"), self.pooling, batch.get("first"))
        if "kept" in batch:
            vector = torch.lerp(vector[batch["other"]], vector, batch["kept"][:, None].to(vector.dtype))
        return vector

    def checkpoint_gradients(self) -> None:
        self.packing = False  # layers run again when the batch's rows are forgotten
        self.base.activation_checkpointing_enable({"use_reentrant": False})

    def compile(self, **options: Any) -> None:
        self.base.compile(**options)

    def lend(self, folder: Path, kind: str) -> None:
        """A second head for the same network out of its model folder, if it is there: for a second loss (joint training)."""
        full, loaded = pretrained(AUTO[kind], folder, read_config(folder), False)
        if any(not name.startswith(f"{full.base_model_prefix}.") for name in loaded["new"]):
            return  # the folder holds no such head
        full.config._attn_implementation = self.base.config._attn_implementation
        if full.config.get_text_config().tie_word_embeddings and full.get_output_embeddings() is not None:
            full.get_output_embeddings().weight = self.embedding.weight
        self._spare[kind] = full

    def has_head(self, kind: str, labels: int | None = None) -> bool:
        """Whether a pretrained one is there to be had, of so many labels."""
        return kind in self._spare and labels in (None, self._spare[kind].config.num_labels)

    def head(self, kind: str, labels: list[str] | None = None) -> Borrowed:
        """The family's own head of this kind: the one that was loaded with the weights, or a new one."""
        full = self._spare.pop(kind, None)
        if full is None:
            config = self.base.config
            full = AUTO[kind].from_config(config, attn_implementation=config._attn_implementation)
            if kind in ("masked_lm", "causal_lm") and full.config.get_text_config().tie_word_embeddings:
                full.get_output_embeddings().weight = self.embedding.weight
        if labels is not None and full.config.num_labels != len(labels):
            config = full.config
            config.id2label = dict(enumerate(labels))
            config.label2id = {label: i for i, label in enumerate(labels)}
            rebuilt = AUTO[kind].from_config(config, attn_implementation=config._attn_implementation)
            full = rebuilt
        return VocabularyHead(full) if kind.endswith("_lm") else Borrowed(full)

    def classifier(self, labels: int, layers: int, dropout: float) -> Pooled:
        config = self.base.config
        eps = float(getattr(config, "layer_norm_eps", 0) or getattr(config, "norm_eps", 1e-5))
        return Pooled(self.dim, labels, layers, eps, dropout, normalise_last=self.family == "modernbert")


def _config(
    architecture: str, tokenizer: Tokenizer, layers: int, width: int, heads: int, inner: int, positions: int, dropout: float
) -> PretrainedConfig:
    vocabulary = -(-tokenizer.size // 64) * 64  # a multiple that matrix products like; the surplus is never predicted
    common: dict[str, Any] = {"vocab_size": vocabulary, "pad_token_id": tokenizer.pad}
    if architecture == "gpt2":
        end = tokenizer.hf.eos_token_id
        drop = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
        return GPT2Config(
            n_layer=layers,
            n_embd=width,
            n_head=heads,
            n_inner=inner,
            n_positions=positions,
            bos_token_id=end,
            eos_token_id=end,
            **drop,
            **common,
        )
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": inner}
    if architecture == "bert":
        drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        return BertConfig(max_position_embeddings=positions, **sizes, **drop, **common)
    hf = tokenizer.hf
    ends = {
        "cls_token_id": hf.cls_token_id,
        "sep_token_id": hf.sep_token_id,
        "bos_token_id": hf.cls_token_id,
        "eos_token_id": hf.sep_token_id,
    }
    drop = {"attention_dropout": dropout, "mlp_dropout": dropout, "embedding_dropout": dropout}
    full = {"layer_types": ["full_attention"] * layers, "classifier_pooling": "mean"}
    return ModernBertConfig(max_position_embeddings=positions, **sizes, **drop, **ends, **full, **common)


def _refuse_lost(folder: Path, full: PreTrainedModel, new: Sequence[str], head: str) -> None:
    """A pretrained head on the network must have come with it."""
    lost = next((name for name in new if not name.startswith(f"{full.base_model_prefix}.")), None)
    if lost is None:
        return
    if head == "entailment":
        raise BadCheckpoint(f"{printable(folder)}: has no classifier ({printable(lost)} is not in it), which task.by=nli asks")
    what = f"has no language model's head ({printable(lost)} is not in it), which task.head=prompt asks"
    raise BadCheckpoint(f"{printable(folder)}: {what}; use a run of objective=masked_lm or causal_lm, or another head")


def _fused_attention(base: PreTrainedModel) -> bool:
    return bool(getattr(base, "_supports_sdpa", False)) and getattr(base.config, "_attn_implementation", "") == "sdpa"

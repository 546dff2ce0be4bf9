"""Learnt vectors before the words (prompt tuning, Lester et al. 2021) or among the patches (visual prompts, Jia et al. 2022)."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sslcli.errors import BadInput
from sslcli.hf.tuning import Learnt


class Prompt(Learnt):
    """`tokens` of them, which begin as random words' vectors. Their places are taken out of the hidden states again, so that tasks that
    look at every token find it where it was."""

    type = "PROMPT_TUNING"
    said: ClassVar[Mapping[str, str]] = {"num_virtual_tokens": "tokens"}
    merges = False
    rate = 100.0

    def __init__(self, *, tokens: Annotated[int, Field(ge=1, le=512)], load: str | None):
        super().__init__(None, load)
        self.tokens = tokens

    def put(self, model: Any) -> None:
        if model.family == "resnet" or (not hasattr(model, "positions") and not hasattr(model, "patches")):
            raise ValueError(f"models of the {model.family} family take no tokens that a prompt could be; use peft=lora or peft=bitfit")
        if hasattr(model, "patches"):
            model.prompt = _Vectors(torch.randn(self.tokens, model.dim) * 0.02)
            model.base.layers[0].register_forward_pre_hook(self._insert)
            model.base.layernorm.register_forward_pre_hook(self._remove)
            return
        words = model.embedding.weight
        model.prompt = _Vectors(words[torch.randint(len(words), (self.tokens,))])
        model.positions -= self.tokens
        if model.positions < 16:
            raise ValueError(f"tokens={self.tokens} leave the network {model.positions} positions for words; lower it")
        model.packing = model._packs = False  # a packed row has no beginning of its own
        model.base.register_forward_pre_hook(self._before, with_kwargs=True)
        model.base.register_forward_hook(self._after)

    def _rows(self, like: Tensor) -> Tensor:
        return self.model.prompt.weight.to(like.dtype).expand(like.shape[0], -1, -1)

    def _insert(self, _: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return torch.cat([given[0], self._rows(given[0])], 1), *given[1:]

    def _remove(self, _: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (given[0][:, : -self.tokens],)

    def _before(self, base: Any, _: Any, given: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        if "position_ids" in given:
            raise BadInput("peft=prompt: goes with rows of one text each, and this objective packs several in a row; use another peft=")
        words = base.get_input_embeddings()(given.pop("input_ids"))
        mask = given.get("attention_mask")
        if mask is not None:
            given["attention_mask"] = torch.cat([mask.new_ones(mask.shape[0], self.tokens), mask], 1)
        return (), {**given, "inputs_embeds": torch.cat([self._rows(words), words], 1)}

    def _after(self, _: nn.Module, __: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, self.tokens :]
        return output

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "task_type": "FEATURE_EXTRACTION"}

    def tensors(self) -> dict[str, Tensor]:
        return {"prompt_embeddings": self.model.prompt.weight.detach()}

    def set(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            self.model.prompt.weight.copy_(tensors["prompt_embeddings"])


class _Vectors(nn.Module):
    """weight [n, D]"""

    def __init__(self, start: Tensor):
        super().__init__()
        self.weight = nn.Parameter(start.detach().clone())

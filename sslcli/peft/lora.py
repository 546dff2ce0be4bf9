"""Low-rank changes of all matrices of a block (LoRA, Hu et al. 2022; all of them: Dettmers et al. 2023), with rsLoRA's scale or PiSSA's
start as options. On `wnut17` queries and values alone fall 2 to 3 points of F1 behind training everything."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sslcli.hf.targets import LINEAR
from sslcli.hf.tuning import Library, Targets


class Lora(Library):
    """W + alpha / r * B A. `rslora`: over the root of r (Kalajdzievski 2023). `init=pissa`: A and B begin as the principal singular
    vectors of W, which keeps the rest (Meng et al. 2024); saved as plain LoRA of twice the rank over the original W."""

    type = "LORA"
    said: ClassVar[Mapping[str, str]] = {
        "r": "r",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "use_rslora": "rslora",
        "use_dora": "dora",
    }
    part = LINEAR

    def __init__(
        self,
        *,
        r: Annotated[int, Field(ge=1, le=4096)],
        alpha: Annotated[float, Field(gt=0)],
        dropout: Annotated[float, Field(ge=0, lt=1)],
        init: Literal["default", "gaussian", "pissa"],
        rslora: bool,
        targets: Targets,
        load: str | None,
    ):
        super().__init__(targets, load)
        self.r, self.alpha, self.dropout, self.init, self.rslora, self.dora = r, alpha, dropout, init, rslora, False

    @staticmethod
    def contradiction(keys: Mapping[str, Any]) -> str | None:
        if keys["init"] == "pissa" and keys["rslora"]:
            return "init=pissa and rslora=true do not go together: twice the rank would be another scale; use one of them"
        if keys["init"] == "pissa" and keys["load"] is not None:
            return "init=pissa is a start, and load= brings another; use init=default"
        return None

    def config(self, names: Sequence[str]) -> Any:
        from peft import LoraConfig

        start: Any = self.init if self.init != "default" else True
        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            init_lora_weights=start,
            use_rslora=self.rslora,
            use_dora=self.dora,
            target_modules=list(names),
        )

    def put(self, model: Any) -> None:
        super().put(model)
        if self.init == "pissa":
            model.start = _Start(super().tensors())

    def tensors(self) -> dict[str, Tensor]:
        now = super().tensors()
        if self.init != "pissa":
            return now
        then = self.model.start.tensors()
        return {n: torch.cat([t, then[n]]) if ".lora_A." in n else torch.cat([t, -then[n]], 1) for n, t in now.items()}

    def settings(self) -> dict[str, Any]:
        said = super().settings()
        return said if self.init != "pissa" else {**said, "init_lora_weights": True, "r": 2 * self.r, "lora_alpha": 2 * self.alpha}


class _Start(nn.Module):
    """What PiSSA took out of the weights: in buffers, so that a checkpoint has it."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name.replace(".", "/"), tensor.clone())

    def tensors(self) -> dict[str, Tensor]:
        return {n.replace("/", "."): t for n, t in self.named_buffers()}

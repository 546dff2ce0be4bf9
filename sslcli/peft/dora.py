"""LoRA of the directions of weights, with their lengths learnt apart (DoRA, Liu et al. 2024)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from sslcli.hf.targets import LINEAR
from sslcli.hf.tuning import Library, Targets


class Dora(Library):
    type = "LORA"
    said: ClassVar[Mapping[str, str]] = {"r": "r", "lora_alpha": "alpha", "lora_dropout": "dropout", "use_dora": "dora"}
    part = LINEAR

    def __init__(
        self,
        *,
        r: Annotated[int, Field(ge=1, le=4096)],
        alpha: Annotated[float, Field(gt=0)],
        dropout: Annotated[float, Field(ge=0, lt=1)],
        targets: Targets,
        load: str | None,
    ):
        super().__init__(targets, load)
        self.r, self.alpha, self.dropout, self.dora = r, alpha, dropout, True

    def config(self, names: Sequence[str]) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            use_dora=self.dora,
            target_modules=list(names),
        )

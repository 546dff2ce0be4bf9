"""Random low-rank matrices, shared and fixed, scaled by learnt vectors (VeRA, Kopiczko et al. 2024)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import nn

from sslcli.hf.targets import PROJECTIONS
from sslcli.hf.tuning import Library, Targets


class Vera(Library):
    type = "VERA"
    said: ClassVar[Mapping[str, str]] = {"r": "r", "vera_dropout": "dropout"}
    part = PROJECTIONS

    def __init__(
        self,
        *,
        r: Annotated[int, Field(ge=1, le=4096)],
        dropout: Annotated[float, Field(ge=0, lt=1)],
        targets: Targets,
        load: str | None,
    ):
        super().__init__(targets, load)
        self.r, self.dropout = r, dropout

    def config(self, names: Sequence[str]) -> Any:
        from peft import VeraConfig

        return VeraConfig(r=self.r, vera_dropout=self.dropout, target_modules=list(names))

    def put(self, model: Any) -> None:
        """The shared matrices as frozen parameters: they are then kept in the precision of all others."""
        super().put(model)
        tuner = self.wrapped.base_model
        for name in ("vera_A", "vera_B"):
            fixed = nn.ParameterDict({"default": nn.Parameter(getattr(tuner, name)["default"], requires_grad=False)})
            for module in (tuner, *(model.base.get_submodule(n) for n in self.names)):
                setattr(module, name, fixed)

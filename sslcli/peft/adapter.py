"""Bottlenecks after the parts of a layer (adapters, Houlsby et al. 2019, Pfeiffer et al. 2021)."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslcli.hf.targets import BRANCHES, FAMILIES, INNER, NORMS, OUTPUTS, targets
from sslcli.hf.tuning import Learnt, Targets

PARTS = {"all": BRANCHES, "houlsby": OUTPUTS, "pfeiffer": INNER}


class Adapter(Learnt):
    """y + up(f(down(y))) of a part's output y, before the residual is added; the identity at first. `houlsby`: after attention and after
    the feed-forward part; `pfeiffer`: after the latter alone; `all`: as houlsby, and after the queries, keys and values, so that what
    attention looks at can move too. `reduction`: the width over the bottleneck's. `norms`: the gains and
    shifts of the layers' normalisations are trained too, as by Houlsby."""

    type = "BOTTLENECK"
    said: ClassVar[Mapping[str, str]] = {"style": "style", "reduction": "reduction", "norms": "norms"}
    merges = False
    rate = 20.0

    def __init__(
        self,
        *,
        style: Literal["all", "houlsby", "pfeiffer"],
        reduction: Annotated[float, Field(ge=1, le=4096)],
        norms: bool,
        targets: Targets,
        load: str | None,
    ):
        super().__init__(targets, load)
        self.style, self.reduction, self.norms = style, float(reduction), norms

    def put(self, model: Any) -> None:
        self.names = self.names or targets(model, PARTS[self.style], self.targets)
        model.bottlenecks = nn.ModuleDict()
        for name in self.names:
            linear = model.base.get_submodule(name)
            width = getattr(linear, "out_features", None) or getattr(linear, "nf", None)
            if width is None:
                raise ValueError(f"targets: {name} is no linear layer, which a bottleneck could follow")
            bottleneck = _Bottleneck(width, max(1, round(width / self.reduction)), self.style != "pfeiffer")
            model.bottlenecks[name.replace(".", "/")] = bottleneck
            linear.register_forward_hook(bottleneck.after)
        if self.norms and model.family not in FAMILIES:
            raise ValueError(f"norms: which modules normalise is not known of the {model.family} family; use peft.norms=false")
        for name in targets(model, NORMS) if self.norms else ():
            model.base.get_submodule(name).requires_grad_(True)

    def tensors(self) -> dict[str, Tensor]:
        return {_saved(n): t for n, t in super().tensors().items()}

    def set(self, tensors: Mapping[str, Tensor]) -> None:
        super().set({n: tensors[_saved(n)] for n in super().tensors()})


class _Bottleneck(nn.Module):
    def __init__(self, width: int, inner: int, smooth: bool):
        super().__init__()
        self.down, self.up, self.smooth = nn.Linear(width, inner), nn.Linear(inner, width), smooth
        nn.init.normal_(self.down.weight, std=width**-0.5)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.down(x)
        return torch.add(x, self.up(F.gelu(inner) if self.smooth else F.relu(inner)))

    def after(self, _: nn.Module, __: Any, x: Tensor) -> Tensor:
        return self(x)


def _saved(name: str) -> str:
    """bottlenecks.encoder/layer/0/output/dense.up.weight -> base_model.model.encoder.layer.0.output.dense.bottleneck.up.weight"""
    if not name.startswith("bottlenecks."):
        return f"base_model.model.{name}"
    _, module, rest = name.split(".", 2)
    return f"base_model.model.{module.replace('/', '.')}.bottleneck.{rest}"

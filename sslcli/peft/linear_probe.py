"""The head alone, on the frozen network as it is in use."""

from typing import Any

from torch import nn

from sslcli.hf.tuning import Learnt


class LinearProbe(Learnt):
    type = "LINEAR_PROBE"
    rate = 30.0

    def __init__(self, *, load: str | None):
        super().__init__(None, load)

    def put(self, model: Any) -> None:
        for module in model.base.modules():
            module.register_forward_pre_hook(_as_in_use)


def _as_in_use(module: nn.Module, _: Any) -> None:
    """No dropout: nothing here learns."""
    module.training = False

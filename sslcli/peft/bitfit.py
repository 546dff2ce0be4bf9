"""The network's own biases alone (BitFit, Ben Zaken et al. 2022)."""

from typing import Any

from sslcli.hf.targets import targets
from sslcli.hf.tuning import Learnt, Targets


class Bitfit(Learnt):
    type = "BITFIT"

    def __init__(self, *, targets: Targets, load: str | None):
        super().__init__(targets, load)

    def put(self, model: Any) -> None:
        chosen = [n for n, _ in model.base.named_modules()] if self.targets is None else targets(model, "", self.targets)
        asked = {n: model.base.get_submodule(n) for n in chosen if not n.startswith("embeddings")}
        found = {n: m.bias for n, m in asked.items() if getattr(m, "bias", None) is not None}
        if not found:
            raise ValueError(f"models of the {model.family} family have no biases; use peft=ln_tuning or peft=lora")
        self.names = list(found)
        for bias in found.values():
            bias.requires_grad_(True)

"""Keys, values and the inner activations of the feed-forward part scaled by learnt vectors (IA3, Liu et al. 2022)."""

from collections.abc import Sequence
from typing import Any

from sslcli.hf.targets import INNER, KEYS, targets
from sslcli.hf.tuning import Library, Targets


class Ia3(Library):
    type = "IA3"
    part = KEYS
    rate = 50.0

    def __init__(self, *, targets: Targets, feedforward: Targets, load: str | None):
        super().__init__(targets, load)
        self.feedforward = feedforward

    def put(self, model: Any) -> None:
        self.inner: list[str] = []
        if self.load is not None:
            self.inner = [n for n in self.names if n in set(targets(model, INNER))]
        elif self.targets is None or self.feedforward is not None:
            self.inner = targets(model, INNER, self.feedforward)
            self.names = list(dict.fromkeys([*self.names, *self.inner]))
        super().put(model)

    def config(self, names: Sequence[str]) -> Any:
        from peft import IA3Config

        return IA3Config(target_modules=list(names), feedforward_modules=self.inner)

"""Gains and shifts of the layers' normalisations alone (LN tuning, Zhao et al. 2024)."""

from collections.abc import Sequence
from typing import Any

from sslcli.hf.targets import NORMS
from sslcli.hf.tuning import Library, Targets


class LnTuning(Library):
    type = "LN_TUNING"
    part = NORMS

    def __init__(self, *, targets: Targets, load: str | None):
        super().__init__(targets, load)

    def config(self, names: Sequence[str]) -> Any:
        from peft import LNTuningConfig

        return LNTuningConfig(target_modules=list(names))

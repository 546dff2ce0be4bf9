"""Weights rotated by learnt orthogonal matrices, in blocks (OFT, Qiu et al. 2023)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from sslcli.hf.targets import PROJECTIONS
from sslcli.hf.tuning import Library, Targets


class Oft(Library):
    """`block`: a block's side; the largest divisor of the width up to it is taken."""

    type = "OFT"
    said: ClassVar[Mapping[str, str]] = {"oft_block_size": "block"}
    part = PROJECTIONS

    def __init__(self, *, block: Annotated[int, Field(ge=2, le=4096)], targets: Targets, load: str | None):
        super().__init__(targets, load)
        self.block = block

    def config(self, names: Sequence[str]) -> Any:
        from peft import OFTConfig

        widths = [self.model.base.get_submodule(n).weight.shape[-1] for n in names]
        side = max(b for b in range(1, self.block + 1) if all(w % b == 0 for w in widths))
        return OFTConfig(r=0, oft_block_size=side, target_modules=list(names))

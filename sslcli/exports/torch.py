"""A torch.export program (.pt2): runs without transformers, batch size and length free."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslcli.core import Batch
from sslcli.hf.graph import inputs, trace


class Torch:
    def write(self, model: Path, auto: Any, longest: int, folder: Path) -> None:
        program, _ = trace(model, auto, longest)
        torch.export.save(program, folder / "model.pt2")
        for path in model.glob("tokenizer*.json"):
            shutil.copy2(path, folder / path.name)

    def open(self, folder: Path) -> Callable[[Batch], np.ndarray]:
        program = torch.export.load(folder / "model.pt2").module()

        def run(batch: Batch) -> np.ndarray:
            with torch.no_grad():
                return program(*inputs(batch)).numpy()

        return run

"""A torch.export program (.pt2): runs without transformers, batch size and length free."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sslcli.hf.graph import Graph


class Torch:
    def write(self, graph: Graph, folder: Path) -> None:
        torch.export.save(graph.trace(), folder / "model.pt2")
        for name in graph.beside:
            if (graph.model / name).exists():
                shutil.copy2(graph.model / name, folder / name)

    def open(self, graph: Graph, folder: Path) -> Callable[[Sequence[Tensor]], np.ndarray]:
        program = torch.export.load(folder / "model.pt2").module()

        def run(inputs: Sequence[Tensor]) -> np.ndarray:
            with torch.no_grad():
                return program(*inputs).numpy()

        return run

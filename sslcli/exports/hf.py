"""A folder that plain transformers loads: AutoModelFor..., AutoTokenizer or AutoImageProcessor, pipeline."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sslcli.data.tokenizer import quiet_transformers
from sslcli.errors import BadInput
from sslcli.hf.graph import Graph, said


class Hf:
    def write(self, graph: Graph, folder: Path) -> None:
        if graph.auto is None:
            raise BadInput("format=hf: transformers has no class for this network; use format=onnx or format=torch")
        shutil.copytree(graph.model, folder, dirs_exist_ok=True)

    def open(self, graph: Graph, folder: Path) -> Callable[[Sequence[Tensor]], np.ndarray]:
        with quiet_transformers():
            full = graph.auto.from_pretrained(folder, local_files_only=True).eval()

        more = {"output_hidden_states": True} if graph.pooling == "first_last" else {}

        def run(inputs: Sequence[Tensor]) -> np.ndarray:
            with torch.no_grad():
                output = full(**dict(zip(graph.names, inputs, strict=True)), **more)
                found = said(output, inputs[-1], graph.pooling)
            if hasattr(output, "logits") or graph.pooling is not None:
                return found.numpy()
            hidden = output.last_hidden_state
            return (hidden if hidden.ndim == 3 else hidden.flatten(2).transpose(1, 2)).numpy()  # a map of features, as places

        return run

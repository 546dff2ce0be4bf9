"""An ONNX file: runs in onnxruntime, batch size and length free. Needs the extra `onnx`."""

import contextlib
import io
import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sslcli.errors import BadInput
from sslcli.hf.graph import Graph


class Onnx:
    def __init__(self) -> None:
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise BadInput("format=onnx: needs the extra packages; pip install 'sslcli[onnx]'") from error

    def write(self, graph: Graph, folder: Path) -> None:
        program = graph.trace()
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of operators that it looks for in packages that are not here
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(program, dynamo=True, input_names=list(graph.names), output_names=["output"], external_data=False)
            assert made is not None
            made.save(str(folder / "model.onnx"), external_data=False)
        for name in (*graph.beside, "config.json"):
            if (graph.model / name).exists():
                shutil.copy2(graph.model / name, folder / name)

    def open(self, graph: Graph, folder: Path) -> Callable[[Sequence[Tensor]], np.ndarray]:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(None, {n: x.numpy() for n, x in zip(graph.names, inputs, strict=True)})[0]

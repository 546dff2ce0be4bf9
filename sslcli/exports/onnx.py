"""An ONNX file: runs in onnxruntime, batch size and length free. Needs the extra `onnx`."""

import contextlib
import io
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslcli.core import Batch
from sslcli.errors import BadInput
from sslcli.hf.graph import inputs, trace


class Onnx:
    def __init__(self) -> None:
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise BadInput("format=onnx: needs the extra packages; pip install 'sslcli[onnx]'") from error

    def write(self, model: Path, auto: Any, longest: int, folder: Path) -> None:
        program, _ = trace(model, auto, longest)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program, dynamo=True, input_names=["input_ids", "attention_mask"], output_names=["output"], external_data=False
            )
            assert made is not None
            made.save(str(folder / "model.onnx"), external_data=False)
        for path in (*model.glob("tokenizer*.json"), model / "config.json"):
            shutil.copy2(path, folder / path.name)

    def open(self, folder: Path) -> Callable[[Batch], np.ndarray]:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])

        def run(batch: Batch) -> np.ndarray:
            ids, mask = inputs(batch)
            return session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]

        return run

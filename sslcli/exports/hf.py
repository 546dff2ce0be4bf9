"""A folder that plain transformers loads: AutoModelFor..., AutoTokenizer, pipeline."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from sslcli.core import Batch
from sslcli.data.tokenizer import quiet_transformers


class Hf:
    def write(self, model: Path, auto: Any, longest: int, folder: Path) -> None:
        self.auto = auto or AutoModel
        for path in model.iterdir():
            shutil.copy2(path, folder / path.name)

    def open(self, folder: Path) -> Callable[[Batch], np.ndarray]:
        with quiet_transformers():
            full = self.auto.from_pretrained(folder, local_files_only=True).eval()

        def run(batch: Batch) -> np.ndarray:
            with torch.no_grad():
                output = full(input_ids=batch["ids"], attention_mask=batch["mask"].long())
            return (output.logits if hasattr(output, "logits") else output.last_hidden_state).numpy()

        return run

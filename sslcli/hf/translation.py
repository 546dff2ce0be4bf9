"""Sequence-to-sequence models of transformers (Marian, T5, ...) that say a text in other words."""

import hashlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from sslcli.core import Places
from sslcli.data.stream import in_order
from sslcli.data.tokenizer import quiet_transformers
from sslcli.errors import BadCheckpoint, BadInput, printable
from sslcli.hf.folder import model_folder
from sslcli.hf.pretrained import pretrained, read_config

LONGEST = 512  # tokens of a text, where the model names no bound; longer ones are cut
TOKENS = 2048  # of the texts of one batch
DECIDING = ("*.safetensors", "*.json", "*.spm", "*.model", "*.txt")  # files that decide what a model says


class Translator:
    """A model folder or hub name, checked at once and loaded when first asked. `prefix`: what the model wants before each text (T5)."""

    def __init__(self, source: str, prefix: str, key: str):
        self.source, self.prefix, self.key = source, prefix, key
        self.folder = model_folder(source, key)
        self.config = read_config(self.folder)
        if not self.config.is_encoder_decoder:
            what = f"a {self.config.model_type} model translates nothing; name a sequence-to-sequence model, such as a Marian or T5 folder"
            raise BadInput(f"{key}={printable(source)}: {what}")
        self.tokenizer = _tokenizer(self.folder, source, key)
        if hasattr(self.tokenizer, "src_lang"):
            what = "wants to be told its languages by codes (NLLB, M2M100, mBART), which is not done here"
            raise BadInput(f"{key}={printable(source)}: {what}; name a model of one pair of languages")

    @property
    def identity(self) -> str:
        """Hash of everything that decides what it says."""
        digest = hashlib.sha256(self.prefix.encode())
        for path in sorted(p for pattern in DECIDING for p in self.folder.glob(pattern)):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @torch.no_grad()
    def __call__(
        self, texts: Sequence[str], copies: int, beams: int, temperature: float | None, progress: Callable[[int], None]
    ) -> list[list[str]]:
        """`copies` translations of each text, drawn at `temperature` (None: the most likely ones), each searched with so many beams.
        Chance is torch's own. `progress` is told how many texts are done."""
        network, device = self._network()
        longest = min(int(getattr(self.config, "max_position_embeddings", None) or LONGEST), LONGEST)
        coded = [self.tokenizer(self.prefix + text, truncation=True, max_length=longest)["input_ids"] for text in texts]
        found: list[list[str]] = [[] for _ in texts]
        done = 0
        for part in in_order(Places(len(coded), np.array([len(ids) for ids in coded])), TOKENS):
            batch = self.tokenizer.pad({"input_ids": [coded[i] for i in part]}, return_tensors="pt").to(device)
            said = network.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                num_beams=1 if beams == 1 and temperature is not None else max(beams, copies),
                do_sample=temperature is not None,
                **({} if temperature is None else {"temperature": temperature, "top_k": 0, "top_p": 1.0}),
                num_return_sequences=copies,
                max_length=None,
                max_new_tokens=min(longest - 1, _most(batch["input_ids"].shape[1])),
            )
            for place, i in enumerate(part):
                own = said[place * copies : (place + 1) * copies, : _most(len(coded[i])) + 1]  # the first token only begins
                found[i] = [words.strip() for words in self.tokenizer.batch_decode(own, skip_special_tokens=True)]
            done += len(part)
            progress(done)
        return found

    def _network(self) -> tuple[Any, torch.device]:
        if not hasattr(self, "network"):
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            made, loaded = pretrained(AutoModelForSeq2SeqLM, self.folder, self.config, False)
            if loaded["new"]:
                what = f"weights are missing in it ({printable(loaded['new'][0])}, ...); it is no finished translation model"
                raise BadCheckpoint(f"{self.key}={printable(self.source)}: {what}")
            self.network, self.device = made.eval().to(device), device
        return self.network, self.device


def _tokenizer(folder: Path, source: str, key: str) -> Any:
    with quiet_transformers():
        try:
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # the library raises whatever its parsers raise
            if find_spec("sentencepiece") is None and any(p.suffix in (".spm", ".model") for p in folder.iterdir()):
                what = "its tokenizer needs the library sentencepiece; pip install 'sslcli[translation]'"
                raise BadInput(f"{key}={printable(source)}: {what}") from error
            reason = printable(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__, 160)
            raise BadCheckpoint(f"{key}={printable(source)}: its tokenizer cannot be read: {reason}") from error


def _most(tokens: int) -> int:
    """Tokens that a translation of so many may have: some models never end by themselves."""
    return 2 * tokens + 8

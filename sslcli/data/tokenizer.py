"""Tokenizers: trained on the user's own text, or taken from a pretrained model's folder; one face for both."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from sslcli.data.encode import Encoder
from sslcli.errors import BadCheckpoint, BadInput, printable

SAMPLE = 16_000_000  # characters of text that a tokenizer is trained on at most
ENCODER_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
DECODER_SPECIALS = ["<|endoftext|>", "[UNK]"]
ODD = "A  line of Words,\n\tnaïve 中文 ≠ 🙂"  # a tokenizer that gives this back keeps any text


class Tokenizer:
    """A Hugging Face fast tokenizer and what packing and masking need to know of it."""

    length = 128  # tokens of a row, settled once the network is known
    augment: Any = None  # what changes the texts that are learnt from
    say: Callable[[str], None] = staticmethod(lambda text: None)  # where preparations that take long are told

    def __init__(self, hf: Any):
        self.hf = hf
        if hf.pad_token_id is None and hf.eos_token_id is not None:
            hf.pad_token = hf.eos_token  # decoders come without one
        self.encoder = Encoder(hf.backend_tokenizer)
        self.corpus_encoder = Encoder(hf.backend_tokenizer, literal=True)
        self.size = len(hf)
        self.pad, self.mask, self.unknown = hf.pad_token_id, hf.mask_token_id, hf.unk_token_id
        self.end = hf.eos_token_id if hf.eos_token_id is not None else hf.sep_token_id
        self.special = np.zeros(self.size, bool)
        self.special[[i for i in hf.all_special_ids if i < self.size]] = True
        self.prefix, self.suffix = _template(hf)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """From a model folder; code in it is never run."""
        from transformers import AutoTokenizer

        if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")):
            raise BadCheckpoint(f"{printable(folder)}: holds no tokenizer; from= needs the model and its tokenizer in one folder")
        with quiet_transformers():
            try:
                hf = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            except Exception as error:  # the library raises whatever its parsers raise
                raise BadCheckpoint(f"{printable(folder)}: its tokenizer cannot be read: {printable(error, 160)}") from error
        if not hf.is_fast:
            raise BadCheckpoint(
                f"{printable(folder)}: its tokenizer has no fast version (tokenizer.json); convert it with transformers first"
            )
        return cls(hf)

    def for_words(self) -> "Tokenizer":
        """For text that comes as words: a byte-level tokenizer then sets the space before each, as inside of a text."""
        state = json.loads(self.hf.backend_tokenizer.to_str())
        if not _set_prefix_space(state.get("pre_tokenizer")):
            return self
        self.hf._tokenizer = Engine.from_str(json.dumps(state))
        self.hf.add_prefix_space = self.hf.init_kwargs["add_prefix_space"] = True
        return Tokenizer(self.hf)

    @property
    def said(self) -> str:
        return f"{self.size:,} tokens"

    @property
    def lossless(self) -> bool:
        ids = self.hf(ODD, add_special_tokens=False)["input_ids"]
        return self.hf.decode(ids, clean_up_tokenization_spaces=False) == ODD

    @property
    def identity(self) -> str:
        """Hash of everything that decides how text becomes ids."""
        return hashlib.sha256(self.hf.backend_tokenizer.to_str().encode()).hexdigest()

    def save(self, folder: Path) -> None:
        self.hf.save_pretrained(folder)


class Recipe:
    """How to train a tokenizer on the corpus at hand.

    auto: wordpiece for an encoder, bpe for a decoder.
    wordpiece: BERT's; Chinese characters stand alone, so no segmenter is needed; unknown characters become [UNK].
    bpe: byte level, so nothing is unknown and text is kept to the byte.
    unigram: a language model over pieces (Kudo 2018); finds Chinese words by itself; unknown characters fall back to bytes.
    """

    def __init__(
        self,
        *,
        kind: Literal["auto", "wordpiece", "bpe", "unigram"],
        vocabulary: Annotated[int, Field(ge=300, le=1_000_000)],
        lowercase: bool | None,
        min_frequency: Annotated[int, Field(ge=1)],
        byte_fallback: bool,
    ):
        self.kind, self.vocabulary, self.lowercase, self.min_frequency, self.byte_fallback = (
            kind,
            vocabulary,
            lowercase,
            min_frequency,
            byte_fallback,
        )

    @staticmethod
    def contradiction(keys: Mapping[str, Any]) -> str | None:
        clash = keys["kind"] == "wordpiece" and keys["byte_fallback"]
        return "wordpiece has no byte fallback; use tokenizer=bpe or tokenizer=unigram" if clash else None

    @staticmethod
    def settled(kind: str, decoder: bool) -> str:
        return kind if kind != "auto" else "bpe" if decoder else "wordpiece"

    def train(self, texts: Iterable[str], decoder: bool) -> Tokenizer:
        """`decoder`: for a left-to-right model, which needs an end of document and no [MASK]."""
        from transformers import PreTrainedTokenizerFast

        if self.kind == "auto":
            kind, lower = self.settled(self.kind, decoder), not decoder if self.lowercase is None else self.lowercase
            options = {"vocabulary": self.vocabulary, "min_frequency": self.min_frequency, "byte_fallback": False}
            return Recipe(kind=kind, lowercase=lower, **options).train(texts, decoder)  # type: ignore[arg-type]
        specials = (DECODER_SPECIALS[: 1 if self.kind == "bpe" else 2]) if decoder else ENCODER_SPECIALS
        engine, trainer = self._engine(specials)
        engine.train_from_iterator(_batches(texts), trainer)
        if self.kind == "unigram" and self.byte_fallback:
            engine = _with_bytes(engine)
        if engine.get_vocab_size() <= len(specials):
            raise BadInput("data.train: too little text to train a tokenizer on")
        if not decoder:
            ends = [(t, engine.token_to_id(t)) for t in ("[CLS]", "[SEP]")]
            engine.post_processor = processors.TemplateProcessing(
                single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
            )
        elif self.kind == "bpe":
            engine.post_processor = processors.ByteLevel(trim_offsets=False)
        if decoder:
            names = {"eos_token": specials[0], "pad_token": specials[0], **({"unk_token": "[UNK]"} if len(specials) > 1 else {})}
        else:
            names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), specials, strict=True))
        return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=engine, clean_up_tokenization_spaces=False, **names))

    def _engine(self, specials: Sequence[str]) -> tuple[Engine, Any]:
        size: dict[str, Any] = {"vocab_size": self.vocabulary, "special_tokens": list(specials), "show_progress": False}
        if self.kind == "wordpiece":
            engine = Engine(models.WordPiece(unk_token="[UNK]"))
            engine.normalizer = normalizers.BertNormalizer(lowercase=bool(self.lowercase))
            engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            engine.decoder = decoders.WordPiece()
            return engine, trainers.WordPieceTrainer(min_frequency=self.min_frequency, **size)
        if self.kind == "bpe":
            engine = Engine(models.BPE())
            if self.lowercase:
                engine.normalizer = normalizers.Lowercase()
            engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            engine.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            return engine, trainers.BpeTrainer(min_frequency=self.min_frequency, initial_alphabet=alphabet, **size)
        engine = Engine(models.Unigram())
        lower = [normalizers.Lowercase()] if self.lowercase else []
        engine.normalizer = normalizers.Sequence([normalizers.NFKC(), *lower])
        engine.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
        engine.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
        if self.byte_fallback:
            size["vocab_size"] = max(self.vocabulary - 256, len(specials) + 1)
        return engine, trainers.UnigramTrainer(unk_token="[UNK]", **size)


def sample(texts: Iterable[str], limit: int = SAMPLE) -> list[str]:
    """Every k-th text, k doubling as they come, so that an even sample of any corpus fits in `limit` characters."""
    kept: list[tuple[int, str]] = []
    size, stride = 0, 1
    for i, text in enumerate(texts):
        if i % stride:
            continue
        kept.append((i, text))
        size += len(text)
        while size > limit and len(kept) > 1:
            stride *= 2
            kept = [(j, t) for j, t in kept if j % stride == 0]
            size = sum(len(t) for _, t in kept)
    return [t for _, t in kept]


def _with_bytes(engine: Engine) -> Engine:
    """The trainer learns no byte pieces: add the 256, less likely than any learnt piece, and let unknown characters fall back to them."""
    state = json.loads(engine.to_str())
    vocabulary = state["model"]["vocab"]
    lowest = min(score for _, score in vocabulary) - 10.0
    vocabulary += [[f"<0x{byte:02X}>", lowest] for byte in range(256)]
    state["model"]["byte_fallback"] = True
    return Engine.from_str(json.dumps(state))


def _set_prefix_space(part: Any) -> bool:
    """In a pre-tokenizer's state, wherever it is byte-level; whether it is anywhere."""
    if isinstance(part, list):
        found = [_set_prefix_space(x) for x in part]  # all of them, not only up to the first
        return any(found)
    if not isinstance(part, dict):
        return False
    if part.get("type") == "ByteLevel":
        part["add_prefix_space"] = True
        return True
    return _set_prefix_space(part.get("pretokenizers"))


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    held: list[str] = []
    for text in texts:
        held.append(text)
        if len(held) == 1000:
            yield held
            held = []
    if held:
        yield held


def _template(hf: Any) -> tuple[list[int], list[int]]:
    """The special tokens that this tokenizer sets before and after a text."""
    coded = hf("a", return_special_tokens_mask=True)
    mask, ids = coded["special_tokens_mask"], coded["input_ids"]
    inner = [i for i, m in enumerate(mask) if not m]
    return (ids[: inner[0]], ids[inner[-1] + 1 :]) if inner else (ids, [])


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Loading reports of our own replace the library's warnings and bars."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging as hf_logging

    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity(logging.CRITICAL)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)

"""Where words begin in a run of tokens: at a space, at a Chinese word (found by the segmenter jieba), never inside either."""

import json
import re
from collections.abc import Callable

import numpy as np

from sslcli.data.encode import CJK
from sslcli.data.tokenizer import Tokenizer

HAN = re.compile(f"[{CJK}]")
# of byte-level tokens: bytes that begin a Chinese character in UTF-8 (U+3000 to U+9FFF)
HAN_BYTES = range(0xE3, 0xEA)


def word_begins(tokenizer: Tokenizer) -> Callable[[np.ndarray], np.ndarray]:
    """A function of ids [B, T] that is true where a word begins, [B, T] bool."""
    kind = json.loads(tokenizer.hf.backend_tokenizer.to_str())["model"]["type"]
    tokens = tokenizer.hf.convert_ids_to_tokens(list(range(tokenizer.size)))
    if kind == "WordPiece":
        opens = np.array([not t.startswith("##") for t in tokens]) | tokenizer.special
        single = np.array([t if len(t) == 1 and HAN.fullmatch(t) else "" for t in tokens])
        return lambda ids: _segmented(opens[ids], single[ids])
    if any(t.startswith("Ġ") for t in tokens):
        opens = np.array([t.startswith(("Ġ", "Ċ", "ĉ", "č")) or _byte(t) in HAN_BYTES for t in tokens]) | tokenizer.special
        return lambda ids: opens[ids]
    # pieces of a language model: a piece of Chinese is a word of its own
    opens = np.array([t.startswith("▁") or bool(HAN.match(t)) for t in tokens]) | tokenizer.special
    closes = np.array([bool(HAN.match(t[-1:])) for t in tokens])
    return lambda ids: opens[ids] | np.pad(closes[ids][:, :-1], ((0, 0), (1, 0)))


def _byte(token: str) -> int:
    """The first byte of a byte-level token (GPT-2 shows bytes as printable characters; those above 0xAC as themselves)."""
    return ord(token[0]) if token else 0


def _segmented(opens: np.ndarray, single: np.ndarray) -> np.ndarray:
    """`single` [B, T] holds the character where a token is one Chinese character; runs of them are cut into words."""
    import rjieba

    opens = opens.copy()
    for row, characters in zip(opens, single, strict=True):
        places = np.flatnonzero(characters != "")
        for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
            if len(run) > 1:
                lengths = [len(word) for word in rjieba.cut("".join(characters[run]))]
                row[run] = False
                row[run[0] + np.cumsum([0, *lengths[:-1]])] = True
    return opens

"""Texts to token ids, several times faster than asking the tokenizer for whole documents.

Most pipelines treat text piece by piece: the tokens of a document are the tokens of its words, one after the other. For those the
words are looked up in a table that grows as new ones appear; every other pipeline gets whole documents. `tests/test_tokenizer.py`
compares both ways over scripts and pipelines.
"""

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from tokenizers import Tokenizer

# the characters that BERT sets apart as words of their own
CJK = (
    "\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f"
    "\U0002b740-\U0002b81f\U0002b820-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f"
)
ASCII_PUNCTUATION = r"!-/:-@\[-`{-~"
MAX_UNITS = 200_000  # words in the table: it stops growing there, so that memory stays flat
MAX_PIECE = 32  # characters of a word worth remembering

UNICODE_SPACE = r" \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\n\r\t"
SPACE = r"\x0b\x0c\x85" + UNICODE_SPACE  # what the tokenizers library calls white space; BERT's cleaning drops the first three instead

# what a piece is, where pieces are independent of their neighbours
BERT_PIECES = rf"[{ASCII_PUNCTUATION}]|[^{UNICODE_SPACE}{ASCII_PUNCTUATION}]+"
BERT_CJK_PIECES = rf"[{CJK}]|[{ASCII_PUNCTUATION}]|[^{UNICODE_SPACE}{CJK}{ASCII_PUNCTUATION}]+"
SPACED_PIECES = rf"[^{SPACE}]+"
LEADING_SPACE_PIECES = rf"[{SPACE}]*[^{SPACE}]+|[{SPACE}]+"


class Encoder:
    """`encode(texts)` -> (token ids of all texts, number of tokens of each text); no special tokens are added.

    `literal`: a "[MASK]" that stands in a text is text (a corpus); otherwise it is the special token, as any other user of the
    tokenizer would read it (a task, whose exported model must agree).
    """

    def __init__(self, tokenizer: Tokenizer, literal: bool = False):
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = literal
        pipeline = json.loads(tokenizer.to_str())
        pattern = pieces(pipeline)
        self.pattern = re.compile(pattern) if pattern else None
        added = [re.escape(t["content"]) for t in pipeline["added_tokens"] if not (literal and t["special"])]
        self.added = re.compile("|".join(added)) if added else None
        self.table: dict[str, int] = {}
        self.starts = np.zeros(1, np.int64)  # where each known piece's tokens begin in `tokens`; one more at the end
        self.tokens = np.zeros(0, np.uint32)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if self.pattern is None:
            return self._whole(texts)
        if self.added and any(map(self.added.search, texts)):
            return self._whole(texts)
        return self.encode_pieces([self.pattern.findall(text) for text in texts])

    def encode_pieces(self, documents: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
        """As `encode`, of documents that are already cut in pieces (words of a labelled sentence)."""
        ids, piece_lengths = self.per_piece(documents)
        ends = np.cumsum([0, *map(len, documents)])
        token_ends = np.concatenate([[0], np.cumsum(piece_lengths)])
        return ids, np.diff(token_ends[ends])

    def per_piece(self, documents: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
        """(token ids of all documents, number of tokens of each piece)."""
        flat = list(chain.from_iterable(documents))
        extra = self._learn(flat)
        places = map(self.table.__getitem__, flat) if not extra else (extra[p] if p in extra else self.table[p] for p in flat)
        pieces = np.fromiter(places, np.int64, len(flat))
        lengths = (self.starts[1:] - self.starts[:-1])[pieces]
        ids = self.tokens[ranges(self.starts[pieces], lengths)]
        if extra:  # pieces beyond the table's size were appended for this call only
            self.starts = self.starts[: len(self.table) + 1]
            self.tokens = self.tokens[: self.starts[-1]]
        return ids, lengths

    def _learn(self, flat: Sequence[str]) -> dict[str, int]:
        """Add unknown pieces to the table; returns those that are only known until the next call."""
        new = [piece for piece in dict.fromkeys(flat) if piece not in self.table]
        if not new:
            return {}
        room = max(0, MAX_UNITS - len(self.table))
        kept = [piece for piece in new if len(piece) <= MAX_PIECE][:room]
        once = set(new).difference(kept)
        new = kept + [piece for piece in new if piece in once]
        encoded = [e.ids for e in self.tokenizer.encode_batch_fast(new, add_special_tokens=False)]
        ends = self.starts[-1] + np.cumsum([len(ids) for ids in encoded])
        self.starts = np.concatenate([self.starts, ends])
        self.tokens = np.concatenate([self.tokens, np.fromiter(chain.from_iterable(encoded), np.uint32)])
        places = {piece: len(self.table) + i for i, piece in enumerate(new)}
        self.table.update((piece, places[piece]) for piece in kept)
        return {piece: places[piece] for piece in once}

    def _whole(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = [e.ids for e in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        return np.fromiter(chain.from_iterable(encoded), np.uint32, int(lengths.sum())), lengths


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[s0, s0+1, ..., s0+l0-1, s1, ...]: the places of ragged slices in one flat array."""
    total = int(lengths.sum())
    shifts = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    return shifts + np.arange(total)


def pieces(pipeline: dict[str, Any]) -> str | None:
    """The pattern of independent pieces of a tokenizer pipeline, or None where neighbours matter."""
    normalizers = _steps(pipeline.get("normalizer"), "normalizers")
    by_character = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"}
    if any(step["type"] not in by_character for step in normalizers):
        return None
    steps = _steps(pipeline.get("pre_tokenizer"), "pretokenizers")
    kinds = [step["type"] for step in steps]
    if kinds == ["BertPreTokenizer"]:
        cleaned = [n for n in normalizers if n["type"] == "BertNormalizer" and n["clean_text"]]
        if not cleaned:
            return None
        return BERT_CJK_PIECES if cleaned[0]["handle_chinese_chars"] else BERT_PIECES
    if kinds and kinds[0] in ("Whitespace", "WhitespaceSplit"):
        later = steps[1:]
        if all(s["type"] in ("Punctuation", "Digits") or (s["type"] == "Metaspace" and s["prepend_scheme"] == "always") for s in later):
            return SPACED_PIECES
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True) and not steps[0]["add_prefix_space"]:
        return LEADING_SPACE_PIECES
    return None


def _steps(node: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if node is None:
        return []
    return [s for child in node[key] for s in _steps(child, key)] if node["type"] == "Sequence" else [node]

"""Back-translation (Sennrich et al. 2016; for training on labels and consistency, Xie et al. 2020): texts there and back again."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from sslcli.augment.text import Rewriting
from sslcli.augment.words import Text
from sslcli.data import chance
from sslcli.data.store import Store, built
from sslcli.data.tokenizer import Tokenizer
from sslcli.hf.translation import Translator
from sslcli.log import PLAIN_EVERY, duration

CHUNK = 256  # texts that are kept together: after a stop no more than these are translated again


class BackTranslation(Rewriting):
    """Before the first step every text is said in another language by `forward` and brought back by `backward`, `copies` times; what
    came of it is kept, and an epoch draws one of them. `temperature`: translations are drawn, the higher the more unlike; null: the most
    likely ones. `beams` are searched for each. `forward_prefix`, `backward_prefix`: what a model wants before a text, as T5 does."""

    def __init__(
        self,
        *,
        probability: Annotated[float, Field(ge=0, le=1)],
        forward: str | None,
        backward: str | None,
        copies: Annotated[int, Field(ge=1, le=16)],
        temperature: Annotated[float, Field(gt=0, le=2)] | None,
        beams: Annotated[int, Field(ge=1, le=16)],
        forward_prefix: str,
        backward_prefix: str,
    ):
        super().__init__(probability, 0.0)
        assert forward is not None and backward is not None  # contradiction() has told
        self.copies, self.temperature, self.beams = copies, temperature, beams
        self.forward = Translator(forward, forward_prefix, "augment.forward")
        self.backward = Translator(backward, backward_prefix, "augment.backward")

    @staticmethod
    def contradiction(keys: Mapping[str, Any]) -> str | None:
        missing = next((name for name in ("forward", "backward") if keys[name] is None), None)
        what = "missing; name a translation model (a folder or a hub name) there, and with the other key the one that leads back"
        return f"{missing}: {what}" if missing else None

    def begin(self, model: Any, tokenizer: Tokenizer, store: Store) -> None:
        super().begin(model, tokenizer, store)
        every = list(dict.fromkeys(self.texts(np.flatnonzero(self.whole))))
        self.said = f"there by {self.forward.source}, back by {self.backward.source}"
        names = {"forward": self.forward.identity, "backward": self.backward.identity}
        settings = {"copies": self.copies, "temperature": self.temperature, "beams": self.beams}
        self.found: dict[str, list[str]] = {}
        started = time.monotonic()
        for first in range(0, len(every), CHUNK):
            part = every[first : first + CHUNK]
            digest = hashlib.sha256(json.dumps(part).encode()).hexdigest()

            def make(making: Path, part: Sequence[str] = part, digest: str = digest, first: int = first) -> None:
                progress = _Progress(tokenizer.say, len(every), first, started)
                lines = self._translated(part, int(digest[:8], 16), progress)
                (making / "texts.json").write_text(json.dumps(lines, ensure_ascii=False), encoding="utf-8")

            folder = built({"kind": "back_translation", **names, **settings, "texts": digest}, make)
            kept = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
            self.found |= dict(zip(part, kept, strict=True))

    def _translated(self, texts: Sequence[str], seed: int, progress: "_Progress") -> list[list[str]]:
        """Of each text, what came back that is not empty and not the text itself, each once."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            there = self.forward(texts, self.copies, self.beams, self.temperature, progress.half)
            flat = [pivot for pivots in there for pivot in pivots]
            back = self.backward(flat, 1, self.beams, self.temperature, lambda done: progress.rest(done / self.copies, len(texts)))
        pieces = [[back[i * self.copies + j][0] for j in range(self.copies)] for i in range(len(texts))]
        return [[new for new in dict.fromkeys(some) if new and new != text] for text, some in zip(texts, pieces, strict=True)]

    def rewrite(self, text: Text, random: Random) -> str:
        raise AssertionError("texts are translated whole")

    def rewritten(self, text: str, key: np.uint64) -> tuple[str, str, Text]:
        random, words = Random(int(key)), Text([], [""])
        if random.random() >= self.probability:
            return text, "", words
        found = self.found.get(text)
        return (random.choice(found), "translated", words) if found else (text, "translated", words)

    def receipt(self, seed: int) -> dict[str, Any]:
        rows = self.some()
        rows = rows[self.whole[rows]]
        texts, keys = self.texts(rows), chance.keys(seed, 0, rows)
        made = [self.rewritten(text, key) for text, key in zip(texts, keys, strict=True)]
        tried = sum(bool(by) for _, by, _ in made)
        other = [(new, old) for (new, _, _), old in zip(made, texts, strict=True) if new != old]
        if abs(tried - self.probability * len(rows)) > 6 * max(1.0, (len(rows) * self.probability * (1 - self.probability)) ** 0.5):
            raise AssertionError(f"augment.probability={self.probability:g}: {tried} of {len(rows)} texts were to be translated")
        longer = sum(len(new) for new, _ in other) / max(1, sum(len(old) for _, old in other))
        alone = sum(not self.found[text] for text in texts)
        return {
            "texts": len(rows),
            "to_rewrite": tried,
            "rewritten": len(other),
            "came_back_as_they_were": alone,
            "length": round(longer, 3),
        }


class _Progress:
    """A line every few seconds: one half of a text's way is there, the other back."""

    def __init__(self, say: Any, total: int, first: int, started: float):
        self.say, self.total, self.first, self.started, self.shown = say, total, first, started, time.monotonic()

    def half(self, done: float) -> None:
        self._told(done / 2)

    def rest(self, done: float, of: int) -> None:
        self._told((of + done) / 2)

    def _told(self, done: float) -> None:
        now, place = time.monotonic(), self.first + done
        if now - self.shown >= PLAIN_EVERY and place:
            self.shown = now
            left = duration((self.total - place) * (now - self.started) / place)
            self.say(f"back-translation {place:,.0f}/{self.total:,} texts  {left} left")

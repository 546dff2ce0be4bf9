"""Changes of a text's words and letters: what augmentations train with, and what robustness is measured with. Chance is handed in."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random

from sslcli.data.encode import CJK

WORD = re.compile(rf"[{CJK}]+|(?:(?![{CJK}])\w)+(?:['’-](?:(?![{CJK}])\w)+)*")
HAN = re.compile(f"[{CJK}]")
ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # of a keyboard
Synonyms = Callable[[str], Sequence[str]]


@dataclass
class Text:
    """Words, and what stands between them: gaps[i] before word i, one more at the end."""

    words: list[str]
    gaps: list[str]
    changed: int = field(default=0)  # words that were changed, put in, taken out or moved

    @classmethod
    def of(cls, text: str) -> "Text":
        """Runs of Chinese characters are cut into words by the segmenter jieba."""
        words, gaps, end = [], [], 0
        for match in WORD.finditer(text):
            parts = _segmented(match[0]) if HAN.match(match[0]) else [match[0]]
            words += parts
            gaps += [text[end : match.start()], *[""] * (len(parts) - 1)]
            end = match.end()
        return cls(words, [*gaps, text[end:]])

    def __str__(self) -> str:
        return "".join(gap + word for gap, word in zip(self.gaps, self.words, strict=False)) + self.gaps[-1]

    def remove(self, place: int) -> None:
        del self.words[place]
        before, after = self.gaps[place], self.gaps.pop(place + 1)
        self.gaps[place] = before.rstrip() + after if after.strip() else before
        self.changed += 1

    def insert(self, place: int, word: str) -> None:
        """After the word at this place."""
        self.words.insert(place + 1, word)
        self.gaps.insert(place + 1, "" if HAN.match(word) else " ")
        self.changed += 1


def delete(text: Text, rate: float, random: Random) -> None:
    """Every word with this probability; one is left (Wei and Zou 2019)."""
    gone = [i for i in range(len(text.words)) if random.random() < rate]
    if len(gone) == len(text.words) and gone:
        gone.remove(random.choice(gone))
    for place in reversed(gone):
        text.remove(place)


def swap(text: Text, rate: float, random: Random) -> None:
    """The words of two places that differ, so often that a share `rate` of the words has moved."""
    for _ in range(_times(len(text.words) / 2, rate, random)):
        one, other = random.randrange(len(text.words)), random.randrange(len(text.words))
        if text.words[one] != text.words[other]:
            text.words[one], text.words[other] = text.words[other], text.words[one]
            text.changed += 2


def replace(text: Text, rate: float, random: Random, synonyms: Synonyms) -> None:
    """A share `rate` of the words by a synonym, where they have one."""
    for place in random.sample(range(len(text.words)), len(text.words)):
        if random.random() < rate and (found := synonyms(text.words[place])):
            text.words[place] = _cased(random.choice(found), text.words[place])
            text.changed += 1


def insert(text: Text, rate: float, random: Random, synonyms: Synonyms) -> None:
    """Synonyms of words of the text, each at a random place."""
    if not text.words:
        return
    for _ in range(_times(len(text.words), rate, random)):
        if found := synonyms(random.choice(text.words)):
            text.insert(random.randrange(len(text.words)), random.choice(found))


def mistype(text: Text, rate: float, random: Random) -> None:
    """One slip of the fingers in every word with this probability: a key beside the right one, or a letter dropped, doubled or swapped
    with the next. A Chinese word loses or doubles a character, or has two in the wrong order."""
    for place, word in enumerate(text.words):
        if random.random() < rate and (wrong := slip(word, random)) != word:
            text.words[place] = wrong
            text.changed += 1


def confuse(text: Text, rate: float, random: Random, alike: Synonyms) -> None:
    """In a share `rate` of the words one character, of those that have look-alikes, becomes one of them."""
    for place, word in enumerate(text.words):
        if random.random() < rate and (may := [i for i, c in enumerate(word) if alike(c)]):
            at = random.choice(may)
            text.words[place] = word[:at] + random.choice(alike(word[at])) + word[at + 1 :]
            text.changed += 1


def slip(word: str, random: Random) -> str:
    at = random.randrange(len(word))
    kind = random.randrange(4)
    if kind == 0 and (keys := beside(word[at].lower())):
        key = random.choice(keys)
        return word[:at] + (key.upper() if word[at].isupper() else key) + word[at + 1 :]
    if kind == 1 and len(word) > 1:
        return word[:at] + word[at + 1 :]
    if kind == 2 and len(word) > 1:
        at = min(at, len(word) - 2)
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[: at + 1] + word[at:]


@cache
def beside(key: str) -> str:
    """The letters around a key of a QWERTY keyboard."""
    for row, keys in enumerate(ROWS):
        if (at := keys.find(key)) >= 0:
            near = [(row, at - 1), (row, at + 1), (row - 1, at), (row - 1, at + 1), (row + 1, at - 1), (row + 1, at)]
            return "".join(ROWS[r][c] for r, c in near if 0 <= r < 3 and 0 <= c < len(ROWS[r]))
    return ""


def _times(words: float, rate: float, random: Random) -> int:
    """rate * words in the mean: the fraction decides by chance."""
    return int(rate * words + random.random()) if words >= 1 else 0


def _cased(word: str, like: str) -> str:
    return word.capitalize() if like[:1].isupper() and not like[1:].isupper() else word


@cache
def _jieba() -> Callable[[str], list[str]]:
    import rjieba

    return rjieba.cut


def _segmented(run: str) -> list[str]:
    return list(_jieba()(run)) if len(run) > 1 else [run]

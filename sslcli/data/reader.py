"""Raw records to checked examples: which column plays which role, which records are bad, and what happens to those."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from sslcli.data.header import SUFFIXES, kind_of
from sslcli.data.lines import Bad
from sslcli.data.source import Source
from sslcli.errors import BadInput, Unsafe, at, printable

NAMES = {
    "text": "text sentence content body review comment document utterance message question passage article tweet query title abstract "
    "文本 内容 正文 评论 句子".split(),
    "label": "label labels category class intent sentiment topic target tag y 标签 类别 分类".split(),
    "tokens": "tokens words".split(),
    "tags": "tags ner_tags labels ner tag".split(),
    "text_a": "text_a texta sentence1 sentence_1 sentence_a premise query question anchor text1 text_1 source_sentence 句子1 问题".split(),
    "text_b": "text_b textb sentence2 sentence_2 sentence_b hypothesis positive passage answer text2 text_2 target_sentence 句子2".split(),
    "score": "score similarity similarity_score relatedness relatedness_score label gold 分数 相似度".split(),
    "positives": "positives positive positive_ids positive_passages passage passages answer answers text_b 答案".split(),
    "negative": "negative negatives hard_negative hard_negatives negative_passages contradiction".split(),
    "id": "id _id doc_id docid pid passage_id corpus_id".split(),
    "passage": "passage text answer document content contents body 答案 文本 内容".split(),
    "source": [],  # where a row comes from: never guessed, as a record that lacks it would be bad
    "image": "image img picture photo image_path img_path filepath file_path filename file_name path file images 图片 图像".split(),
}
TEXTS = ("text", "text_a", "text_b", "passage")  # roles that are one text each
LISTED = 20  # bad records named one by one; the rest is counted
MAX_BAD, MIN_BAD = 0.001, 10  # `skip` gives up beyond this share, or this many in small data


class Reader:
    """Iterates over (file, record, {role: value}). After a full pass `finish` applies the policy for bad records.

    Reading never stops at the first bad record: all are found before anything is trained.
    """

    def __init__(
        self,
        key: str,
        source: Source,
        roles: Sequence[str],
        columns: Mapping[str, str | None],
        policy: Literal["fail", "skip"],
        allow_empty: bool,
        optional: Sequence[str] = (),
    ):
        self.key, self.source, self.policy, self.allow_empty = key, source, policy, allow_empty
        self.bad: list[tuple[str, Bad]] = []
        self.read = 0
        self.kinds: dict[str, tuple[str, str]] = {}  # role -> its type, and where it was first seen
        self.columns = self._choose(roles, columns, optional)

    def __iter__(self) -> Iterator[tuple[str, Any, dict[str, Any]]]:
        self.bad, self.read, self.kinds = [], 0, {}
        for item in self.source.records():
            if isinstance(item[1], Bad):
                self.bad.append((item[0], item[1]))
                self.read += not item[1].fatal
                continue
            file, number, record = item
            self.read += 1
            reason = self._problem(file, number, record)
            if reason:
                self.bad.append((file, Bad(number, reason)))
                continue
            yield file, number, {role: record[column] for role, column in self.columns.items()}

    def reject(self, file: str, record: int | None, reason: str) -> None:
        """A later check (an unknown label, a broken tag sequence) found this record bad."""
        self.bad.append((file, Bad(record, reason)))

    def finish(self) -> list[dict[str, Any]]:
        """Raise if the bad records are too many for the policy; else return them for bad_records.jsonl."""
        return verdict(self.key, self.policy, self.read, self.bad)

    def _problem(self, file: str, number: int, record: Mapping[str, Any]) -> str | None:
        for role, column in self.columns.items():
            if column not in record:
                return f"no field {printable(column)} (the {role}); found {printable(', '.join(map(str, record)) or 'none')}"
            value = record[column]
            reason = wrong_type(role, column, value)
            if reason:
                return reason
            if role == "text" and not self.allow_empty and not value.strip():
                return f"{printable(column)} is empty; remove the record, or accept such with data.allow_empty=true"
            if role in TEXTS[1:] and not value.strip():
                return f"{printable(column)} (the {role}) is empty; remove the record"
            if role == "label" and isinstance(value, str) and not value.strip():
                return f"{printable(column)} is empty; give it a label"
            if role == "label":
                kind = _kind(value)
                first = self.kinds.setdefault(role, (kind, at(file, number)))
                if kind != first[0]:
                    return f"{printable(column)} is {kind} here but {first[0]} in {first[1]}; write all labels in one way"
        if "tokens" in self.columns and len(record[self.columns["tokens"]]) != len(record[self.columns["tags"]]):
            words, tags = len(record[self.columns["tokens"]]), len(record[self.columns["tags"]])
            return f"{words} words but {tags} tags; every word needs one"
        return None

    def _choose(self, roles: Sequence[str], columns: Mapping[str, str | None], optional: Sequence[str]) -> dict[str, str]:
        sample = list(islice(self.source.records(), 200))
        records = [item[2] for item in sample if len(item) == 3]
        if not records:
            self.bad = [(f, b) for f, b in sample]  # type: ignore[misc]
            self.finish()
            raise BadInput(f"{self.key}: no records")
        names = list(Counter(str(n) for r in records for n in r))
        chosen: dict[str, str] = {}
        for role in roles:
            given = columns.get(role)
            free = [n for n in names if n not in chosen.values() and not _claimed(n, set(roles) - {role})]
            name = given or _guess(role, free, records)
            if name is None and role in optional:
                continue
            headless = self._headless(names, records)
            if name is None or name not in names or (headless and not given):
                file = sample[0][0]
                what = f"no column {printable(given)}" if given else f"no column for the {role}"
                example = f"data.columns.{role}=<name>"
                raise BadInput(f"{at(file)}: {what}; found {printable(', '.join(names))}: choose with {example}" + headless)
            chosen[role] = name
        return chosen

    def _headless(self, names: Sequence[str], records: Sequence[Mapping[str, Any]]) -> str:
        """Whether what should be names are a record: a sentence, or a value that its own column has again."""
        known = any(n.lower() in names_ for names_ in NAMES.values() for n in names)
        looks_like_data = not known and any(len(n.split()) > 3 or any(r.get(n) == n for r in records) for n in names)
        return " (the first line looks like data: add a header line?)" if looks_like_data else ""


def verdict(key: str, policy: str, read: int, bad: Sequence[tuple[str, Bad]]) -> list[dict[str, Any]]:
    """The policy applied: raise with the bad records one by one, or return them."""
    fatal = any(b.fatal for _, b in bad)
    most = max(MIN_BAD, int(MAX_BAD * read))
    allowed = 0 if policy == "fail" else most
    if fatal or len(bad) > allowed:
        lines = [f"{at(file, b.record, b.byte)}: {b.reason}" for file, b in bad[:LISTED]]
        if len(bad) > LISTED:
            lines.append(f"... and {len(bad) - LISTED} more")
        if read:
            lines.append(f"checked {read:,} records: {read - sum(not b.fatal for _, b in bad):,} good, {len(bad):,} bad")
            if not fatal and len(bad) > most:
                lines[-1] += f"; mend them: data.on_bad_record=skip leaves out at most {most} of {read:,}"
            elif not fatal:
                lines[-1] += "; mend them, or leave them out with data.on_bad_record=skip"
        raise (Unsafe if any(b.unsafe for _, b in bad) else BadInput)("\n".join(lines))
    if read == len(bad):
        raise BadInput(f"{key}: no records")
    return [{"file": f, "record": b.record, "byte": b.byte, "reason": b.reason} for f, b in bad]


def _claimed(name: str, roles: set[str]) -> bool:
    """Whether a column is named as one of these roles."""
    return any(name.strip().lower() in NAMES.get(role, ()) for role in roles)


def _guess(role: str, names: Sequence[str], records: Sequence[Mapping[str, Any]]) -> str | None:
    clean = {n.strip().lower(): n for n in reversed(names)}
    for name in NAMES[role]:
        if name in clean and _fits(role, clean[name], records, 0.0):  # named so: what does not fit is a bad record
            return clean[name]
    fitting = [n for n in names if _fits(role, n, records)]
    if role == "text" and fitting:
        return max(fitting, key=lambda n: sum(len(str(r.get(n) or "")) for r in records))
    if role == "image":
        return next((n for n in names if any(_looks_like_a_picture(r.get(n)) for r in records)), None)
    return fitting[0] if len(fitting) == 1 and role == "label" else None


def _fits(role: str, column: str, records: Sequence[Mapping[str, Any]], least: float = 0.5) -> bool:
    values = [r[column] for r in records if r.get(column) is not None]
    fitting = sum(wrong_type(role, column, v) is None for v in values)
    return bool(values) and fitting > least * len(values)


def wrong_type(role: str, column: str, value: Any) -> str | None:
    if value is None:
        return f"{printable(column)} (the {role}) is null; fill it in or remove the record"
    if role in TEXTS and not isinstance(value, str):
        return f"{printable(column)} is {_kind(value)}; expected text"
    if role == "score" and number(value) is None:
        return f"{printable(column)} is {printable(value)}; expected a number (the score of the pair)"
    if role == "source" and not isinstance(value, (str, int, float)):
        return f"{printable(column)} (the {role}) is {_kind(value)}; expected a name"
    if role == "label" and any(isinstance(v, float) and not math.isfinite(v) for v in (value if isinstance(value, list) else [value])):
        return f"{printable(column)} (the {role}) is {printable(value)}; fill it in or remove the record"
    if role in ("positives", "negative", "id"):
        return _wrong_passages(role, column, value)
    if role == "image" and not isinstance(value, (str, bytes)) and not (isinstance(value, dict) and {"bytes", "path"} & value.keys()):
        return f"{printable(column)} is {_kind(value)}; expected a path, or the bytes of a picture"
    if role == "label" and not isinstance(value, (str, int, float, list)):
        return f"{printable(column)} is {_kind(value)}; expected a label or a list of labels"
    if role in ("tokens", "tags"):
        if not isinstance(value, list):
            return f"{printable(column)} is {_kind(value)}; expected a list"
        wrong = next((v for v in value if not isinstance(v, (str, int) if role == "tags" else str)), None)
        if wrong is not None or (role == "tokens" and not value):
            return (
                f"{printable(column)} holds {_kind(wrong)}; expected text" if value else f"{printable(column)} is empty; remove the record"
            )
    return None


def _wrong_passages(role: str, column: str, value: Any) -> str | None:
    """Texts of passages, or their names: one, or a list of them (a name is one)."""
    several = value if isinstance(value, list) and role != "id" else [value]
    wrong = next((v for v in several if isinstance(v, bool) or not isinstance(v, (str, int))), None)
    if wrong is not None:
        return f"{printable(column)} holds {_kind(wrong)}; expected text" + ("" if role == "id" else " or the name of a passage")
    empty = not several if role == "positives" else False
    if empty or any(isinstance(v, str) and not v.strip() for v in several):
        return f"{printable(column)} (the {role}) is empty; remove the record"
    return None


def number(value: Any) -> float | None:
    """A finite number, or a text that says one (of CSV)."""
    try:
        found = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return found if found is not None and math.isfinite(found) else None


def _looks_like_a_picture(value: Any) -> bool:
    if isinstance(value, str):
        return Path(value).suffix.lower() in SUFFIXES
    return kind_of(value if isinstance(value, bytes) else (isinstance(value, dict) and value.get("bytes")) or b"") is not None


def named(label: Any) -> str:
    """A label as text: 1.0 and 1 are one, so are true and True."""
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label).strip()


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), type(value).__name__)

"""JSON lines, stricter than Python's `json`: no duplicate keys, no NaN, no lone surrogates, bounded depth and numbers."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sslcli.data.lines import CUT, Bad, lines

MAX_DEPTH, MAX_DIGITS = 64, 400


class _Refused(ValueError):
    pass


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise _Refused(f"the key {twice!r} stands twice; keep one")
    return record


def _constant(name: str) -> float:
    raise _Refused(f"{name} is not JSON; use null or leave the field out")


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _Refused(f"the number {text[:20]} is too large")
    return value


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _Refused(f"an integer of {len(text)} digits; write it as text")
    return int(text)


_decoder = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_float, parse_int=_int)
_surrogate = re.compile(r"\\u[dD][89abAB]|\\u[dD][c-fC-F]")


def records(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]] | Bad]:
    waiting: Bad | None = None  # a line that breaks off is only known to be the last once nothing follows it
    for line in lines(path, encoding):
        if waiting:
            yield waiting
            waiting = None
        if isinstance(line, Bad):
            yield line
            continue
        number, offset, text = line
        if not text or text.isspace():
            continue
        record = parse(text, number, offset)
        if isinstance(record, Bad):
            if record.fatal:
                yield record
                return
            if _breaks_off(text):
                waiting = record
            else:
                yield record
        else:
            yield number, record
    if waiting:
        yield Bad(waiting.record, CUT, waiting.byte)


def parse(text: str, number: int, offset: int) -> dict[str, Any] | Bad:
    if number == 1 and text.lstrip().startswith("[") and _is_array(text):
        return Bad(1, "this is a JSON array, not JSON lines; write one object a line (jq -c '.[]' file.json)", offset, fatal=True)
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        return Bad(number, f"nesting over {MAX_DEPTH} levels; flatten the record", offset)
    try:
        start = len(text) - len(text.lstrip())
        record, end = _decoder.raw_decode(text, start)
    except _Refused as error:
        return Bad(number, str(error), offset)
    except json.JSONDecodeError as error:
        if "Unterminated string" in error.msg:
            return Bad(number, f"a string is not closed (it opens in column {error.pos + 1}); close it", offset)
        return Bad(number, f"not JSON at column {error.pos + 1}: {error.msg[0].lower() + error.msg[1:]}; write one object a line", offset)
    except (RecursionError, ValueError):
        return Bad(number, f"nesting over {MAX_DEPTH} levels; flatten the record", offset)
    rest = text[end:].lstrip()
    if rest:
        column = len(text) - len(rest) + 1
        return Bad(number, f"a second value begins at column {column}; write one object a line", offset)
    if not isinstance(record, dict):
        return Bad(number, f'holds {_kind(record)}; every line must be an object like {{"text": "..."}}', offset)
    if _surrogate.search(text):
        try:
            json.dumps(record, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            return Bad(number, "a lone surrogate (half a character); write the text again as UTF-8", offset)
    return record


def _breaks_off(text: str) -> bool:
    """Whether a broken line is right as far as it goes."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return "Unterminated string" in error.msg or error.pos >= len(text.rstrip())
    except (RecursionError, ValueError):
        pass
    return False


def _is_array(text: str) -> bool:
    stripped = text.strip()
    return stripped == "[" or stripped[1:].lstrip().startswith(("{", "[")) or not stripped.endswith("]")


def _depth(text: str) -> int:
    deepest = level = 0
    quoted = escaped = False
    for c in text:
        if quoted:
            quoted, escaped = (c != '"' or escaped), (c == "\\" and not escaped)
        elif c == '"':
            quoted = True
        elif c in "{[":
            level += 1
            deepest = max(deepest, level)
        elif c in "}]":
            level -= 1
    return deepest


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "true or false", type(None): "null"}
    return names.get(type(value), type(value).__name__)

"""Pictures that stand in tables: parquet and hub data sets with their bytes, CSV and JSON lines with their paths."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from sslcli.data.header import SUFFIXES
from sslcli.data.image_source import Picture
from sslcli.data.lines import Bad
from sslcli.data.reader import Reader, wrong_type
from sslcli.data.source import Source
from sslcli.data.store import contents_hash
from sslcli.errors import BadInput, at, printable

YES, NO = {"1", "true", "yes", "1.0"}, {"0", "false", "no", "0.0", ""}


class Table:
    """A record a picture. Paths are relative to the list; `columns.label` may name several columns, one a class, of 0 and 1."""

    def __init__(self, key: str, source: Source, columns: Mapping[str, Any], policy: Any):
        self.key, self.source = key, source
        label = columns.get("label")
        self.classes: list[str] = label if isinstance(label, list) else []
        roles = ("image",) if self.classes else ("image", "label")
        given = {"image": columns.get("image"), "label": None if self.classes else label}
        self.columns: dict[str, Any] = dict(Reader(key, source, roles, given, policy, True, ("label",)).columns)
        if self.classes:
            self.columns["label"] = self.classes
            self._check_classes()

    def __iter__(self) -> Iterator[Picture | tuple[str, Bad]]:
        for item in self.source.records():
            if isinstance(item[1], Bad):
                yield item
                continue
            file, number, record = item
            column = self.columns["image"]
            value = record.get(column)
            reason = wrong_type("image", column, value) if column in record else f"no field {printable(column)} (the image)"
            image, problem = ("", reason) if reason else self._image(file, value)
            label, wrong = self._label(record)
            if problem or wrong:
                yield file, Bad(number, problem or wrong)
                continue
            name = str(value.get("path") or "") if isinstance(value, dict) else ""
            yield Picture(file, number, image, label, None, name)

    def _image(self, file: str, value: Any) -> tuple[str | bytes, str]:
        """The bytes, or a path as it is from here; and a reason if it is neither."""
        image = (value.get("bytes") or value.get("path") or "") if isinstance(value, dict) else value
        if not image:
            return "", f"{printable(self.columns['image'])} is empty; fill it in or remove the record"
        if isinstance(image, str) and "://" in image:
            return "", f"{printable(image)} is an address, not a file; download the pictures first"
        return (os.path.join(os.path.dirname(file), image) if isinstance(image, str) else image), ""

    def _label(self, record: Mapping[str, Any]) -> tuple[Any, str]:
        if not self.classes:
            return record.get(self.columns.get("label", "")), ""
        found = []
        for name in self.classes:
            value = str(record.get(name)).strip().lower()
            if value not in YES | NO:
                return None, f"{printable(name)} is {printable(value, 40)}; a column of a class holds 0 or 1"
            if value in YES:
                found.append(name)
        return found, ""

    def _check_classes(self) -> None:
        file, names = next(((item[0], list(item[2])) for item in self.source.records() if len(item) == 3), ("", self.classes))
        missing = [c for c in self.classes if c not in names]
        if missing:
            raise BadInput(f"{at(file)}: no column {printable(missing[0])}; found {printable(', '.join(map(str, names)))}")

    @cached_property
    def _lists(self) -> bool:
        """Whether there are paths, not the pictures themselves: as the first record says."""
        return isinstance(next((p.image for p in self if isinstance(p, Picture)), None), str)

    def _listed(self) -> Iterator[tuple[str, str]]:
        """(list, path) of the pictures that are files of their own."""
        return ((p.file, p.image) for p in (self if self._lists else ()) if isinstance(p, Picture) and isinstance(p.image, str))

    @cached_property
    def _prints(self) -> list[dict[str, Any]]:
        found = self.source.fingerprint()
        if not self._lists:
            return found
        digest = contents_hash(lambda: ((path.removeprefix(os.path.dirname(file)), path) for file, path in self._listed()))
        return [*found, {"file": f"pictures listed in {found[0]['file']}", "sha256": digest}]

    def fingerprint(self) -> list[dict[str, Any]]:
        return self._prints

    def unlabelled(self) -> str:
        return "no column for the label; choose with data.columns.label=<name>"

    def counted(self) -> dict[str, int]:
        """Pictures that the list does not name, in those of its own folders of which it names some."""
        listed, bases = set(), set()
        for file, path in self._listed():
            listed.add(os.path.normpath(path))
            bases.add(os.path.normpath(os.path.dirname(file)))
        folders = {os.path.dirname(p) or "." for p in listed}
        unlisted = 0
        for folder in (f for f in folders if any(not os.path.relpath(f, base).startswith("..") for base in bases)):
            with contextlib.suppress(OSError):
                names = (n for n in os.listdir(folder) if os.path.splitext(n)[1].lower() in SUFFIXES)
                unlisted += sum(os.path.normpath(os.path.join(folder, name)) not in listed for name in names)
        return {"unlisted": unlisted}

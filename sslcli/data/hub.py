"""`hf:name[/config][:split]`: a data set of the Hugging Face hub (or a folder laid out like one), through the library `datasets`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sslcli.data.lines import Bad
from sslcli.errors import BadInput, printable


class Hub:
    def __init__(self, key: str, spec: str):
        self.spec = spec
        name, _, split = spec.removeprefix("hf:").partition(":")
        self.split = split or "train"
        self._data = self._load(key, name)

    def _load(self, key: str, name: str) -> Any:
        from datasets import load_dataset
        from datasets.utils.logging import disable_progress_bar, set_verbosity_error

        set_verbosity_error()
        disable_progress_bar()
        problem: Exception | None = None
        for repository, config in _readings(name):
            try:
                return _undecoded(load_dataset(repository, config, split=self.split))
            except Exception as error:  # the library raises its own, requests', pyarrow's and plain ValueErrors alike
                problem = problem or error
        first = printable(str(problem).splitlines()[0] if str(problem) else type(problem).__name__, 160)
        raise BadInput(f"{key}={printable(self.spec)}: cannot be loaded: {first}") from problem

    def records(self) -> Iterator[tuple[str, int, dict[str, Any]] | tuple[str, Bad]]:
        names = {c: f.names for c, f in self._data.features.items() if getattr(f, "names", None)}
        inner = {c: f.feature.names for c, f in self._data.features.items() if getattr(getattr(f, "feature", None), "names", None)}
        for number, row in enumerate(self._data, 1):
            for column, labels in names.items():
                if isinstance(row[column], int):
                    row[column] = labels[row[column]] if row[column] >= 0 else None
            for column, labels in inner.items():
                row[column] = [labels[i] for i in row[column]]
            yield self.spec, number, row

    def fingerprint(self) -> list[dict[str, Any]]:
        return [{"file": self.spec, "rows": len(self._data), "sha256": str(self._data._fingerprint)}]


def _undecoded(data: Any) -> Any:
    """Pictures as the bytes of their files: what is decoded is decoded by our own rule."""
    from datasets import Image

    for column, feature in data.features.items():
        if isinstance(feature, Image):
            data = data.cast_column(column, Image(decode=False))
    return data


def _readings(name: str) -> list[tuple[str, str | None]]:
    """`a/b` may be repository a/b or configuration b of a; the repository is tried first."""
    if Path(name).exists():
        return [(name, None)]
    parts = name.split("/")
    if len(parts) >= 3:
        return [("/".join(parts[:2]), "/".join(parts[2:]))]
    return [(name, None), (parts[0], parts[1])] if len(parts) == 2 else [(name, None)]

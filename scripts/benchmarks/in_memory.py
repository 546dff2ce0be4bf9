"""`ssl` whose steps all see one batch that was read and augmented before: what training costs where data costs nothing."""

import sys
from collections.abc import Callable
from typing import Any

from sslcli.cli import main
from sslcli.data.pixels import Pixels
from sslcli.data.stream import Stream


def once(make: Callable[..., Any], size: Callable[..., Any]) -> Callable[..., Any]:
    """The first result for every `size`, ever after."""
    held: dict[Any, Any] = {}

    def made(*given: Any) -> Any:
        key = size(*given)
        if key not in held:
            held[key] = make(*given)
        return held[key]

    return made


if __name__ == "__main__":
    Stream.batches = once(Stream.batches, lambda stream, step: id(stream))  # type: ignore[method-assign]
    Pixels.views = once(Pixels.views, lambda pixels, batch: float(batch["weight"]))  # type: ignore[method-assign]
    sys.exit(main())

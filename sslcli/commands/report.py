"""`ssl report`: what finished runs came to, in one HTML file; several are compared, in a file beside the first one's own."""

from pathlib import Path
from typing import Any

from sslcli.commands import Call
from sslcli.commands.folder import NOTHING_KEPT
from sslcli.errors import BadInput, printable
from sslcli.report.page import Page, write
from sslcli.report.record import Record
from sslcli.run import storage
from sslcli.schema import Part

MOST = 12  # runs that one page can tell apart


def report(call: Call, *, run: str | list[str], out: str | None, report: Part[Page], plugins: list[str]) -> dict[str, Any]:
    named = [run] if isinstance(run, str) else run
    if not 0 < len(named) <= MOST or len(set(named)) < len(named):
        raise BadInput(f"run={printable(named)}: name 1 to {MOST} runs, each once, as in run=[runs/a,runs/b]")
    records = [Record.open(Path(folder)) for folder in named]
    path = Path(out) if out else Path(named[0]) / ("report.html" if len(named) == 1 else "comparison.html")
    if call.dry_run:
        call.screen.say(NOTHING_KEPT)
        return {"out": str(path), "bytes": len(report.build().html(records).encode())}
    with storage(path.parent):
        size = write(records, path, report.build())
    call.screen.say(f"{path}  {size / 1e6:,.1f} MB; open it in a browser")
    return {"out": str(path), "bytes": size, "runs": named}

"""`ssl export`: a finished run as files that other tools load. It refuses to finish unless they agree with the trained model."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from sslcli.commands import Call
from sslcli.commands.finished import Finished
from sslcli.commands.folder import NOTHING_KEPT
from sslcli.core import Export
from sslcli.errors import BadCheckpoint, BadInput, printable
from sslcli.hf.graph import Through
from sslcli.run import storage
from sslcli.schema import find

TOLERANCE = 2e-3  # of a probability, between the trained and the exported model


def export(call: Call, *, run: str, format: str, out: str, rows: Annotated[int, Field(ge=1)], plugins: list[str]) -> dict[str, Any]:
    kind: type[Export] = find(Export, "format", format, plugins)
    target = Path(out)
    if target.resolve() == Path.cwd():
        raise BadInput(f"out={printable(out)}: is the folder you are in; name one that can be made, as out=model")
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise BadInput(f"out={printable(out)}: already holds files; choose another folder")
    finished = Finished.open(Path(run), plugins)
    source = finished.source()
    making = target.with_name(f".{target.name}.tmp")
    with storage(target.parent):
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
    try:
        # write it, then run what was written
        exported = kind()
        head = "embedding" if finished.goal.embeds else finished.goal.head_kind
        module = None if finished.whole else Through(finished.model, finished.goal)
        graph = source.graph(finished.dir / "model", head, finished.processor.length, module)
        exported.write(graph, making)
        own = source.sample(finished.dir, rows, finished.processor, finished.coder)
        agreement = _compare(finished, exported.open(graph, making), own)
        facts = {"format": format, "run": run, "max_length": finished.processor.length, "labels": finished.labels, "agreement": agreement}
        (making / "ssl_export.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _describe(finished.dir, making, target.name, format, call)
        if call.dry_run:
            call.screen.say(NOTHING_KEPT)
        else:
            with storage(target.parent):
                if target.exists():
                    target.rmdir()
                making.rename(target)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file()) if target.exists() else 0
    same = (
        f"agrees with the trained model on {agreement['rows']} of its own rows (largest difference {agreement['largest_difference']:.1e})"
    )
    call.screen.say(f"{printable(out)}  {size / 1e6:,.1f} MB; {same}")
    return {"out": out, "bytes": size, **facts}


def _describe(run: Path, making: Path, name: str, format: str, call: Call) -> None:
    """The model card; an export does not fail for want of one."""
    from sslcli.report import card
    from sslcli.report.record import Record

    try:
        card.write(Record.open(run), making, name, format)
    except BadInput as error:
        call.screen.warn(f"README.md: not written: {error}")


def _compare(finished: Finished, run: Callable[[Sequence[torch.Tensor]], np.ndarray], own: Iterable[Any]) -> dict[str, Any]:
    """The exported model against the trained one, on the run's own rows: scores and, for a task, its recorded predictions."""
    worst, labels_differ, seen = 0.0, 0, 0
    for batch, tensors, recorded in own:
        trained, got = _scores(finished, finished.logits(batch)), _scores(finished, torch.from_numpy(run(tensors)))
        inside = batch["mask"] if trained.ndim == 3 and "mask" in batch else torch.ones(trained.shape[:-1], dtype=torch.bool)
        worst = max(worst, float((trained - got)[inside].abs().max()))
        top = trained.topk(2, -1).values
        clear = (top[..., 0] - top[..., 1] > TOLERANCE) & inside
        labels_differ += int((trained.argmax(-1) != got.argmax(-1))[clear].sum())
        labels_differ += _recorded(finished, recorded, got, clear)
        seen += len(trained)
    if worst > TOLERANCE or labels_differ:
        what = f"largest difference {worst:.1e}, {labels_differ} labels differ on {seen} rows"
        raise BadCheckpoint(f"the exported model does not agree with the trained one ({what}); nothing was written")
    return {"rows": seen, "largest_difference": worst, "labels_that_differ": labels_differ}


def _scores(finished: Finished, values: torch.Tensor) -> torch.Tensor:
    """In a scale where a difference of TOLERANCE matters: probabilities where there are classes, else vectors of unit length."""
    if not finished.has_head or not getattr(finished.goal, "classifies", True):
        return torch.nn.functional.normalize(values.float(), dim=-1)
    return values.float().sigmoid() if finished.facts.get("labelling") == "multi" else values.float().softmax(-1)


def _recorded(finished: Finished, recorded: Sequence[Mapping[str, Any]], got: torch.Tensor, clear: torch.Tensor) -> int:
    """Predictions that the run wrote down while it was scored, and that the export does not repeat (single labels, whole inputs)."""
    if not getattr(finished.goal, "classifies", False) or got.ndim != 2 or finished.facts.get("labelling") == "multi":
        return 0
    guess = np.array(finished.labels)[got.argmax(-1).numpy()]
    rows = zip(guess, recorded, clear, strict=True)
    return sum("prediction" in row and g != row["prediction"] and bool(c) for g, row, c in rows)

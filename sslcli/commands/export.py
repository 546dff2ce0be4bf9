"""`ssl export`: a finished run as files that other tools load. It refuses to finish unless they agree with the trained model."""

import json
import shutil
from collections.abc import Mapping, Sequence
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
from sslcli.hf.heads import AUTO
from sslcli.run import storage
from sslcli.schema import find

TOLERANCE = 2e-3  # of a probability, between the trained and the exported model


def export(call: Call, *, run: str, format: str, out: str, rows: Annotated[int, Field(ge=1)], plugins: list[str]) -> dict[str, Any]:
    kind: type[Export] = find(Export, "format", format, plugins)
    target = Path(out)
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise BadInput(f"out={printable(out)}: already holds files; choose another folder")
    finished = Finished.open(Path(run), plugins)
    own = finished.rows(rows)
    making = target.with_name(f".{target.name}.tmp")
    with storage(target.parent):
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
    try:
        # write it, then run what was written
        exported = kind()
        exported.write(finished.dir / "model", AUTO.get(finished.goal.head_kind or ""), finished.limit, making)
        agreement = _compare(finished, exported, making, own)
        facts = {"format": format, "run": run, "max_length": finished.limit, "labels": finished.labels, "agreement": agreement}
        (making / "ssl_export.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
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
    call.screen.say(f"{target}  {size / 1e6:,.1f} MB; {same}")
    return {"out": str(target), "bytes": size, **facts}


def _compare(finished: Finished, exported: Export, folder: Path, own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The exported model, fed by the exported tokenizer, against the trained one: scores and, for a task, its recorded predictions."""
    worst, labels_differ, seen = 0.0, 0, 0
    run = exported.open(folder)
    for start in range(0, len(own), 16):
        part = own[start : start + 16]
        batch = finished.encode([row["input"] for row in part])
        trained, got = _scores(finished, finished.logits(batch)), _scores(finished, torch.from_numpy(run(batch)))
        inside = batch["mask"] if trained.ndim == 3 else torch.ones(len(trained), dtype=torch.bool)
        worst = max(worst, float((trained - got)[inside].abs().max()))
        top = trained.topk(2, -1).values
        clear = (top[..., 0] - top[..., 1] > TOLERANCE) & inside
        labels_differ += int((trained.argmax(-1) != got.argmax(-1))[clear].sum())
        labels_differ += _recorded(finished, part, got, clear)
        seen += len(part)
    if worst > TOLERANCE or labels_differ:
        what = f"largest difference {worst:.1e}, {labels_differ} labels differ on {seen} rows"
        raise BadCheckpoint(f"the exported model does not agree with the trained one ({what}); nothing was written")
    return {"rows": seen, "largest_difference": worst, "labels_that_differ": labels_differ}


def _scores(finished: Finished, values: torch.Tensor) -> torch.Tensor:
    """In a scale where a difference of TOLERANCE matters: probabilities where there are classes, else vectors of unit length."""
    if not hasattr(finished.goal, "head"):
        return torch.nn.functional.normalize(values.float(), dim=-1)
    return values.float().sigmoid() if finished.facts.get("labelling") == "multi" else values.float().softmax(-1)


def _recorded(finished: Finished, part: Sequence[Mapping[str, Any]], got: torch.Tensor, clear: torch.Tensor) -> int:
    """Predictions that the run wrote down while it was scored, and that the export does not repeat (single labels, whole texts)."""
    if finished.verb != "finetune" or got.ndim != 2 or finished.facts.get("labelling") == "multi":
        return 0
    guess = np.array(finished.labels)[got.argmax(-1).numpy()]
    lengths = [len(ids) for ids in finished.tokenizer.hf([row["input"] for row in part])["input_ids"]]
    return sum(g != row["prediction"] and bool(c) and n <= finished.limit for g, row, c, n in zip(guess, part, clear, lengths, strict=True))

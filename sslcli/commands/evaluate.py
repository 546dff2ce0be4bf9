"""`ssl evaluate`: a finished run on other data, with the run's own settings. Nothing is repeated on the command line."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sslcli import device
from sslcli.attack import Attack
from sslcli.build import Modules
from sslcli.commands import Call
from sslcli.commands.analysis import analyse, by_predictions
from sslcli.commands.finished import Finished
from sslcli.commands.folder import Folder, claimed
from sslcli.commands.judging import HEADLINE as TASK_SCORES
from sslcli.commands.pretrain import HEADLINE as CORPUS_SCORES
from sslcli.data.store import Store
from sslcli.data.text import Role, Where
from sslcli.distributed import world
from sslcli.errors import BadInput
from sslcli.evaluation import held_out, judge
from sslcli.evidence.leaked import affordable, without_leaks
from sslcli.modality import Modality
from sslcli.run import Run
from sslcli.schema import Part

SOME = 64  # examples (or batches) that a dry run scores


class OtherData:
    """What differs from the run's own data; all else is as the run has it."""

    def __init__(
        self,
        own: Modality,
        *,
        test: Where,
        gallery: Where,
        columns: dict[Role | Literal["image"], str | list[str] | None],
        encoding: str | None,
        delimiter: str | None,
        on_bad_record: Literal["fail", "skip"] | None,
    ):
        given = {"test": test, "gallery": gallery, "encoding": encoding, "delimiter": delimiter, "on_bad_record": on_bad_record}
        self.data = differing(own, given, columns)


def differing(own: Modality, given: Mapping[str, Any], columns: Mapping[Any, Any]) -> Modality:
    """A run's own data, but for what is given."""
    for key, value in given.items():
        if value is not None and not hasattr(own, key):
            raise BadInput(f"data.{key}: means nothing for this run; leave it out")
        if value is not None:
            setattr(own, key, value)
    own.columns = {**own.columns, **{role: name for role, name in columns.items() if name is not None}}
    return own


def evaluate(
    call: Call,
    *,
    run: str,
    data: Part[OtherData],
    leaks: bool = True,
    robustness: bool,
    attack: Part[Attack],
    out: str | None,
    plugins: list[str],
) -> dict[str, Any]:
    finished = Finished.open(Path(run), plugins)
    own = finished.source()
    source = data.build(own).data
    split = "test" if data.config["test"] is not None or own.has_test else "valid"
    target = Run(dir=out or f"{run}-evaluate-{time.strftime('%Y%m%d-%H%M%S')}", keep=1)
    with world(1) as replicas, claimed(call, target, False) as folder:
        # the data, as the model sees it
        if finished.verb == "finetune":
            prepared = source.examples(finished.coder, finished.processor, finished.labels, only=split)
        else:
            prepared = source.corpus(finished.processor, lambda _: None, only=split)
        folder.data(source, prepared, finished.processor.length)
        if split not in prepared.stores:
            raise BadInput("data.test: missing; name the data to evaluate on")
        if finished.goal.rows(prepared.stores[split]).count < finished.goal.least:
            raise BadInput(f"data.{split}: too few rows that this objective can use; name more text")

        # the scores
        device.prepare(replicas.device, False)
        Modules(finished.model, goal=finished.goal).to(replicas.device).eval()
        start, store = time.monotonic(), prepared.stores[split]
        most = SOME if call.dry_run else None
        some = np.arange(SOME) if call.dry_run else None
        if finished.verb == "finetune":
            finished.goal.gallery = prepared.stores.get("gallery")
            scores: dict[str, Any] = judge(finished.goal, finished.model, store, replicas, folder.run, some)  # type: ignore[arg-type]
            seconds = time.monotonic() - start  # what follows is not of the model
            folder.reliability(finished.goal)
            doubts = partial(by_predictions, folder.run.dir / "predictions.jsonl", split, finished.labels)
            analyse(folder, finished.goal, prepared.stores, doubts)  # type: ignore[arg-type]
            more = _owed(finished, store, split, folder) if leaks and not call.dry_run else {}
            more |= folder.robustness(finished, store, replicas, attack.build(), most) if robustness else {}
        else:
            scores = held_out(finished.goal, finished.model, store, replicas, finished.batch_size, most)
            seconds, more = time.monotonic() - start, {}
        rows = min(most or store.count, int(finished.goal.rows(store).count))
        facts = {"seconds": round(seconds, 2), "examples_per_second": round(rows / max(seconds, 1e-9), 2), "run": run}
        facts["peak_memory_bytes"] = device.peak_memory(replicas.device)
        return folder.report({split: scores, **more, "evaluation": facts}, TASK_SCORES if finished.verb == "finetune" else CORPUS_SCORES)


def _owed(finished: Finished, store: Store, split: str, folder: Folder) -> dict[str, Any]:
    """What of the scores is owed to rows that the run was trained on; nothing, and said so, where its training data is gone."""
    if not affordable(finished.goal, finished.facts["train"]["examples"], store):
        return {}  # before the training data is read
    try:
        train = finished.source().examples(finished.coder, finished.processor, finished.labels, only="train").stores["train"]
    except BadInput as error:
        folder.call.screen.say(f"leaks  not looked for: the training data cannot be read again ({error})")
        return {}
    task: Any = finished.goal
    return without_leaks(task, train, store, split, folder.run.dir / "predictions.jsonl")

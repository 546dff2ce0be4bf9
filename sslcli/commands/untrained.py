"""`ssl evaluate from=<model> task=<task>`: a pretrained model as it is, on a task that it can do without training."""

import time
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from sslcli import device
from sslcli.build import Modules, parameters
from sslcli.commands import Call
from sslcli.commands.evaluate import SOME
from sslcli.commands.folder import claimed
from sslcli.commands.judging import HEADLINE
from sslcli.core import Task
from sslcli.distributed import world
from sslcli.errors import BadInput
from sslcli.evaluation import judge
from sslcli.hf.folder import model_folder
from sslcli.hf.pretrained import read_config
from sslcli.modality import Modality, Start
from sslcli.run import Run
from sslcli.schema import Part


def untrained(
    call: Call,
    *,
    run: str | None,
    from_: str | None,
    data: Part[Modality],
    task: Part[Task],
    seed: Annotated[int, Field(ge=0, lt=2**31)],
    out: str | None,
    plugins: list[str],
) -> dict[str, Any]:
    if run is not None:
        raise BadInput("run and from (or task) are both given: a run has its own model and task; from= with task= asks a model as it is")
    if from_ is None:
        raise BadInput("from: missing; name the model that is to do the task as it is, or a finished run with run= and no task=")
    source, asked = data.build(seed), _as_it_is(task, from_)
    if source.test is None:
        raise BadInput("data.test: missing; name the data to evaluate on")
    if task.cls.classifies and source.labels is None:
        raise BadInput("data.labels: missing; name what texts may be, as in data.labels=[positive,negative]")
    target = Run(dir=out or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-evaluate", keep=1)
    with world(1) as replicas, claimed(call, target, False) as folder:
        # the network, and the examples as it sees them
        coder = task.cls.coder({**asked.config, "descriptions": source.descriptions})
        processor, model = source.start(Start.of(asked, from_, coder.columns, seed), None, None, None, call.screen.say)
        prepared = source.examples(coder, processor, only="test")
        folder.data(source, prepared, processor.length)
        facts = {**prepared.facts, "train": {"per_label": {}}, "descriptions": source.descriptions}
        goal = asked.build(model, processor, prepared.labels, facts)
        modules = Modules(model, task=goal)
        folder.model(model, processor, parameters(modules))

        # the scores
        device.prepare(replicas.device, False)
        modules.to(replicas.device).eval()
        start, store = time.monotonic(), prepared.stores["test"]
        scores = judge(goal, model, store, replicas, folder.run, np.arange(SOME) if call.dry_run else None)
        seconds = time.monotonic() - start
        folder.reliability(goal)
        folder.run.write("receipts.json", {"loaded": model.loaded, "untrained": goal.receipt(None)})
        rows = min(SOME, store.count) if call.dry_run else store.count
        measured = {"seconds": round(seconds, 2), "examples_per_second": round(rows / max(seconds, 1e-9), 2), "from": from_}
        measured["peak_memory_bytes"] = device.peak_memory(replicas.device)
        return folder.report({"test": scores, "evaluation": measured}, HEADLINE)


def _as_it_is(task: Part[Task], source: str) -> Part[Task]:
    """The task with what its `auto` means for this model; one line where the model, or the task, cannot do without training."""
    try:
        return Part(task.path, task.cls, dict(task.cls.untrained(task.config, read_config(model_folder(source)))))
    except ValueError as error:
        raise BadInput(f"{task.path}: {error}") from error

"""`ssl finetune`: one task over labelled examples, from a pretrained model."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from sslcli.augment import Augment
from sslcli.build import Modules, Moved, parameters
from sslcli.commands import Call
from sslcli.commands.beside import Beside
from sslcli.commands.folder import Folder, claimed
from sslcli.commands.judging import HEADLINE, Judging
from sslcli.commands.tuned import Tuned
from sslcli.core import Adversary, Backbone, Objective, Task, Term
from sslcli.data.stream import Stream
from sslcli.data.text import Prepared
from sslcli.data.tokenizer import Recipe
from sslcli.distributed import world
from sslcli.hf.pooling import Pooling
from sslcli.hf.tuning import Peft
from sslcli.joint import Joint
from sslcli.modality import Modality, Start
from sslcli.optim import Optimizer
from sslcli.run import Run
from sslcli.schema import Part
from sslcli.trainer import Trainer


def finetune(
    call: Call,
    *,
    run: Part[Run],
    data: Part[Modality],
    tokenizer: Part[Recipe] | None,
    augment: Part[Augment] | None,
    model: Part[Backbone] | None,
    task: Part[Task],
    peft: Part[Peft] | None,
    objective: Part[Objective] | None,
    joint: Part[Joint] | None,
    adversarial: Part[Adversary],
    optimizer: Part[Optimizer],
    trainer: Part[Trainer],
    seed: Annotated[int, Field(ge=0, lt=2**31)],
    from_: str | None,
    init: Literal["pretrained", "random"],
    dropout: Annotated[float, Field(ge=0, lt=1)] | None,
    baseline: bool,
    leaks: bool = True,
    resume: Literal["auto"] | bool,
    plugins: list[str],
    pooling: Pooling | None = None,
) -> dict[str, Any]:
    _refuse_both(call)
    with world(trainer.config["devices"]) as replicas, claimed(call, run.build(), bool(resume)) as folder:
        # the network, and the examples as it sees them
        source, coder = data.build(seed), task.cls.coder(task.config)
        beside = Beside(call, objective, joint, source)
        first = Start.of(task, from_, coder.columns, seed, dropout, init == "random", pooling, objective)
        begin = partial(source.start, first, model, tokenizer, augment, call.screen.say)
        processor, backbone = begin()
        tuned = Tuned.insert(peft, task, backbone, processor, seed, from_)
        prepared = beside.read(source.examples(coder, processor), processor, augment)
        folder.data(source, prepared, processor.length)
        change = source.changing(processor, backbone, prepared.stores["train"])
        if call.preview:
            return call.drawn(source, processor, prepared.stores["train"])

        # the task
        goal = task.build(backbone, processor, prepared.labels, prepared.facts)
        modules = Modules(backbone, task=goal, **beside.modules(backbone))
        folder.model(backbone, processor, parameters(modules), tuned.said(modules) if tuned else None)

        # training
        engine = call.trainer(trainer).build(replicas, folder.run, call.screen, seed, goal.batch_size)
        stream = engine.stream(goal, prepared.stores["train"], seed)
        changed = folder.changes(change, stream, seed)
        moved, terms = Moved(modules), [Term("task", goal, stream, adversarial.build()), *beside.terms(engine, seed)]
        judging = Judging(goal, backbone, stream, prepared.stores, replicas, source)
        facts = engine.fit(modules, terms, optimizer, judging.watch, judging.rows, partial(_steps, goal), folder.resume, beside.balance)
        if call.dry_run:
            return folder.dry_end(engine, modules, facts, source.shown(stream.batches(0)[0], processor, prepared.labels))

        # what stays
        goal.conclude(modules.eval().model, stream)
        receipts = {"loaded": backbone.loaded, "moved": moved.receipt(modules), **changed, **judging.calibrate()}
        receipts |= _keep(folder, tuned, source, task, goal, backbone, processor, prepared, begin)
        return folder.finish({"train": facts, **judging.scores(folder, baseline, leaks)}, receipts | engine.receipts(), HEADLINE)


def _refuse_both(call: Call) -> None:
    call.refuse_both("from", "model", "from= brings its own model (init=random trains its architecture from scratch)")
    call.refuse_both("from", "tokenizer", "from= brings its own tokenizer")


def _keep(
    folder: Folder,
    tuned: Tuned | None,
    source: Modality,
    task: Part[Task],
    goal: Task,
    model: Any,
    processor: Any,
    prepared: Prepared,
    begin: Callable[[], Any],
) -> dict[str, Any]:
    """Save what was trained; a receipt of what it takes to open it again."""
    if tuned:
        return {"peft": tuned.keep(folder, source, task, goal, processor, prepared, begin)}
    folder.save_model(source, model, goal, processor, prepared.labels, prepared.facts.get("labelling") == "multi")
    return {}


def _steps(task: Task, stream: Stream) -> int:
    return max(task.passes * stream.steps_per_epoch, task.least_steps)

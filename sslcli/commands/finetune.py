"""`ssl finetune`: one task over labelled examples, from a pretrained model."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from sslcli.adversarial.plain import Plain
from sslcli.augment import Augment
from sslcli.build import Modules, Moved, parameters
from sslcli.commands import Call
from sslcli.commands.analysis import analyse, cross_fitted
from sslcli.commands.beside import Beside
from sslcli.commands.folder import Folder, claimed
from sslcli.commands.judging import HEADLINE, Judging
from sslcli.commands.rounds import Rounds
from sslcli.commands.seeds import Several
from sslcli.commands.tuned import Tuned
from sslcli.core import Adversary, Backbone, Objective, Task, Term
from sslcli.data.stream import Stream
from sslcli.data.text import Prepared
from sslcli.data.tokenizer import Recipe
from sslcli.distributed import World, world
from sslcli.evidence import receipts
from sslcli.evidence import verdict as helped
from sslcli.hf.pooling import Pooling
from sslcli.hf.tuning import Peft
from sslcli.joint import Joint
from sslcli.modality import Modality, Start
from sslcli.optim import Optimizer
from sslcli.run import Run
from sslcli.schema import Part
from sslcli.trainer import Trainer

OF_STEPS = ("adversarial", "augment", "optimizer", "peft", "trainer.steps", "trainer.epochs", "trainer.time_limit")


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
    errors: bool = True,
    verdict: Literal["auto"] | bool = "auto",
    resume: Literal["auto"] | bool,
    plugins: list[str],
    pooling: Pooling | None = None,
) -> dict[str, Any]:
    again = partial(finetune, **locals())  # for other seeds
    call.refuse_beside_from(" (init=random trains its architecture from scratch)")
    origin = helped.asked(verdict, from_, init, task, pooling)
    with world(trainer.config["devices"]) as replicas, claimed(call, run.build(), bool(resume)) as folder:
        # the network, and the examples as it sees them
        source, coder = data.build(seed), task.cls.coder(task.config)
        beside = Beside(call, task, objective, joint, source, plugins)
        first = Start.of(task, from_, coder.columns, seed, dropout, init == "random", pooling, objective)
        begin = partial(source.start, first, model, tokenizer, augment, call.screen.say)
        processor, backbone = begin()
        tuned = Tuned.insert(peft, task, backbone, processor, seed, from_)
        prepared = beside.read(source.examples(coder, processor), coder, processor, augment)
        mixed = augment is not None and getattr(augment.cls, "mixes", False)
        prepared.facts["beside"] = bool(objective or peft or mixed) or adversarial.cls is not Plain
        folder.data(source, prepared, processor.length)
        change = source.changing(processor, backbone, prepared.stores["train"])
        if call.preview:
            return call.drawn(source, processor, prepared.stores["train"])
        if several := Several.wanted(again, folder, replicas, prepared, backbone, processor):
            return several.run(HEADLINE)
        if rounds := Rounds.wanted(again, folder, replicas, backbone):
            return rounds.run(HEADLINE)

        ready = _Ready(folder, replicas, source, task, processor, backbone, begin, tuned, prepared, change, beside, origin)
        return _train(call, ready, adversarial, optimizer, trainer, seed, baseline, leaks, errors)


@dataclass(frozen=True)
class _Ready:
    """The network, and the examples as it sees them."""

    folder: Folder
    world: World
    source: Modality
    task: Part[Task]
    processor: Any
    model: Any
    begin: Callable[[], Any]  # the network again, as it was before peft=
    tuned: Tuned | None
    prepared: Prepared
    change: Any  # how training rows are augmented
    beside: Beside  # a self-supervised loss
    origin: helped.Origin | None  # what the verdict on pretraining compares with


def _train(
    call: Call,
    ready: _Ready,
    adversarial: Part[Adversary],
    optimizer: Part[Optimizer],
    trainer: Part[Trainer],
    seed: int,
    baseline: bool,
    leaks: bool,
    errors: bool,
) -> dict[str, Any]:
    folder, source, model, prepared = ready.folder, ready.source, ready.model, ready.prepared
    tuned, beside = ready.tuned, ready.beside

    # the task
    goal = ready.task.build(model, ready.processor, prepared.labels, prepared.facts)
    if remark := getattr(goal, "remark", None):
        call.screen.say(remark)
    modules = Modules(model, task=goal, **beside.modules(model, goal))
    folder.model(model, ready.processor, parameters(modules), tuned.said(modules) if tuned else None)

    # training
    engine = call.trainer(trainer).build(ready.world, folder.run, call.screen, seed, goal.batch_size)
    stream = engine.stream(goal, prepared.stores["train"], seed)
    changed = {**receipts.shots(source.shots, prepared.facts), **folder.changes(ready.change, stream, seed)}
    changed |= folder.views(source, ready.processor, prepared.stores["train"])
    moved, terms = Moved(modules), [Term("task", goal, stream, adversarial.build()), *beside.terms(engine, seed)]
    judging = Judging(goal, model, stream, prepared.stores, ready.world, source)
    if remark := judging.keep_last(engine.patience):
        call.screen.say(remark)
    facts = engine.fit(modules, terms, optimizer, judging.watch, judging.rows, partial(_steps, goal), folder.resume, beside.balance)
    if not facts["steps"] and (idle := call.given(*OF_STEPS)):
        call.screen.warn(f"what is asked for is solved, no step is taken: without effect {', '.join(idle)}")
    if call.dry_run:
        return folder.dry_end(engine, modules, facts, source.shown(stream.batches(0)[0], ready.processor, prepared.labels))

    # what stays
    goal.conclude(modules.eval().model, stream)
    traces = {"loaded": model.loaded, "moved": moved.receipt(modules), **goal.receipt(stream), **changed}
    traces |= {**beside.receipt(model), **judging.calibrate(), **engine.receipts()}
    if tuned:
        traces["peft"] = tuned.keep(folder, source, ready.task, goal, ready.processor, prepared, ready.begin)
    else:
        folder.save_model(source, model, goal, ready.processor, prepared.labels, prepared.facts.get("labelling") == "multi")
    scores = {"train": facts, **judging.scores(folder, baseline, leaks)}
    if errors:
        analyse(folder, goal, prepared.stores, partial(cross_fitted, goal, prepared.stores, ready.begin, engine))
    scores |= helped.verdict(ready.origin, ready.task, source, prepared, judging.gallery, engine)
    return folder.finish(scores, traces, HEADLINE)


def _steps(task: Task, stream: Stream) -> int:
    return max(task.passes * stream.steps_per_epoch, task.least_steps)

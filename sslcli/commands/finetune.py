"""`ssl finetune`: one task over labelled examples, from a pretrained model."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from sslcli.augment import Augment
from sslcli.build import Modules, Moved, parameters
from sslcli.calibration import refuse_too_few
from sslcli.commands import Call
from sslcli.commands.folder import claimed
from sslcli.core import Adversary, Backbone, Task, Term
from sslcli.data.store import Store
from sslcli.data.stream import Stream
from sslcli.data.tokenizer import Recipe
from sslcli.distributed import World, world
from sslcli.evaluation import calibrate, judge
from sslcli.evidence.baseline import baseline as cheap
from sslcli.evidence.leaked import without_leaks
from sslcli.hf.pooling import Pooling
from sslcli.modality import Modality, Start
from sslcli.optim import Optimizer
from sslcli.run import Run
from sslcli.schema import Part
from sslcli.trainer import Trainer

HEADLINE = (
    *("top1", "top5", "accuracy", "macro_f1", "micro_f1", "mae", "quadratic_kappa", "precision", "recall", "f1"),
    *("ece", "ece_before", "brier", "nll", "abstained", "error_on_answered"),
    *("spearman", "pearson", "recall@1", "recall@5", "recall@10", "mrr", "ndcg@10", "map"),
)


def finetune(
    call: Call,
    *,
    run: Part[Run],
    data: Part[Modality],
    tokenizer: Part[Recipe] | None,
    augment: Part[Augment] | None,
    model: Part[Backbone] | None,
    task: Part[Task],
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
    call.refuse_both("from", "model", "from= brings its own model (init=random trains its architecture from scratch)")
    call.refuse_both("from", "tokenizer", "from= brings its own tokenizer")
    with world(trainer.config["devices"]) as replicas, claimed(call, run.build(), bool(resume)) as folder:
        # the network, and the examples as it sees them
        source, coder = data.build(seed), task.cls.coder(task.config)
        first = Start.of(task, from_, coder.columns, seed, dropout, init == "random", pooling)
        processor, backbone = source.start(first, model, tokenizer, augment, call.screen.say)
        prepared = source.examples(coder, processor)
        folder.data(source, prepared, processor.length)
        change = source.changing(processor, backbone, prepared.stores["train"])
        if call.preview:
            return call.drawn(source, processor, prepared.stores["train"])

        # the task
        goal = task.build(backbone, processor, prepared.labels, prepared.facts)
        modules = Modules(backbone, task=goal)
        folder.model(backbone, processor, parameters(modules))

        # training
        valid = _held_out(prepared.stores, goal)
        engine = call.trainer(trainer).build(replicas, folder.run, call.screen, seed, goal.batch_size)
        stream = engine.stream(goal, prepared.stores["train"], seed)
        changed = folder.changes(change, stream, seed)
        moved, term = Moved(modules), Term("task", goal, stream, adversarial.build())
        goal.gallery = _gallery(prepared.stores, "valid", source)
        watch = partial(_judged, goal, backbone, stream, valid, replicas) if valid is not None else None
        facts = engine.fit(modules, [term], optimizer, watch, valid.count if valid else 0, partial(_steps, goal), folder.resume)
        if call.dry_run:
            return folder.dry_end(engine, modules, facts, source.shown(stream.batches(0)[0], processor, prepared.labels))

        # what stays
        goal.conclude(modules.eval().model, stream)
        receipts = {"loaded": backbone.loaded, "moved": moved.receipt(modules), **changed, **calibrate(goal, backbone, valid, replicas)}
        folder.save_model(source, backbone, goal, processor, prepared.labels, prepared.facts.get("labelling") == "multi")
        scores = {"train": facts, **_scores(goal, backbone, prepared.stores, replicas, folder.run, source, baseline, leaks)}
        if len(scores) > 1:
            folder.pictures(source, goal, backbone, prepared.stores["test" if "test" in scores else "valid"])
        return folder.finish(scores, receipts, HEADLINE)


def _held_out(stores: Mapping[str, Store], task: Task) -> Store | None:
    """What checkpoints are chosen on and calibrations fitted: enough for what is to be promised."""
    valid = stores.get("valid")
    refuse_too_few(valid.count if valid else None, task.risk)
    return valid


def _judged(task: Task, model: Backbone, stream: Stream, valid: Store, replicas: World) -> dict[str, Any]:
    task.conclude(model, stream)
    return judge(task, model, valid, replicas)


def _gallery(stores: Mapping[str, Store], split: str, source: Modality) -> Store | None:
    """Where retrieval looks: what the user named; for a held-out part, which may have one picture a label, what it was split off."""
    if split == "test":
        return stores.get("gallery")
    return stores["train"] if source.valid is None else None


def _scores(
    task: Task,
    model: Backbone,
    stores: Mapping[str, Store],
    replicas: World,
    run: Run,
    source: Modality,
    baseline: bool,
    leaks: bool,
) -> dict[str, Any]:
    """Of every held-out split, of what a cheap method makes of the same labels, and of the last split without rows that were trained on;
    predictions.jsonl is of that split."""
    splits = [split for split in ("valid", "test") if split in stores]
    scores: dict[str, Any] = {}
    for split in splits:
        task.gallery = _gallery(stores, split, source)
        scores[split] = judge(task, model, stores[split], replicas, run)
    if lines := list(task.index_lines()):
        run.write_lines("index.jsonl", lines)
    if baseline and splits and replicas.leads:
        scores["baseline"] = cheap(task, stores["train"], stores[splits[-1]])
    if leaks and splits and replicas.leads:
        scores |= without_leaks(task, stores["train"], stores[splits[-1]], splits[-1], run.dir / "predictions.jsonl")
    return scores


def _steps(task: Task, stream: Stream) -> int:
    return max(task.passes * stream.steps_per_epoch, task.least_steps)

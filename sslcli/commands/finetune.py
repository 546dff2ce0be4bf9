"""`ssl finetune`: one task over labelled examples, from a pretrained model."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from sslcli.build import Modules, Moved, backbone_of, length_of, parameters, tokenizer_of
from sslcli.commands import Call
from sslcli.commands.folder import claimed
from sslcli.core import Adversary, Backbone, Batch, Task, Term
from sslcli.data import examples
from sslcli.data.store import Store
from sslcli.data.stream import Stream
from sslcli.data.text import TextData
from sslcli.data.tokenizer import Recipe, Tokenizer
from sslcli.distributed import World, world
from sslcli.evaluation import judge
from sslcli.evidence.baseline import baseline as cheap
from sslcli.optim import Optimizer
from sslcli.run import Run
from sslcli.schema import Part
from sslcli.trainer import Trainer

PASSES, LEAST = 3, 100  # over the data, and steps, where the user names neither steps nor epochs
HEADLINE = ("accuracy", "macro_f1", "micro_f1", "mae", "quadratic_kappa", "precision", "recall", "f1")


def finetune(
    call: Call,
    *,
    run: Part[Run],
    data: Part[TextData],
    tokenizer: Part[Recipe],
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
    resume: Literal["auto"] | bool,
    plugins: list[str],
) -> dict[str, Any]:
    call.refuse_both("from", "model", "from= brings its own model (init=random trains its architecture from scratch)")
    call.refuse_both("from", "tokenizer", "from= brings its own tokenizer")
    with world(trainer.config["devices"]) as replicas, claimed(call, run.build(), bool(resume)) as folder:
        # the network, and the examples in its words
        source = data.build(seed)
        coder = task.cls.coder(task.config)
        words = tokenizer_of(from_, tokenizer, source, model, coder.columns, call.screen.say)
        words = words.for_words() if "tokens" in coder.columns else words
        backbone = backbone_of(from_, model, words, task.cls.head_kind, seed, dropout, init == "random")
        length = length_of(source, backbone, task.cls.row_length)
        prepared = examples.prepare(source, coder, words, length)
        folder.data(prepared, length, source.allow_changed)

        # the task
        goal = task.build(backbone, words, prepared.labels, prepared.facts)
        modules = Modules(backbone, task=goal)
        folder.model(backbone, words, parameters(modules))

        # training
        engine = call.trainer(trainer).build(replicas, folder.run, call.screen, seed, goal.batch_size)
        stream = engine.stream(goal, prepared.stores["train"], seed)
        valid = prepared.stores.get("valid")
        moved = Moved(modules)
        term = Term("task", goal, stream, adversarial.build())
        watch = partial(judge, goal, backbone, valid, replicas) if valid is not None else None
        facts = engine.fit(modules, [term], optimizer, watch, valid.count if valid else 0, _steps, folder.resume)
        if call.dry_run:
            return folder.dry_end(engine, modules, facts, _example(stream.batches(0)[0], words, prepared.labels))

        # what stays
        modules.eval()
        folder.save_model(backbone, goal.head, words, prepared.labels, prepared.facts.get("labelling") == "multi")
        scores = {"train": facts, **_scores(goal, backbone, prepared.stores, replicas, folder.run, baseline)}
        return folder.finish(scores, {"loaded": backbone.loaded, "moved": moved.receipt(modules)}, HEADLINE)


def _example(batch: Batch, words: Tokenizer, labels: Sequence[str]) -> str:
    """The first row as the network sees it, and what it should say: the label, the labels, or a tag at every first subword."""
    real = batch["mask"][0] if "mask" in batch else slice(None)
    tokens = words.hf.convert_ids_to_tokens(batch["ids"][0][real].tolist())
    label = batch["label"][0]
    if not label.ndim:
        return f"{' '.join(tokens)} -> {labels[int(label)]}"
    if "word" in batch:  # a label a token
        return " ".join(t if y < 0 else f"{t}/{labels[y]}" for t, y in zip(tokens, label[real].tolist(), strict=True))
    return f"{' '.join(tokens)} -> {', '.join(labels[i] for i in label.nonzero().flatten().tolist()) or 'no label'}"


def _scores(task: Task, model: Backbone, stores: Mapping[str, Store], replicas: World, run: Run, baseline: bool) -> dict[str, Any]:
    """Of every held-out split, and of what a cheap method makes of the same labels; predictions.jsonl is of the last split."""
    splits = [split for split in ("valid", "test") if split in stores]
    scores: dict[str, Any] = {split: judge(task, model, stores[split], replicas, run) for split in splits}
    if baseline and splits and replicas.leads:
        scores["baseline"] = cheap(task, stores["train"], stores[splits[-1]])
    return scores


def _steps(stream: Stream) -> int:
    return max(PASSES * stream.steps_per_epoch, LEAST)

"""`ssl pretrain`: one self-supervised objective over an unlabelled corpus."""

from typing import Annotated, Any, Literal

from pydantic import Field

from sslcli.augment import Augment
from sslcli.build import Modules, Moved, parameters
from sslcli.commands import Call
from sslcli.commands.folder import claimed
from sslcli.core import Adversary, Backbone, Objective, Term
from sslcli.data.store import Store
from sslcli.data.stream import Stream
from sslcli.data.tokenizer import Recipe
from sslcli.distributed import World, world
from sslcli.errors import BadInput
from sslcli.evaluation import held_out
from sslcli.evidence import projection
from sslcli.hf.pooling import Pooling
from sslcli.modality import Modality, Start
from sslcli.optim import Optimizer
from sslcli.run import Run
from sslcli.schema import Part
from sslcli.trainer import Judge, Trainer
from sslcli.unlabelled import OfTask

LEAST = 600  # steps, where the user names no number and one pass over the corpus is shorter
HEADLINE = (
    *("loss", "masked_accuracy", "token_accuracy", "perplexity", "bits_per_byte", "retrieval_accuracy", "contrastive_accuracy"),
    *("assignment_accuracy", "psnr", "knn", "probe", "spearman", "pearson", "teacher_cosine"),
)


def pretrain(
    call: Call,
    *,
    run: Part[Run],
    data: Part[Modality],
    tokenizer: Part[Recipe] | None,
    augment: Part[Augment] | None,
    model: Part[Backbone] | None,
    objective: Part[Objective],
    adversarial: Part[Adversary],
    optimizer: Part[Optimizer],
    trainer: Part[Trainer],
    seed: Annotated[int, Field(ge=0, lt=2**31)],
    from_: str | None,
    resume: Literal["auto"] | bool,
    plugins: list[str],
    pooling: Pooling | None = None,
) -> dict[str, Any]:
    for key in ("model", "tokenizer"):
        call.refuse_both("from", key, f"from= brings its own {key}")
    with world(trainer.config["devices"]) as replicas, claimed(call, run.build(), bool(resume)) as folder:
        # the network, and the corpus as it sees it
        source, processor, backbone = network(call, data, tokenizer, augment, model, objective, seed, from_, pooling)
        prepared = folder.corpus(source, processor)
        if call.preview:
            return call.drawn(source, processor, prepared.stores["train"])
        seen = folder.views(source, processor, prepared.stores["train"])

        # what it learns
        goal = objective.build(backbone, processor)
        modules = Modules(backbone, objective=goal)
        folder.model(backbone, processor, parameters(modules))

        # training
        stores = prepared.stores
        engine = call.trainer(trainer).build(replicas, folder.run, call.screen, seed, goal.batch_size)
        stream = engine.stream(goal, stores["train"], seed)
        valid = judgeable(goal, stores, call)
        watch = source.watch(processor, valid, stores["train"])
        judge, judged = _judge(goal, backbone, valid, replicas, engine.batch_size, watch)
        moved = Moved(modules)
        term = Term("objective", goal, stream, adversarial.build())
        facts = engine.fit(modules, [term], optimizer, judge, judged, auto_steps, folder.resume)
        if call.dry_run:
            return folder.dry_end(engine, modules, facts, source.shown(stream.batches(0)[0], processor, ()))

        # what stays
        modules.eval()
        if "tokens" in prepared.facts["train"] and stream.places.lengths is None:
            facts["tokens_per_second"] = round(facts["examples_per_second"] * stream.places.width, 1)
        looked = folder.run.lines("metrics.jsonl")
        scores: dict[str, Any] = {"train": facts, **projection.of_run(getattr(watch, "metric", None), looked, facts)}
        for split in (s for s in ("valid", "test") if s in stores and stores[s].count):
            scores[split] = held_out(goal, backbone, stores[split], replicas, engine.batch_size)
            scores[split] |= source.transfer(backbone, processor, stores["train"], stores[split])
        folder.save_model(source, backbone, goal, processor)
        receipts = {"loaded": backbone.loaded, "moved": moved.receipt(modules), **goal.receipt(stream), **seen, **engine.receipts()}
        folder.pictures(source, goal, backbone, stores.get("test") or valid or stores["train"])
        return folder.finish(scores, receipts, HEADLINE)


def network(
    call: Call,
    data: Part[Modality],
    tokenizer: Part[Recipe] | None,
    augment: Part[Augment] | None,
    model: Part[Backbone] | None,
    objective: Part[Objective],
    seed: int,
    from_: str | None,
    pooling: Pooling | None = None,
) -> tuple[Modality, Any, Any]:
    """(source of the data, processor, network) where a run begins."""
    if issubclass(objective.cls, OfTask):
        raise BadInput("objective: learns from what a task says of unlabelled rows; it goes beside one, in ssl finetune")
    source = data.build(seed).serving(objective)
    first = Start.of(objective, from_, source.corpus_roles, seed, objective.config.get("dropout"), pooling=pooling)
    return source, *source.start(first, None if from_ else model, tokenizer, augment, call.screen.say)


def _judge(goal: Objective, model: Backbone, valid: Store | None, replicas: World, batch_size: int, watch: Any) -> tuple[Judge | None, int]:
    """Held-out losses, and what the features are worth where somebody looks; labels, where there are any, then choose the checkpoint.
    And the rows that are read for it."""
    if valid is None:
        return None, 0
    if watch is not None and watch.metric:
        goal.metric, goal.higher_is_better = watch.metric, True  # type: ignore[misc]

    def judge(last: bool) -> dict[str, Any]:
        scores = held_out(goal, model, valid, replicas, batch_size)
        seen = watch(model, last) if watch is not None and replicas.leads else {}
        return {**scores, **dict(replicas.gather(list(seen.items()))[0])}

    return judge, goal.rows(valid).count + getattr(watch, "rows", 0)


def judgeable(goal: Objective, stores: dict[str, Store], call: Call) -> Store | None:
    """The held-out part, if there is one and it has rows for this objective."""
    valid = stores.get("valid")
    if valid is not None and (not valid.count or goal.rows(valid).count < goal.least):
        call.screen.say("       valid is too small to judge by; the last weights are kept")
        del stores["valid"]
        return None
    return valid


def auto_steps(stream: Stream) -> int:
    return max(stream.steps_per_epoch, LEAST)

"""`ssl pretrain`: one self-supervised objective over an unlabelled corpus."""

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from sslcli.build import Modules, Moved, backbone_of, length_of, parameters, tokenizer_of
from sslcli.commands import Call
from sslcli.commands.folder import claimed
from sslcli.core import Adversary, Backbone, Objective, Term
from sslcli.data import corpus
from sslcli.data.store import Store
from sslcli.data.stream import Stream
from sslcli.data.text import TextData
from sslcli.data.tokenizer import Recipe
from sslcli.distributed import world
from sslcli.evaluation import held_out
from sslcli.optim import Optimizer
from sslcli.run import Run
from sslcli.schema import Part
from sslcli.trainer import Trainer

LEAST = 600  # steps, where the user names no number and one pass over the corpus is shorter
HEADLINE = ("loss", "masked_accuracy", "token_accuracy", "perplexity", "bits_per_byte", "retrieval_accuracy")


def pretrain(
    call: Call,
    *,
    run: Part[Run],
    data: Part[TextData],
    tokenizer: Part[Recipe],
    model: Part[Backbone] | None,
    objective: Part[Objective],
    adversarial: Part[Adversary],
    optimizer: Part[Optimizer],
    trainer: Part[Trainer],
    seed: Annotated[int, Field(ge=0, lt=2**31)],
    from_: str | None,
    resume: Literal["auto"] | bool,
    plugins: list[str],
) -> dict[str, Any]:
    call.refuse_both("from", "model", "from= brings its own model")
    call.refuse_both("from", "tokenizer", "from= brings its own tokenizer")
    with world(trainer.config["devices"]) as replicas, claimed(call, run.build(), bool(resume)) as folder:
        # the network, and the corpus in its words
        source = data.build(seed)
        words = tokenizer_of(from_, tokenizer, source, model, ("text",), call.screen.say)
        backbone = backbone_of(from_, None if from_ else model, words, objective.cls.head_kind, seed)
        length = length_of(source, backbone, objective.cls.row_length)
        with call.screen.progress("preparing", None) as bar:
            prepared = corpus.prepare(source, words, lambda done: bar.update(done, f"{done / 1e6:,.1f} MB of text"))

        folder.data(prepared, length, source.allow_changed)

        # what it learns
        goal = objective.build(backbone, words, length)
        modules = Modules(backbone, objective=goal)
        folder.model(backbone, words, parameters(modules))

        # training
        engine = call.trainer(trainer).build(replicas, folder.run, call.screen, seed, goal.batch_size)
        stream = engine.stream(goal, prepared.stores["train"], seed)
        valid = _judgeable(goal, prepared.stores, call)
        judge = partial(held_out, goal, backbone, valid, replicas, engine.batch_size) if valid is not None else None
        moved = Moved(modules)
        term = Term("objective", goal, stream, adversarial.build())
        facts = engine.fit(modules, [term], optimizer, judge, goal.rows(valid).count if valid else 0, _steps, folder.resume)
        if call.dry_run:
            shown = words.hf.convert_ids_to_tokens(stream.batches(0)[0]["ids"][0].tolist())
            return folder.dry_end(engine, modules, facts, " ".join(shown))

        # what stays
        if stream.places.lengths is None:
            facts["tokens_per_second"] = round(facts["examples_per_second"] * stream.places.width, 1)
        scores: dict[str, Any] = {"train": facts}
        for split in ("valid", "test"):
            if split in prepared.stores and prepared.stores[split].count:
                modules.eval()
                scores[split] = held_out(goal, backbone, prepared.stores[split], replicas, engine.batch_size)
        folder.save_model(backbone, getattr(goal, "head", None), words)
        receipts = {"loaded": backbone.loaded, "moved": moved.receipt(modules), **goal.receipt(stream)}
        return folder.finish(scores, receipts, HEADLINE)


def _judgeable(goal: Objective, stores: dict[str, Store], call: Call) -> Store | None:
    """The held-out part, if there is one and it has rows for this objective."""
    valid = stores.get("valid")
    if valid is not None and (not valid.count or goal.rows(valid).count < goal.least):
        call.screen.say("       valid is too small to judge by; the last weights are kept")
        del stores["valid"]
        return None
    return valid


def _steps(stream: Stream) -> int:
    return max(stream.steps_per_epoch, LEAST)

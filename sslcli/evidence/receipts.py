"""What receipts say against a run: a trace that contradicts what was asked ends it, one that shows an option without effect is told."""

from collections.abc import Iterator, Mapping
from typing import Any

from sslcli.errors import printable

ENOUGH_MOVED = 1e-9  # a block that training was to change and that moved less than this was not trained
SAME_RATE = 1e-6  # of a rate


def check(receipts: Mapping[str, Any], train: Mapping[str, Any]) -> None:
    """An AssertionError where training changed nothing (in one step alone a teacher does not move: its momentum ends at 1), or a step was
    not cut as it was asked."""
    still = [block for block, change in receipts.get("moved", {}).items() if change <= ENOUGH_MOVED]
    if still and train["steps"] - train["refused_steps"] > 1:
        raise AssertionError(f"training changed nothing in {', '.join(still[:5])}")
    pieces = receipts.get("accumulation", {"largest": {}})
    for name, rows in pieces["largest"].items():
        if rows > pieces["asked"] and name not in pieces["whole"]:
            raise AssertionError(f"trainer.micro_batch_size={pieces['asked']}: {rows:,} rows went through the network at once")


def shots(asked: int | None, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Of data.shots: the fewest and most rows of a label that are trained on, as they were counted when they were laid down."""
    counts = facts["train"].get("per_label")
    if asked is None or not counts or facts.get("labelling") not in ("single", "ordinal"):
        return {}
    name, most = max(counts.items(), key=lambda item: item[1])
    if most > asked:
        raise AssertionError(f"data.shots={asked}: {most:,} rows of {printable(name)} would be trained on")
    return {"shots": {"asked": asked, "fewest": min(counts.values()), "most": most}}


def doubts(receipts: Mapping[str, Any]) -> Iterator[str]:
    """A line for every option that had no effect."""
    optimizer, beside, tuned = (receipts.get(name) or {} for name in ("optimizer", "joint", "peft"))
    rates, average = optimizer.get("layer_decay"), optimizer.get("ema")
    pieces = receipts.get("accumulation", {"whole": []})
    if whole := [name for name in pieces["whole"] if pieces["largest"].get(name, 0) > pieces["asked"]]:
        why = "its rows are each other's negatives, so that it is taken whole (objective.chunk, where there is one, saves memory)"
        yield f"trainer.micro_batch_size={pieces['asked']} had no effect on the batch of the {' and the '.join(whole)}: {why}"
    if receipts.get("gradient_checkpointing") and not receipts["gradient_checkpointing"]["computed_again"]:
        yield "trainer.gradient_checkpointing=true had no effect: the backward pass computed nothing again"
    if rates and rates["largest_rate"] - rates["least_rate"] <= SAME_RATE * rates["largest_rate"]:
        yield f"optimizer.layer_decay={rates['asked']:g} had no effect: all that was trained learnt at one rate"
    if average and not average["from_last_weights"]:
        yield f"optimizer.ema={average['asked']:g} had no effect: what is kept are the last weights, no average"
    if "gradient_ratio" in beside and not beside["gradient_ratio"]["mean"]:
        yield "the loss beside the task had no effect: its gradient in the network was zero whenever it was looked at"
    if "changed" in receipts.get("augment", {}) and not receipts["augment"]["changed"]:
        yield f"augment had no effect: none of {receipts['augment']['looked_at']:,} rows that were looked at was changed"
    if tuned and tuned["tensors_moved"] < tuned["tensors"]:
        yield f"peft: {tuned['tensors'] - tuned['tensors_moved']} of its {tuned['tensors']} tensors are as they began; they learnt nothing"

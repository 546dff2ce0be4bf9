"""How a task is judged: on what is held out while it trains, calibrated there, and scored on every held-out split beside a cheap method."""

from collections.abc import Mapping
from typing import Any

from sslcli.calibration import refuse_too_few
from sslcli.commands.folder import Folder
from sslcli.core import Backbone, Task
from sslcli.data.examples import examples_of
from sslcli.data.store import Store
from sslcli.data.stream import Stream
from sslcli.distributed import World
from sslcli.evaluation import calibrate, judge
from sslcli.evidence.baseline import baseline as cheap
from sslcli.evidence.leaked import without_leaks
from sslcli.modality import Modality
from sslcli.trainer import Judge

HEADLINE = (
    *("top1", "top5", "accuracy", "macro_f1", "micro_f1", "mae", "quadratic_kappa", "precision", "recall", "f1"),
    *("ece", "ece_before", "brier", "nll", "abstained", "error_on_answered"),
    *("spearman", "pearson", "recall@1", "recall@5", "recall@10", "mrr", "ndcg@10", "map"),
)
FEWEST = 50  # held-out examples that weights are chosen by: of fewer, which checkpoint is best is mostly chance


class Judging:
    """`valid` chooses checkpoints and fits calibrations; where it is too small for what is promised, the run ends here."""

    def __init__(self, task: Task, model: Backbone, stream: Stream, stores: Mapping[str, Store], world: World, source: Modality):
        self.task, self.model, self.stream, self.stores, self.world, self.source = task, model, stream, stores, world, source
        self.valid = stores.get("valid")
        self.rows = self.valid.count if self.valid else 0
        self.held = examples_of(self.valid).count if self.valid else 0  # a row may be a window of an example
        refuse_too_few(self.held if self.valid else None, task.risk)

    def keep_last(self, patience: int | None) -> str | None:
        """Where held-out examples are too few to choose among checkpoints, let the last weights be kept; what to say then."""
        if self.valid is None or self.held >= FEWEST or patience is not None:
            return None
        self.task.metric = ""  # type: ignore[misc]
        how = "trainer.patience=N chooses, and stops, by them all the same"
        return f"valid  {self.held} examples are too few to choose weights by: the last are kept ({how})"

    @property
    def watch(self) -> Judge | None:
        """What judges beside training, where something is held out."""
        if self.valid is None:
            return None
        self.task.gallery = self.gallery("valid")
        return self._judged

    def _judged(self, last: bool) -> dict[str, Any]:
        assert self.valid is not None
        self.task.conclude(self.model, self.stream)
        return judge(self.task, self.model, self.valid, self.world)

    def calibrate(self) -> dict[str, Any]:
        return calibrate(self.task, self.model, self.valid, self.world)

    def gallery(self, split: str) -> Store | None:
        """Where retrieval looks: what the user named; for a held-out part, which may have one picture a label, what it was split off."""
        if split == "test":
            return self.stores.get("gallery")
        return self.stores["train"] if self.source.valid is None else None

    def scores(self, folder: Folder, baseline: bool, leaks: bool) -> dict[str, Any]:
        """Of every held-out split, of what a cheap method makes of the same labels, of the last split without rows that were trained on;
        predictions.jsonl is of that split."""
        splits = [split for split in ("valid", "test") if split in self.stores]
        scores: dict[str, Any] = {}
        for split in splits:
            self.task.gallery = self.gallery(split)
            scores[split] = judge(self.task, self.model, self.stores[split], self.world, folder.run)
        if lines := list(self.task.index_lines()):
            folder.run.write_lines("index.jsonl", lines)
        if baseline and splits and self.world.leads:
            scores["baseline"] = cheap(self.task, self.stores["train"], self.stores[splits[-1]])
        if leaks and splits and self.world.leads:
            found = folder.run.dir / "predictions.jsonl"
            scores |= without_leaks(self.task, self.stores["train"], self.stores[splits[-1]], splits[-1], found)
        if splits:
            folder.pictures(self.source, self.task, self.model, self.stores[splits[-1]])
        return scores

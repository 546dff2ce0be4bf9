"""What every training verb says and leaves: facts about data and model on the screen and in the run folder, the model, the scores."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from sslcli import checkpoint, device
from sslcli.attack import Attack
from sslcli.augment.text import reached
from sslcli.commands import Call
from sslcli.commands.told import changed, counts, fewer
from sslcli.data.text import Prepared
from sslcli.distributed import World
from sslcli.errors import BadInput, printable
from sslcli.evidence import leaked, projection
from sslcli.evidence import receipts as evidence
from sslcli.log import counted, duration, shown
from sslcli.modality import Modality, Processor
from sslcli.report import page, record
from sslcli.report.curves import draw_reliability, draw_robustness
from sslcli.robustness import robustness, show
from sslcli.run import Run, storage
from sslcli.trainer import Trainer

MOST_CLASSES, WEAKEST = 30, 15  # of a table on the screen
NOTHING_KEPT = "dry run: nothing was kept; leave --dry-run out for the real run"


@dataclass
class Folder:
    """A claimed run folder and the call that claimed it."""

    run: Run
    call: Call
    resume: bool
    drawn: Sequence[str] = ()  # pictures in the folder
    sizes: Mapping[str, int] = field(default_factory=dict)  # of the model, in parameters

    def corpus(self, source: Modality, processor: Any) -> Prepared:
        """Read, check and lay down an unlabelled corpus, and say what it is."""
        with self.call.screen.progress("preparing", None) as bar:
            prepared = source.corpus(processor, lambda done: bar.update(done, source.prepared(done)))
        self.data(source, prepared, processor.length)
        return prepared

    def data(self, source: Modality, prepared: Prepared, row_length: int) -> None:
        """Say what the data is; on a resume, refuse data that is not the same."""
        import json

        path, facts = self.run.dir / "data.json", prepared.facts
        if self.resume and path.exists() and not source.allow_changed:
            before = json.loads(path.read_text(encoding="utf-8"))
            differing = changed(before.get("files", {}), facts["files"])
            if differing:
                what = f"the data is not what {printable(self.run.dir)} was trained on: {'; '.join(differing[:5])}"
                raise BadInput(f"{what}; data.allow_changed=true goes on with it")
        self.run.write("data.json", {**facts, "row_length": row_length, "labels_in_order": prepared.labels, "seed": source.seed})
        if prepared.bad:
            self.run.write_lines("bad_records.jsonl", prepared.bad)
        say = self.call.screen.say
        for split in ("train", "valid", "test", "gallery", "pairs", "unlabelled"):
            if split in facts:
                columns = facts["columns"].get(split)
                shown_columns = "  columns " + ", ".join(f"{r}={c}" for r, c in columns.items()) if columns else ""
                say(f"{split:5}  {counts(facts[split])}{shown_columns}")
        if "valid_is" in facts:
            say(f"       valid is {facts['valid_is']}")
        for split in ("train", "valid", "test", "gallery", "pairs"):
            if facts.get(split, {}).get("cut_rows"):
                f = facts[split]
                share = f["cut_tokens"] / max(1, f["tokens"] + f["cut_tokens"])
                what = f"{share:.1%} of the tokens lost" if f["cut_tokens"] else "read in overlapping windows, nothing lost"
                self.call.screen.warn(
                    f"{split}: {f['cut_rows']:,} of {f['examples']:,} texts are longer than a row: {what} (data.too_long, data.max_length)"
                )
            for remark in source.remarks(facts.get(split, {}).get("counted", {})):
                self.call.screen.warn(f"{split}: {remark}")
        if "fewer_shots" in facts:
            self.call.screen.warn(fewer(facts["fewer_shots"]))
        if facts.get("mended_tags"):
            self.call.screen.warn(f"{counted(facts['mended_tags'], 'tag')} began an entity with I; read as B (conlleval's rule)")
        if prepared.bad:
            self.call.screen.warn(f"{counted(len(prepared.bad), 'bad record')} left out; see {self.run.dir / 'bad_records.jsonl'}")

    def views(self, source: Modality, processor: Processor, store: Any) -> dict[str, Any]:
        """A receipt of what is learnt from views, and a warning where they cannot teach."""
        seen, doubt = source.views(processor, store)
        if doubt:
            self.call.screen.warn(doubt)
        return seen

    def changes(self, change: Any, stream: Any, seed: int) -> dict[str, Any]:
        """Let an augmentation change the batches of a stream, and say what it does; a receipt, measured before the first step."""
        if change is None:
            return {}
        stream.change, found = change, change.receipt(seed) | reached(stream, change)
        measured = ", ".join(f"{name.replace('_', ' ')} {shown(value)}" for name, value in found.items())
        self.call.screen.say(f"augment  {measured} (of the first epoch){f'; {change.said}' if change.said else ''}")
        return {"augment": found}

    def model(self, model: Any, processor: Processor, sizes: Mapping[str, int], more: str | None = None) -> None:
        loaded, self.sizes = model.loaded, sizes
        origin = (
            f"{loaded['tensors']} of {loaded['of']} tensors from {loaded['from']}, {len(loaded['new'])} new"
            if loaded["from"]
            else "untrained"
        )
        self.call.screen.say(f"model  {model.family}, {sizes['parameters'] / 1e6:,.1f}M parameters ({origin}), {processor.said}")
        if more:
            self.call.screen.say(more)

    def save_model(
        self,
        source: Modality,
        model: Any,
        goal: Any,
        processor: Processor,
        labels: Sequence[str] | None = None,
        multi: bool = False,
    ) -> None:
        """`model/`, which plain transformers loads: written beside and renamed, so that it is whole or not there."""
        if labels is not None and goal.classifies:
            self.call.screen.say(goal.calibration.said(labels))
        if not self.run.writes:
            return
        making, final = self.run.dir / ".model.tmp", self.run.dir / "model"
        with storage(self.run.dir):
            shutil.rmtree(making, ignore_errors=True)
            source.save(making, model, getattr(goal, "head", None), processor, labels, multi)
            if labels is not None and goal.classifies:
                goal.calibration.save(making, labels)
            shutil.rmtree(final, ignore_errors=True)
            making.rename(final)

    def pictures(self, source: Modality, goal: Any, model: Any, store: Any) -> None:
        if not self.run.writes:
            return
        with storage(self.run.dir):
            drawn, missing = source.album(self.run.dir, goal, model, store)
        self.drawn = drawn
        if missing:
            self.call.screen.warn(missing)
        self.reliability(goal)

    def reliability(self, goal: Any) -> None:
        """reliability.png, of a classifier."""
        if not self.run.writes or not getattr(goal, "classifies", False):
            return
        try:
            with storage(self.run.dir):
                if draw_reliability(self.run.dir, goal.calibration):
                    self.drawn = [*self.drawn, "reliability.png"]
        except BadInput as error:
            self.call.screen.detail(f"reliability.png: not drawn: {error}")

    def robustness(self, finished: Any, store: Any, world: World, attack: Attack, most: int | None) -> dict[str, Any]:
        """Clean against disturbed input: one table, and a picture."""
        found = robustness(finished.goal, finished.model, finished.processor, store, world, self.call.screen, attack, most)
        show(found, self.call.screen)
        try:
            with storage(self.run.dir):
                draw_robustness(self.run.dir / "robustness.png", found)
                self.drawn = [*self.drawn, "robustness.png"]
        except BadInput as error:
            self.call.screen.warn(f"robustness.png: not drawn: {error}")
        return {"robustness": found}

    def finish(self, scores: dict[str, Any], receipts: dict[str, Any], headline: Sequence[str]) -> dict[str, Any]:
        """metrics.json, receipts.json, the final table, and where all of it is."""
        evidence.check(receipts, scores["train"])
        for doubt in evidence.doubts(receipts):
            self.call.screen.warn(doubt)
        self.run.write("receipts.json", {"parameters": self.sizes, **receipts})
        return self.report(scores, headline)

    def report(self, scores: dict[str, Any], headline: Sequence[str]) -> dict[str, Any]:
        """metrics.json, the table, and where everything is."""
        self.run.write("metrics.json", scores)
        rows = []
        for split in ("valid", "test"):
            for key in headline:
                if key in scores.get(split, {}):
                    value, low_high = scores[split][key], scores[split].get(f"{key}_interval")
                    rows.append([f"{split} {key}", shown(value), f"{low_high[0]:.4f} to {low_high[1]:.4f}" if low_high else ""])
        cheap = scores.get("baseline")
        for key in headline:
            if cheap and key in cheap:
                low_high = cheap.get(f"{key}_interval")
                rows.append([f"{cheap['method']}: {key}", shown(cheap[key]), f"{low_high[0]:.4f} to {low_high[1]:.4f}" if low_high else ""])
        facts = scores.get("train") or scores["evaluation"]
        rows.append(["time", duration(facts["seconds"]), f"{facts['steps']:,} steps" if "steps" in facts else ""])
        speed = "tokens_per_second" if "tokens_per_second" in facts else "examples_per_second"
        rows.append([speed.replace("_per_second", "/s"), shown(float(facts[speed])), facts.get("precision", "")])
        rows.append(["peak memory", f"{facts['peak_memory_bytes'] / 1e6:,.0f} MB", ""])
        self.call.screen.table(str(self.run.dir), ("", "", "95 % interval"), rows)
        if "projection" in scores:
            self.call.screen.say(projection.sentence(scores["projection"]))
        if owed := leaked.sentence(scores, record.HEADLINE):
            self.call.screen.warn(owed)
        return self.end(scores)

    def end(self, scores: dict[str, Any]) -> dict[str, Any]:
        """Below the table: class by class, and where everything is."""
        for split in ("test", "valid"):
            if scores.get(split, {}).get("report"):
                self._per_class(split, scores[split]["report"])
                break
        if self.call.dry_run:
            self.call.screen.say(NOTHING_KEPT)
            return scores
        if self.run.writes:
            self._pages()
        for name in ("report.html", "model", "metrics.json", "predictions.jsonl", "errors.json", "suspicious.csv", *self.drawn):
            if (self.run.dir / name).exists():
                self.call.screen.say(f"{name:18} {self.run.dir / name}")
        return {"run": str(self.run.dir), **scores}

    def _pages(self) -> None:
        """report.html, and the card of the model. A run that is done does not fail because it could not be described."""
        try:
            page.beside(self.run.dir)
        except Exception as error:
            self.call.screen.warn(f"report.html: not drawn: {printable(error)}; ssl report run={printable(self.run.dir)} tries again")

    def _per_class(self, split: str, report: Mapping[str, Mapping[str, Any]]) -> None:
        """Precision, recall, F1 and support of every class; of very many, the averages and the weakest."""
        classes = {name: row for name, row in report.items() if not name.endswith(" avg")}
        if len(classes) > MOST_CLASSES:
            weakest = sorted(classes, key=lambda name: classes[name]["f1-score"])[:WEAKEST]
            classes = {name: classes[name] for name in weakest}
            title = f"{split}: the {WEAKEST} weakest of {len(report)} classes (all are in metrics.json)"
        else:
            title = f"{split}, class by class"
        averages = {name: row for name, row in report.items() if name.endswith(" avg")}
        keys = ("precision", "recall", "f1-score", "support")
        rows = [[name, *(row[key] for key in keys)] for name, row in {**classes, **averages}.items()]
        self.call.screen.table(title, ("", "precision", "recall", "F1", "support"), rows)

    def dry_end(self, trainer: Trainer, modules: nn.Module, facts: Mapping[str, Any], example: str) -> dict[str, Any]:
        """After two real steps of a dry run: save, reload, compare, and say what the real run would need."""
        if not trainer.world.leads:
            return {}
        found = checkpoint.newest(self.run.dir / "checkpoints")
        weights = dict(modules.named_parameters())
        same = found is None or all(bool((weights[n].detach() == t).all()) for n, t in found.tensors("weights").items())
        size = sum(p.stat().st_size for p in found.path.iterdir()) if found else 0  # nothing to keep of a head that is solved
        report = {
            "example": example,
            "two_steps": facts["steps"] == 2,
            "reloads_equal": same,
            "peak_memory_bytes": facts["peak_memory_bytes"],
            "disk_bytes": size * (self.run.keep + 2),
            "free_bytes": device.free_bytes(self.run.dir),
        }
        say = self.call.screen.say
        say(f"example  {example}")
        say(f"two steps taken, saved, reloaded{'' if same else ' DIFFERENTLY'}; peak memory {report['peak_memory_bytes'] / 1e6:,.0f} MB")
        say(f"checkpoints would take {report['disk_bytes'] / 1e6:,.0f} MB; {report['free_bytes'] / 1e6:,.0f} MB are free")
        say(NOTHING_KEPT)
        if not same:
            raise AssertionError("a checkpoint does not reload to the same weights")
        return report


@contextlib.contextmanager
def claimed(call: Call, run: Run, resume: bool) -> Iterator[Folder]:
    """The run folder; for a dry run, one that is gone afterwards."""
    if call.dry_run or call.preview:
        if not resume:
            run.refuse_if_used()
        beside = next(p for p in (run.dir, *run.dir.absolute().parents) if p.is_dir())  # its disk is the one to measure
        with tempfile.TemporaryDirectory(prefix=".sslcli-dry-", dir=beside) as temporary:
            run.dir = Path(temporary) / "run"
            with run.claim(call.config_yaml, False) as mine:
                yield Folder(mine, call, False)
        return
    if resume and not (run.dir / "config.yaml").exists():
        call.screen.detail(f"{printable(run.dir)}: nothing to resume; a new run begins")
    with run.claim(call.config_yaml, resume) as mine:
        yield Folder(mine, call, resume)

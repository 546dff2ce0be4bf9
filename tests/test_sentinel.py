"""The collapse sentinel: planted collapses are told with their cause, healthy steps are left alone, and what it says can be acted on."""

import json
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scripts.benchmarks.plants import PLANTS
from sslcli import config
from sslcli.core import Output, Term
from sslcli.distributed import World
from sslcli.evidence import causes
from sslcli.evidence.collapse import IDLE, RULES, measured
from sslcli.log import Screen
from sslcli.objectives.byol import BYOL
from sslcli.objectives.simclr import SimCLR
from sslcli.objectives.simsiam import SimSiam
from sslcli.objectives.vicreg import VICReg
from sslcli.sentinel import Sentinel
from tests.tiny_networks import batch_of, digits, made

ALONE = World(0, 1, torch.device("cpu"))
ONE = torch.tensor(1.0)


class Folder:
    """What the sentinel writes down."""

    dir = Path("run")

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []

    def append(self, name: str, record: dict[str, Any]) -> None:
        self.written.append(record)

    def lines(self, name: str) -> list[dict[str, Any]]:
        return self.written


def watching(objective: Any, stops: bool = False, weights: list[Any] | None = None) -> Sentinel:
    sentinel = Sentinel(stops, Folder(), Screen(silent=True), ALONE, lambda *_: None)  # type: ignore[arg-type]
    optimizer: Any = SimpleNamespace(weights=weights or [], masters=weights or [])
    sentinel.begin([Term("objective", objective, None, None)], optimizer, lambda: 10)  # type: ignore[arg-type]
    return sentinel


def shown(seen: dict[str, Any], objective: Any, steps: int = 200, loss: float = 1.0) -> dict[str, Any] | None:
    """The alarm of a run that sees the same at every step."""
    sentinel = watching(objective)
    for step in range(steps):
        sentinel.before(step)
        sentinel.see("objective", Output(torch.tensor(loss), seen=seen))
        sentinel.look(step)
    return sentinel.alarm


@pytest.fixture
def still() -> Any:
    """An objective without parts, with every setting that a cause names."""
    return SimpleNamespace(causes={}, named_children=list, temperature=100.0)


HEALTHY = torch.randn(64, 24, generator=torch.Generator().manual_seed(0))
CASES = {
    "constant": {"first": HEALTHY[:1].expand(64, 24), "second": HEALTHY[:1].expand(64, 24)},
    "same_views": {"first": HEALTHY, "second": HEALTHY.clone()},
    "tokens": {"tokens": HEALTHY[:, None].expand(64, 32, 24)},
    "uninformed": {"first": HEALTHY, "said": torch.eye(32)[:1].expand(64, 32)},
    "shrunk": {"first": HEALTHY, "deviation": torch.tensor(0.01)},
    "narrow": {"first": HEALTHY, "projected": HEALTHY[:, :1] * HEALTHY[:1]},
    "guessing": {"first": HEALTHY, "chance": 1.001},
}


@pytest.mark.parametrize("symptom", CASES)
def test_each_symptom_is_told_by_its_own_rule(symptom: str, still: Any) -> None:
    alarm = shown(CASES[symptom], still)
    assert alarm is not None and alarm["symptom"] == symptom and alarm["step"] <= 200
    assert str(alarm["step"]) in causes.sentence(alarm)


@pytest.mark.parametrize(("equal", "every", "told"), [(0.4, 2, None), (0.4, 1, "spans"), (1.0, 2, "spans")])
def test_one_batch_of_short_texts_is_no_collapse(still: Any, equal: float, every: int, told: str | None) -> None:
    """Of which spans are the whole text; but two such looks in a row are, and so is a batch whose views are all alike."""
    still.causes, still.shortest, sentinel = {"same_views": "spans"}, 8, watching(still)
    some = torch.arange(len(HEALTHY)) < equal * len(HEALTHY)
    alike = torch.where(some[:, None], HEALTHY, HEALTHY.roll(1, 0))
    looked = 0
    for step in range(200):
        sentinel.before(step)
        sentinel.see(
            "objective", Output(torch.tensor(1.0), seen={"first": HEALTHY, "second": HEALTHY.roll(1, 0) if looked % every else alike})
        )
        sentinel.look(step)
        looked = sentinel.looks
    assert (sentinel.alarm or {}).get("cause") == told and looked > 2


def test_what_is_healthy_small_or_not_finite_says_nothing(still: Any) -> None:
    views = {"first": HEALTHY, "second": HEALTHY.roll(1, 0), "projected": HEALTHY, "said": HEALTHY.softmax(-1), "chance": 2.0}
    assert shown({**views, "tokens": HEALTHY.view(8, 8, 24)}, still) is None
    assert measured({"first": HEALTHY[:3], "second": HEALTHY[:3]}, ONE) == {}
    assert measured({"first": HEALTHY * float("nan")}, ONE) == {} == measured({"first": HEALTHY}, ONE * float("inf"))


def test_the_measures_are_what_they_are_called() -> None:
    """A basis: as many directions as vectors; a guess: no gain; one code for each row: as much information as codes."""
    eye = torch.eye(16)
    found = measured({"first": eye, "second": eye.roll(1, 0), "said": eye, "chance": 4.0}, torch.tensor(1.0))
    assert found["rankme"] == pytest.approx(16, rel=1e-3) and found["alignment"] == pytest.approx(2) and found["same_views"] == 0
    assert found["used"] == pytest.approx(16) and found["entropy"] == 0 and found["shared"] == pytest.approx(0, abs=1e-6)
    assert found["gain"] == pytest.approx(0.75)
    few = measured({"first": eye, "second": torch.cat([eye[:4], eye[4:].roll(1, 0)])}, ONE)
    assert few["same_views"] == pytest.approx(0.25)


def test_every_alarm_has_a_sentence_in_both_languages() -> None:
    """Of every cause that exists, with the settings that it names; a stranger's alarm has none and breaks nothing."""
    assert {*causes.SEEN["en"]} == {*causes.SEEN["zh"]} == {r.symptom for r in (*RULES, IDLE)}
    assert {*causes.CAUSES["en"]} == {*causes.CAUSES["zh"]}
    settings = SimpleNamespace(temperature=1.0, momentum=0.9, centre_momentum=0.9, variance=0.0, redundancy=0.1, epsilon=0.05, shortest=8)
    for rule in (*RULES, IDLE):
        for cause in causes.CAUSES["en"]:
            settings.causes = {rule.symptom: cause}
            alarm = causes.alarm(50, rule, 0.5, settings, part="predictor")  # type: ignore[arg-type]
            for language in ("en", "zh"):
                said = causes.sentence(json.loads(json.dumps(alarm)), language)
                assert "50" in said and "\n" not in said and "{" not in said
    for other in (None, 3, [], {}, {"step": 1, "symptom": "narrow", "value": "x", "limit": 1, "cause": "views"}, {"symptom": []}):
        assert causes.sentence(other) == ""


def trained(objective: Any, model: Any, steps: int = 100, lr: float = 1e-2) -> Sentinel:
    """As the loop does it, over the views of a few batches."""
    weights = [*model.parameters(), *(p for p in objective.parameters() if p.requires_grad)]
    engine, sentinel, batch = torch.optim.AdamW(weights, lr=lr), watching(objective, weights=weights), batch_of(objective, digits(), 32)
    views = cycle([objective.views(batch_of(objective, digits(), 32, epoch)) for epoch in range(8)])
    objective.views = lambda _: next(views)
    objective.begin(model, None)
    for step in range(steps):
        sentinel.before(step)
        output = objective(model, batch)
        output.loss.backward()
        sentinel.see("objective", output)
        sentinel.look(step)
        engine.step()
        engine.zero_grad()
        objective.after_step(model, (step + 1) / steps)
        if sentinel.alarm is not None:
            break
    return sentinel


PLANTED = {
    "byol without stop-gradient": (BYOL, {"hidden": 64, "dim": 32}),
    "simsiam, predictor at learning rate zero": (SimSiam, {"dim": 64, "bottleneck": 16}),
    "simclr, temperature 100": (SimCLR, {"hidden": 64, "temperature": 100.0}),
    "vicreg without variance": (VICReg, {"variance": 0.0, "hidden": 64}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_collapse_is_told_with_its_cause_and_a_healthy_run_is_not(name: str) -> None:
    """The others, on real networks, are planted by scripts/bench collapse."""
    cls, keys = PLANTED[name]
    with PLANTS[name].patch():
        alarm = trained(*made(cls, **keys)).alarm
    assert alarm is not None and alarm["cause"] in PLANTS[name].causes, alarm
    usual = {k: v for k, v in keys.items() if k not in ("temperature", "variance")}
    assert trained(*made(cls, **usual)).alarm is None


IDENTICAL = ["objective=simclr", "model=resnet_nano", "model.width=8", "augment=none", "augment.views=2", "trainer.batch_size=32"]


def test_a_run_stops_or_goes_on_and_its_report_says_why(ssl, tmp_path: Path) -> None:
    """stop: exit 4 with a checkpoint to go on from; warn: one warning, a receipt, a sentence in the report."""
    run = ["pretrain", "data=digits", *IDENTICAL, "trainer.steps=3", "run.dir=run"]
    done = ssl(*run, "trainer.on_collapse=stop")
    assert done.code == 4 and done.err.count("collapse at step 1") == 1 and "augment=simclr" in done.err
    assert "Traceback" not in done.err and list(tmp_path.glob("run/checkpoints/step-*"))
    done = ssl(*run, "resume=auto", "trainer.on_collapse=warn")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "run" / "receipts.json").read_text())["sentinel"]
    assert [alarm["cause"] for alarm in found["alarms"]] == ["views"] and found["last"]["same_views"] == 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "collapse at step 1" in page
    assert ssl("report", "run=run", "report.language=zh", "out=zh.html").code == 0
    assert "第 1 步发生坍缩" in (tmp_path / "zh.html").read_text()


def test_a_healthy_run_says_nothing_and_logs_its_measures(ssl, tmp_path: Path) -> None:
    done = ssl("pretrain", "data=digits", "objective=simclr", "model.width=8", "trainer.batch_size=32", "trainer.steps=2", "run.dir=run")
    assert done.code == 0 and "collapse" not in done.err
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert {f"sentinel.{k}" for k in ("spread", "rankme", "uniformity", "alignment", "projected_rank", "gain")} <= {*first}
    found = json.loads((tmp_path / "run" / "receipts.json").read_text())["sentinel"]
    assert found["looks"] == 1 and found["alarms"] == [] and 0 < found["share_of_time"] < 1
    assert config.load(tmp_path / "run" / "config.yaml")["trainer"]["on_collapse"] == "warn"

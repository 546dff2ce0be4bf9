"""Several seeds of one fine-tuning: each is the run alone, the mean is theirs, and what fails is named."""

import gc
import json
import os
import weakref
from pathlib import Path

import pytest

from sslcli import metrics
from sslcli.commands.seeds import deliver
from sslcli.report.card import card
from sslcli.report.record import Record
from sslcli.trainer import Trainer
from tests.conftest import TINY, rows, write_jsonl

STEPS = [*TINY, "trainer.steps=2"]


@pytest.fixture
def few(tmp_path: Path, labelled: Path) -> list[str]:
    test = write_jsonl(tmp_path / "test.jsonl", rows(40, seed=3))
    return ["finetune", f"data.train={labelled}", f"data.test={test}", "data.shots=6", *STEPS]


def read(folder: str, name: str = "metrics.json") -> dict:
    return json.loads(Path(folder, name).read_text())


def test_a_seed_of_several_is_the_run_alone(typed, few) -> None:
    done = typed(*few, "run.dir=run", "seed=4", "trainer.seeds=2")
    alone = typed(*few, "run.dir=alone", "seed=5", "trainer.seeds=1")
    assert done.code == alone.code == 0, done.err + alone.err
    for split in ("test", "baseline"):
        assert read("run/seeds/5")[split] == read("alone")[split]
    assert Path("run/seeds/5/predictions.jsonl").read_text() == Path("alone/predictions.jsonl").read_text()
    assert read("run/seeds/4")["train"]["data_order"] != read("run/seeds/5")["train"]["data_order"]
    # the root is the seed that is delivered, and their mean beside it
    assert read("run")["seeds"]["delivered"] == 4 and read("run")["test"] == read("run/seeds/4")["test"]
    each = [read(f"run/seeds/{s}")["test"]["accuracy"] for s in (4, 5)]
    over = read("run")["seeds"]["test"]["accuracy"]
    assert over["mean"] == pytest.approx(sum(each) / 2) and list(over["each"].values()) == each
    assert over["interval"] == pytest.approx(metrics.mean_interval(each, "accuracy"))
    # and so the page says: the mean first, against the cheap method seed by seed
    record = Record.open(Path("run"))
    assert record.value("test", "accuracy") == over["mean"] and record.interval("test", "accuracy") == tuple(over["interval"])
    gain = read("run")["seeds"]["above_baseline"]["accuracy"]
    cheap = [read(f"run/seeds/{s}")["baseline"]["accuracy"] for s in (4, 5)]
    assert list(gain["each"].values()) == pytest.approx([a - b for a, b in zip(each, cheap, strict=True)])
    page = Path("run/report.html").read_text()
    assert f'value="{over["mean"]}"' in page and "/seeds/test/accuracy/mean" in page and "means of" in page
    assert f"| test | accuracy | {100 * each[0]:.1f}" in card(record, "a model").replace("\\", ""), "the card is of the model that leaves"
    # a seed's folder is a run like any other
    again = typed("evaluate", "run=run/seeds/5", "out=again")
    assert again.code == 0 and again.result["test"]["accuracy"] == each[1], again.err


def test_a_seed_takes_its_network_with_it(typed, few, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref] = []
    alive: list[int] = []

    def fit(trainer: Trainer, modules, *rest, **more):
        alive.append(sum(network() is not None for network in made))
        made.append(weakref.ref(modules))
        return real(trainer, modules, *rest, **more)

    real = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", fit)
    gc.disable()  # as where few Python objects are made, which is all that the collector counts
    try:
        done = typed(*few, "run.dir=run", "trainer.seeds=2", "baseline=false", "errors=false")
    finally:
        gc.enable()
    assert done.code == 0 and alive == [0, 0], (alive, done.err)


@pytest.mark.usefixtures("warm_sweeps")
def test_few_labels_bring_seeds_and_a_sweep_multiplies_none(typed, few) -> None:
    done = typed(*few, "run.dir=run", "baseline=false")
    assert done.code == 0, done.err
    assert "3 seeds, because 18 labels are few (trainer.seeds=1 for one)" in done.err and set(
        read("run")["seeds"]["test"]["accuracy"]["each"]
    ) == {"0", "1", "2"}
    assert Path("run/model/config.json").samefile("run/seeds/0/model/config.json"), "no space is taken twice"
    assert list(Path("run/checkpoints").iterdir()) and not Path("run/seeds/1/checkpoints").exists()
    assert not list(Path("run").glob(".*")), "nothing half made is left"
    swept = typed(few[0], "-m", *few[1:], "optimizer.lr=1e-3", "baseline=false", "sweep.dir=sweep")
    assert swept.code == 0 and "seeds" not in read("sweep/000") and not Path("sweep/000/seeds").exists()
    tried = typed(*few, "--dry-run")
    assert tried.code == 0 and "a dry run tries the first" in tried.err and tried.result["two_steps"]


def test_an_interruption_goes_on_with_the_seed_that_was_cut(typed, few, monkeypatch) -> None:
    assert typed(*few, "run.dir=whole").code == 0
    trained, cut = [], []
    fit = Trainer.fit

    def noted(self, *arguments):
        trained.append(self.seed)
        if self.seed == 1 and not cut:
            cut.append(self.seed)
            os.kill(os.getpid(), 15)  # asked to stop in the middle of the second seed
        return fit(self, *arguments)

    monkeypatch.setattr(Trainer, "fit", noted)
    done = typed(*few, "run.dir=cut")
    assert done.code == 75 and "resume=auto" in done.err and not Path("cut/metrics.json").exists(), done.err
    trained.clear()
    again = typed(*few, "run.dir=cut", "resume=auto")
    assert again.code == 0 and trained == [1, 2], again.err
    told, whole = read("cut")["seeds"], read("whole")["seeds"]
    assert told["test"] == whole["test"] and told["delivered"] == whole["delivered"]
    trained.clear()
    assert typed(*few, "run.dir=cut", "resume=auto").code == 0 and not trained, "what is complete is not run again"


def test_a_seed_that_fails_is_named_and_not_delivered(typed, few, monkeypatch) -> None:
    from sslcli.errors import Diverged

    fit = Trainer.fit

    def diverging(self, *arguments):
        if self.seed == 0:
            raise Diverged("diverged: 5 steps with non-finite loss")
        return fit(self, *arguments)

    monkeypatch.setattr(Trainer, "fit", diverging)
    monkeypatch.setattr(metrics, "collapse", lambda gold, said: None)
    done = typed(*few, "run.dir=run", "trainer.seeds=3")
    assert done.code == 0 and "seed 0 failed: diverged" in done.err, done.err
    told = read("run")["seeds"]
    assert set(told["failed"]) == {"0"} and told["delivered"] == 1 and set(told["test"]["accuracy"]["each"]) == {"1", "2"}
    assert read("run", "data.json")["seed"] == 1
    monkeypatch.setattr(Trainer, "fit", lambda self, *arguments: (_ for _ in ()).throw(Diverged("diverged: all of it")))
    done = typed(*few, "run.dir=all", "trainer.seeds=2")
    assert done.code == 4 and "all 2 seeds failed" in done.err, done.err


def test_the_best_on_valid_is_delivered_where_all_are_judged_alike(typed, few, tmp_path) -> None:
    valid = write_jsonl(tmp_path / "valid.jsonl", rows(45, seed=9))
    assert typed(*few, f"data.valid={valid}", "baseline=false", "optimizer.lr=1e-4", "run.dir=run").code == 0
    told = read("run")["seeds"]
    each = {s: v for s, v in told["valid"]["macro_f1"]["each"].items() if s not in told["failed"]} or told["valid"]["macro_f1"]["each"]
    assert told["delivered_because"] == "best macro_f1 on data.valid" and each[str(told["delivered"])] == max(each.values())


def test_what_a_collapse_is() -> None:
    gold = ["a", "b", "a", "c"]
    assert metrics.collapse(gold, ["b"] * 4) == "says b everywhere"
    assert "at chance" in str(metrics.collapse(["a", "a", "a", "b"], ["b", "a", "b", "a"]))
    assert metrics.collapse(gold, gold) is None and metrics.collapse(["a", "a"], ["a", "a"]) is None
    assert metrics.collapse([["O", "B"], ["O"]], [["O", "O"], ["O"]]) == "says O everywhere"
    assert metrics.collapse([["x"], ["y"]], [[], []]) == "says no label everywhere"
    assert metrics.collapse([["O", "B"], ["O"]], [["O", "B"], ["O"]]) is None


def test_delivering_again_leaves_nothing_beside(tmp_path: Path) -> None:
    made, whole = tmp_path / "seeds" / "0", tmp_path / "run"
    (made / "model").mkdir(parents=True)
    whole.mkdir()
    for name in ("data.json", "model/config.json"):
        (made / name).write_text("{}")
    for _ in range(2):
        deliver(made, whole)
    assert sorted(str(p.relative_to(whole)) for p in whole.rglob("*")) == ["data.json", "model", "model/config.json"]

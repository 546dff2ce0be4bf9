"""The scout: halving by hand, pilots that are the beginning of the long run, and a run folder that ends as any other."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from sslcli.commands import pilot, scout
from sslcli.commands.warm import Oven, Warm
from sslcli.errors import Diverged, Preempted
from sslcli.evidence import halving
from tests.conftest import TINY, Done, rows, write_jsonl

WORDS = [*TINY, "objective=auto", "objective.candidates=[span_contrastive,masked_lm]", "objective.share=0.5", "budget=1s", "run.dir=run"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that take milliseconds need no seconds for a pilot; and how busy the machine is plans nothing here."""
    for name, value in (("LEAST", 0.05), ("SPARE", 0.0), ("ENDING", 0.2)):
        monkeypatch.setattr(scout, name, value)
    monkeypatch.setattr(scout.Scouting, "now", lambda self: 0.0)
    monkeypatch.setattr(pilot, "time", SimpleNamespace(monotonic=lambda: 0.0))


@pytest.fixture
def texts(tmp_path: Path) -> str:
    return f"data.train={write_jsonl(tmp_path / 'texts.jsonl', rows(300))}"


def board(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "run" / "scout.json").read_text())


def test_rungs_and_their_times_by_hand() -> None:
    assert [halving.rungs(n) for n in (2, 3, 4, 8, 9, 10)] == [[2], [3], [4, 2], [8, 3], [9, 3], [10, 4, 2]]
    until = halving.times([8, 3], 48.0)
    assert until == [3.0, 11.0]  # 24 s a rung: 3 s for each of 8, then 8 s more for each of 3
    assert 8 * until[0] + 3 * (until[1] - until[0]) == pytest.approx(48.0)
    assert halving.best({"a": 0.5, "b": 0.7, "c": 0.5}) == ["b", "a", "c"]


def test_a_dip_is_forgiven() -> None:
    looks = [{"steps": n, "scores": {"probe": score}} for n, score in ((10, 0.60), (30, 0.51))]
    one = pilot.Pilot("masked_lm", Path("a"), looks=looks)
    assert one.best("probe") == 0.60 and one.peak("probe")["steps"] == 10 and one.score("probe", 1) == 0.51


def test_a_scout_ends_as_a_run_of_what_it_chose(tmp_path: Path, typed: Callable[..., Done], texts: str) -> None:
    done = typed("pretrain", *WORDS, texts)
    assert done.code == 0, done.err
    found = board(tmp_path)
    chosen = next(p for p in found["pilots"] if p["name"] == found["chosen"])
    scores = {p["name"]: max(look["scores"]["probe"] for look in p["looks"]) for p in found["pilots"]}
    assert found["by"] == "probe" and scores[found["chosen"]] == max(scores.values())  # the corpus has labels
    assert done.result["scout"]["chosen"] == found["chosen"] and found["long_run"]["continues"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    pilots = [json.loads(line) for line in (tmp_path / "run" / chosen["folder"] / "metrics.jsonl").read_text().splitlines()]
    assert "resumed after" in done.err and lines[: len(pilots)] == pilots  # the long run went on from the pilot: nothing was learnt twice
    assert done.result["train"]["steps"] > chosen["looks"][-1]["steps"]
    assert "scout" in (tmp_path / "run" / "report.html").read_text().lower()
    tree = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())  # and so from= and ssl evaluate take it as any other
    assert tree["objective"]["kind"] == found["chosen"] and tree["run"]["dir"] == "run" and (tmp_path / "run" / "model").is_dir()


def test_an_interrupted_scout_goes_on_where_it_was(
    tmp_path: Path, typed: Callable[..., Done], texts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, began = pilot.Pilot.train, []

    def stop_at_the_second(self: pilot.Pilot, *arguments: object) -> None:
        began.append(self.name)
        if began == ["span_contrastive", "masked_lm"]:
            raise Preempted(f"stopped; run.dir={self.folder} resume=auto continues")
        train(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pilot.Pilot, "train", stop_at_the_second)
    done = typed("pretrain", *WORDS, texts)
    assert done.code == 75 and "run.dir=run resume=auto" in done.err and len(board(tmp_path)["pilots"][0]["looks"]) == 1
    once = board(tmp_path)["pilots"][0]["looks"]
    done = typed("pretrain", "run.dir=run", "resume=auto", "-q")
    assert done.code == 0, done.err
    assert began == ["span_contrastive", "masked_lm", "masked_lm"] and board(tmp_path)["pilots"][0]["looks"] == once
    again = typed("pretrain", *WORDS, texts, "resume=auto")  # the whole command once more, as schedulers type it
    assert again.code == 0 and again.result["scout"]["chosen"] == done.result["scout"]["chosen"], again.err
    other = typed("pretrain", *WORDS[:-2], "run.dir=run", "budget=7s", texts, "resume=auto")
    assert other.code == 2 and "budget=7s: the run to resume has 1s" in other.err


def test_a_falling_rate_begins_anew_and_a_failed_pilot_takes_no_other_with_it(
    tmp_path: Path, typed: Callable[..., Done], texts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = pilot.Pilot.train

    def failing(self: pilot.Pilot, *arguments: object) -> None:
        if self.name == "span_contrastive":
            raise Diverged("diverged: as a test wants it")
        train(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pilot.Pilot, "train", failing)
    done = typed("pretrain", *WORDS, texts, "optimizer.schedule=cosine")
    assert done.code == 0, done.err
    found = board(tmp_path)
    assert found["chosen"] == "masked_lm" and not found["long_run"]["continues"] and "cosine falls" in found["long_run"]["why"]
    assert "span_contrastive: diverged: as a test wants it" in done.err
    assert "resumed after" not in done.err  # from its own first step on


def test_without_labels_the_space_of_the_features_decides(tmp_path: Path, typed: Callable[..., Done], corpus: Path) -> None:
    done = typed("pretrain", *WORDS, f"data.train={corpus}")
    assert done.code == 0, done.err
    found = board(tmp_path)
    assert found["by"] == "rankme" and {"rankme", "alignment", "uniformity"} <= set(found["pilots"][0]["looks"][0]["scores"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["budget=null"], "budget: missing"),
        (["budget=soon"], "budget=soon: expected seconds"),
        (["budget=0.3s"], "is too short for pilots of 2 objectives"),
        (["trainer.steps=5"], "trainer.steps: budget says"),
        (["objective.candidates=[masked_lm]"], "objective.candidates"),
        (["objective.candidates=[masked_lm,simclr]"], "simclr: objective=simclr: is for image data"),
        (["objective.candidates=[masked_lm,simcsee]"], "did you mean simcse?"),
        (["objective.labelled=nothing.csv"], "nothing.csv"),
        (["from=somewhere"], "from and model are both given"),
        (["--preview", "x.png"], "--preview: shows what one objective sees"),
    ],
)
def test_mistakes_are_told_in_a_line_and_leave_nothing(
    tmp_path: Path, typed: Callable[..., Done], corpus: Path, words: list[str], said: str
) -> None:
    given = [w for w in WORDS if w.partition("=")[0] not in {x.partition("=")[0] for x in words}]
    done = typed("pretrain", *given, f"data.train={corpus}", *words)
    assert done.code == 2 and said in done.err and "Traceback" not in done.err, done.err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_tries_each_and_keeps_nothing(tmp_path: Path, typed: Callable[..., Done], corpus: Path) -> None:
    done = typed("pretrain", *WORDS, f"data.train={corpus}", "--dry-run")
    assert done.code == 0 and done.err.count("two steps taken") == 2, done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_scout_that_was_killed_in_a_pilot_goes_on(tmp_path: Path, oven: Oven, texts: str) -> None:
    """kill -9 while the second pilot trains: the first is not trained again, and the run ends as any other."""

    def start(*words: str) -> Warm:
        with (tmp_path / "said").open("wb") as said:
            return oven.start(["pretrain", *words], said, said, os.environ, str(tmp_path))

    first = start(*WORDS[:-2], texts, "trainer.log_every=1", "budget=30s", "run.dir=run")
    while first.poll() is None and not (tmp_path / "run/pilots/masked_lm/metrics.jsonl").is_file():
        time.sleep(0.02)
    first.kill()
    assert first.wait(60) == -signal.SIGKILL, (tmp_path / "said").read_text()
    once = board(tmp_path)["pilots"][0]
    assert once["name"] == "span_contrastive" and len(once["looks"]) == 1
    log = (tmp_path / "run/pilots/span_contrastive/metrics.jsonl").read_bytes()
    again = start("run.dir=run", "resume=auto")
    assert again.wait(120) == 0, (tmp_path / "said").read_text()
    found = board(tmp_path)
    assert found["pilots"][0]["looks"][0] == once["looks"][0] and found["chosen"] and (tmp_path / "run/model").is_dir()
    assert (tmp_path / "run/pilots/span_contrastive/metrics.jsonl").read_bytes().startswith(log)

"""Curves whose future is known: the interval holds it, a plateau is called one, and few points say nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sslcli.evidence.projection import LEAST, of_run, project, sentence
from sslcli.report.page import Page
from sslcli.report.record import Record

CURVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "root": lambda x: 0.8 - 0.4 * x**-0.5,
    "inverse": lambda x: 0.8 - 0.4 / x,
    "logarithm": lambda x: 0.4 + 0.08 * np.log(x),
    "line": lambda x: 0.3 + 0.01 * x,
    "exponential": lambda x: 0.8 - 0.4 * np.exp(-x / 6),
    "plateau": lambda x: 0.6 + 0 * x,
}


@pytest.mark.parametrize("name", CURVES)
def test_the_interval_holds_what_is_planted(name: str) -> None:
    curve, held = CURVES[name], 0
    for seed in range(40):
        x = np.arange(1, 13.0) * 100
        noise = 0.01 * np.random.default_rng(seed).standard_normal(12)
        found = project(x, curve(x / 100) + noise, 1800)
        truth = float(curve(np.array([18.0]))[0] - curve(np.array([12.0]))[0])
        held += found.interval[0] <= truth <= found.interval[1]
    assert held >= 34  # of 40 at 95 %, 38 are expected; fewer than 34 in 0.3 % of such tests


def test_without_noise_the_gain_is_the_curves() -> None:
    for name in ("inverse", "logarithm", "line"):
        x, curve = np.arange(1, 13.0), CURVES[name]
        truth = float(curve(np.array([18.0]))[0] - curve(np.array([12.0]))[0])
        found = project(x, curve(x), 18)
        assert found.gain == pytest.approx(truth, abs=0.002) and found.verdict == "helps"


def test_what_is_said_follows_from_the_interval() -> None:
    x, random = np.arange(1, 41.0), np.random.default_rng(0)
    assert project(x, 0.6 + 0.002 * random.standard_normal(40), 60).verdict == "hardly helps"
    assert project(x, 0.6 + 0.02 * random.standard_normal(40), 60).verdict == "may help"
    assert project(x[:5], [0.2, 0.7, 0.1, 0.8, 0.3], 7.5).verdict == "cannot be told"
    assert project(x[: LEAST - 1], x[: LEAST - 1], 6) is None
    assert project(x * 1e5, CURVES["root"](x), 60e5).gain == pytest.approx(project(x, CURVES["root"](x), 60).gain)


def test_a_log_is_read_and_told(tmp_path: Path) -> None:
    log = [
        line
        for i in range(1, 11)
        for line in ({"step": 10 * i, "loss": 1.0}, {"step": 10 * i, "valid": {"loss": 1.0, "probe": 0.5 + 0.03 * i}})
    ]
    found = of_run("probe", log, {"steps": 100, "seconds": 1200})
    assert found["projection"]["gain"] == pytest.approx(0.15, abs=0.01) and found["projection"]["points"] == 10
    assert sentence(found["projection"]).startswith("another 10 min 00 s (50 steps): +15.0 points of probe (+")
    few = of_run("probe", log[:6], {"steps": 30, "seconds": 60})
    assert few["projection"]["verdict"] == "cannot be told" and "trainer.eval_every" in sentence(few["projection"])
    assert of_run(None, log, {}) == {} and of_run("knn", log, {"steps": 9, "seconds": 9})["projection"]["points"] == 0
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("objective: {kind: simclr}\nseed: 0\n")
    metrics = {"train": {"steps": 100, "seconds": 1200.0}, "valid": {"loss": 1.0, "probe": 0.8}}
    (run / "metrics.json").write_text(json.dumps({**metrics, **found}))
    assert "It still rises: another " in Page(language="en").html([Record.open(run)])
    assert "仍在上升" in Page(language="zh").html([Record.open(run)])


def test_a_pretraining_run_says_it(ssl, tmp_path: Path) -> None:
    sizes = ["data=digits", "model.width=8", "trainer.batch_size=64"]
    done = ssl("pretrain", "objective=simclr", *sizes, "trainer.steps=2", "trainer.eval_every=1", "run.dir=run")
    assert done.code == 0, done.err
    assert done.result["projection"]["metric"] == "probe" and "cannot be told from" in done.err

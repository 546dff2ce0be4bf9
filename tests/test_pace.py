"""How many steps a run takes under a time limit: planned by its first seconds, and again as it goes."""

from types import SimpleNamespace

import pytest

from sslcli.pace import AIM, NEAR, Pace

EVERY = {"eval": None, "save": None, "log": None}


def run(pace: Pace, planned: int, speed) -> tuple[int, int, float]:
    """(steps taken, steps of the plan, seconds) of a run whose steps take `speed(seconds so far)` each."""
    done, elapsed, steps = 0, 0.0, planned
    while done < steps and elapsed <= pace.time_limit:
        done, elapsed = done + 1, elapsed + speed(elapsed)
        if done % max(1, steps // 100) == 0:
            steps = pace.again(steps, done, elapsed)
    return done, steps, elapsed


@pytest.mark.parametrize("planned", [50, 500, 5000])
@pytest.mark.parametrize(
    "speed",
    [lambda t: 0.1, lambda t: 1.0 if t < 10 else 0.1, lambda t: 0.1 if t < 60 else 0.3, lambda t: 0.3 if 20 < t < 80 else 0.1],
    ids=["even", "busy at first", "busy later", "busy in between"],
)
def test_a_schedule_ends_with_the_time_limit_whatever_was_planned(planned: int, speed) -> None:
    """A plan by a busy machine's first seconds took a tenth of the steps; one by an idle machine's was cut in the middle."""
    done, steps, elapsed = run(Pace(None, None, 32, EVERY, 100.0), planned, speed)
    assert done == steps, "the learning rate has come to its end"
    assert (AIM - 2 * NEAR) * 100 <= elapsed <= 100


def test_named_steps_are_the_most_and_a_time_limit_makes_them_fewer() -> None:
    even = SimpleNamespace(steps_per_epoch=200)
    for pace in (Pace(300, None, 32, EVERY, 100.0), Pace(None, 1.5, 32, EVERY, 100.0)):
        assert pace.plan(even, None, None, None) == 300
        assert run(pace, 300, lambda t: 0.1)[:2] == (300, 300)
        done, steps, elapsed = run(pace, 300, lambda t: 0.5)
        assert done == steps < 200 and elapsed <= 100
    without = Pace(300, None, 32, EVERY, None)
    assert without.again(300, 10, 1e9) == 300


def test_a_run_that_goes_on_plans_by_what_it_has_left() -> None:
    begun = {"steps": 150, "done": 100, "elapsed": 50.0}
    assert Pace(None, None, 32, EVERY, 200.0).plan(None, None, None, None, begun) == 100 + int((AIM * 200 - 50) * 2)
    assert Pace(300, None, 32, EVERY, 200.0).plan(None, None, None, None, begun) == 300
    over = {"steps": 150, "done": 150, "elapsed": 97.0}
    assert Pace(300, None, 32, EVERY, 100.0).plan(None, None, None, None, over) == 150, "it had its time"
    assert Pace(300, None, 32, EVERY, None).plan(None, None, None, None, over) == 300, "told to go on"

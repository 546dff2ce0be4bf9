"""How many steps a run takes under a time limit: planned by its first seconds, and again as it goes."""

from types import SimpleNamespace

import pytest

from sslcli.pace import AIM, NEAR, Pace

EVERY = {"eval": None, "save": None, "log": None}


def run(pace: Pace, planned: int, speed) -> tuple[int, int, float, list[int]]:
    """(steps taken, steps of the plan, seconds, all plans) of a run whose steps take `speed(step, seconds so far)` each."""
    done, elapsed, steps, plans = 0, 0.0, planned, []
    while done < steps and elapsed <= pace.time_limit:
        steps = pace.again(steps, done, elapsed)
        plans.append(steps)
        done, elapsed = done + 1, elapsed + speed(done, elapsed)
    return done, steps, elapsed, plans


@pytest.mark.parametrize("planned", [50, 500, 5000])
@pytest.mark.parametrize(
    "speed",
    [
        lambda n, t: 0.1,
        lambda n, t: 1.0 if t < 10 else 0.1,
        lambda n, t: 0.1 if t < 60 else 0.3,
        lambda n, t: 0.3 if 20 < t < 80 else 0.1,
        lambda n, t: 1.5,
    ],
    ids=["even", "busy at first", "busy later", "busy in between", "slow"],
)
def test_a_schedule_ends_with_the_time_limit_whatever_was_planned(planned: int, speed) -> None:
    """A plan by a busy machine's first seconds took a tenth of the steps; one by an idle machine's was cut in the middle."""
    done, steps, elapsed, _ = run(Pace(None, None, 32, EVERY, 100.0), planned, speed)
    assert done == steps, "the learning rate has come to its end"
    assert (AIM - 2 * NEAR) * 100 <= elapsed <= 100


def test_named_steps_are_the_most_and_a_time_limit_makes_them_fewer() -> None:
    even = SimpleNamespace(steps_per_epoch=200)
    for pace in (Pace(300, None, 32, EVERY, 100.0), Pace(None, 1.5, 32, EVERY, 100.0)):
        assert pace.plan(even, None, None, None) == 300
        done, steps, _, plans = run(pace, 300, lambda n, t: 0.1)
        assert done == steps == 300 and set(plans) == {300}, "a schedule that fits is not touched"
    for most, seconds in ((300, 0.5), (20_000, 1.0), (1_000, 10.0)):
        slow = Pace(most, None, 32, EVERY, 100.0)
        done, steps, elapsed, _ = run(slow, slow.plan(even, None, None, None), lambda n, t, s=seconds: s)
        assert done == steps and 100 - 2 * seconds - 6 <= elapsed <= 100
    late = Pace(600, None, 32, EVERY, 180.0)
    _, _, _, plans = run(late, late.plan(even, None, None, None), lambda n, t: 30.0 if n == 0 else 0.05)
    assert set(plans) == {600}, "nor by a first step that compiles"
    without = Pace(300, None, 32, EVERY, None)
    assert without.again(300, 10, 1e9) == 300


def test_a_run_that_goes_on_plans_by_what_it_has_left() -> None:
    even = SimpleNamespace(steps_per_epoch=200)

    def plan(pace: Pace, **begun: object) -> int:
        return pace.plan(even, lambda _: 600, None, None, {"steps": 150, "done": 100, "elapsed": 50.0, **begun})

    timed = Pace(None, None, 32, EVERY, 200.0)
    assert plan(timed, most=None) == plan(timed) == 150, "until it knows this process's speed"
    steps = [timed.again(150, done, 50.0 + (done - 100) * 0.5) for done in range(100, 120)]
    assert steps[0] == 150 and max(steps) == pytest.approx(100 + (AIM * 200 - 50) / 0.5, rel=NEAR)
    assert plan(Pace(300, None, 32, EVERY, 200.0)) == 300
    over = {"done": 150, "elapsed": 95.0}
    assert plan(Pace(300, None, 32, EVERY, 100.0), **over) == 150, "it had its time"
    assert plan(Pace(300, None, 32, EVERY, None), **over) == 300, "told to go on"
    guarded = Pace(None, None, 32, EVERY, 3600.0)
    assert plan(guarded, steps=600, most=600) == 600, "begun without a limit: one that is given later makes it no longer"
    assert max(guarded.again(600, done, 50.0 + done) for done in range(100, 600)) == 600


def test_looks_keep_their_steps_where_a_plan_changes_a_little() -> None:
    timed, named = (Pace(None, None, 32, EVERY, limit) for limit in (60.0, None))
    assert {timed.interval("eval", steps, 0) for steps in range(600, 1001)} == {100}
    assert [timed.interval("log", steps, 0) for steps in (90, 150, 320, 1234)] == [1, 1, 5, 20]
    assert named.interval("eval", 612, 0) == 61

"""The admission controller: never beyond, never stuck, never faster than its hysteresis, always back to the start."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from rheo_sglang.admission.controller import (
    LONGEST_RECOVERY,
    MARGIN,
    PATIENCE,
    RECOVERY,
    Action,
    Controller,
    Observation,
    Rules,
)

RULES = st.builds(
    Rules,
    overcommit=st.floats(0.5, 4),
    hit_rate_floor=st.floats(0, 0.95),
    least_factor=st.floats(0.05, 1),
)
OBSERVATIONS = st.lists(
    st.builds(
        Observation,
        hit_rate=st.none() | st.floats(0, 1),
        working_sets=st.floats(0, 400),
        frames=st.just(100),
        running=st.integers(0, 12),
        can_shrink=st.booleans(),
    ),
    max_size=200,
)
REQUESTS = st.tuples(st.integers(0, 12), st.floats(0, 1000), st.floats(0, 1000))


def stretched(observations: list[Observation], times: int) -> list[Observation]:
    return [seen for seen in observations for _ in range(times)]


@given(RULES, OBSERVATIONS, st.integers(1, 12), REQUESTS)
def test_nobody_joins_beyond_the_frames_or_the_limit_and_the_first_always_does(
    rules: Rules, observations: list[Observation], times: int, asked: tuple[int, float, float]
) -> None:
    controller = Controller(rules)
    running, working_sets, needed = asked
    for seen in stretched(observations, times):
        controller.observe(seen)
        assert controller.admits(0, working_sets, needed, seen.frames)
        if running and controller.admits(running, working_sets, needed, seen.frames):
            assert working_sets + needed <= rules.overcommit * seen.frames
            assert controller.limit is None or running < controller.limit
            assert controller.limit is not None or controller.factor == 1


@given(RULES, OBSERVATIONS, st.integers(1, 12))
def test_bounds_hold_and_a_lone_request_is_left_alone(
    rules: Rules, observations: list[Observation], times: int
) -> None:
    controller = Controller(rules)
    for seen in stretched(observations, times):
        before = controller.factor, controller.limit
        action = controller.observe(seen)
        assert rules.least_factor <= controller.factor <= 1
        assert controller.limit is None or controller.limit >= 1
        if seen.running <= 1:
            assert action is Action.NONE or action.takes_back
        if action is Action.PAUSE:
            assert controller.limit == seen.running - 1
            assert before[0] == rules.least_factor or not seen.can_shrink, "budgets were to shrink first"
        if action is Action.SHRINK:
            assert seen.can_shrink and controller.factor < before[0]
        if action is Action.GROW:
            assert before[1] is None, "a request was to come back first"
        if action is Action.NONE:
            assert (controller.factor, controller.limit) == before


@given(RULES, OBSERVATIONS, st.integers(1, 12))
def test_actions_are_as_far_apart_as_the_hysteresis_says(
    rules: Rules, observations: list[Observation], times: int
) -> None:
    controller, since = Controller(rules), 10**6
    for seen in stretched(observations, times):
        since += 1
        action = controller.observe(seen)
        if action is Action.NONE:
            continue
        assert since >= (RECOVERY if action.takes_back else PATIENCE)
        since = 0


@given(RULES, OBSERVATIONS, st.sampled_from(["not crowded", "good hit rate", "nothing selected"]))
def test_everything_is_taken_back_once_thrash_is_over(
    rules: Rules, observations: list[Observation], how: str
) -> None:
    controller = Controller(rules)
    for seen in stretched(observations, PATIENCE):
        controller.observe(seen)
    rate = {"not crowded": 0.0, "good hit rate": min(rules.hit_rate_floor + MARGIN, 1.0)}.get(how)
    calm = Observation(rate, 50 if how == "not crowded" else 300, 100, 3, can_shrink=True)
    steps_up, requests = 12, 12
    for _ in range((steps_up + requests) * LONGEST_RECOVERY):
        controller.observe(calm)
    assert (controller.factor, controller.limit) == (1.0, None)


def test_a_relapse_doubles_the_wait_and_calm_restores_it() -> None:
    controller = Controller(Rules(1.0, 0.5, 1.0))
    bad = Observation(0.2, 300, 100, 5, can_shrink=False)
    calm = Observation(0.9, 300, 100, 5, can_shrink=False)
    waits = []
    for _ in range(6):
        while controller.observe(bad) is not Action.PAUSE:
            pass
        wait = 1
        while controller.observe(calm) is not Action.RESUME:
            wait += 1
        waits.append(wait)
    assert waits == [8, 16, 32, 64, 64, 64]
    for _ in range(LONGEST_RECOVERY + 1):
        controller.observe(calm)
    while controller.observe(bad) is not Action.PAUSE:
        pass
    assert sum(controller.observe(calm) is Action.NONE for _ in range(RECOVERY)) == RECOVERY - 1


@dataclass
class Job:
    """A request of a modelled server: what it needs of the frames, and how many observations it runs for."""

    needed: float
    ticks: int


@given(RULES, st.lists(st.tuples(st.floats(1, 250), st.integers(1, 30)), min_size=1, max_size=25), st.data())
def test_a_modelled_server_answers_every_request(
    rules: Rules, jobs: list[tuple[float, int]], data: st.DataObject
) -> None:
    """Working sets are mispredicted, some exceed all frames; whatever is decided, somebody runs and all get done."""
    frames, controller = 100, Controller(rules)
    error = data.draw(st.floats(0.2, 5), label="misprediction")
    waiting, running = [Job(*job) for job in jobs], list[Job]()
    for _ in range(sum(job.ticks for job in waiting) + 1):
        while waiting and controller.admits(
            len(running), error * sum(job.needed for job in running), error * waiting[0].needed, frames
        ):
            running.append(waiting.pop(0))
        if not running:
            assert not waiting
            return
        needed = controller.factor * sum(job.needed for job in running)
        seen = Observation(min(frames / needed, 1.0), needed, frames, len(running), can_shrink=True)
        if controller.observe(seen) is Action.PAUSE:
            waiting.insert(0, running.pop())
        assert running
        for job in running:
            job.ticks -= 1
        running = [job for job in running if job.ticks > 0]
    assert not running and not waiting, "more time than one after the other takes"

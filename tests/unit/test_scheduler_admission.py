"""Admission in SGLang's scheduler: who is asked about, who pauses, and where a request that pauses goes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from property.serving import Server
from property.tokens import Shape
from sglang.srt.managers.schedule_policy import AddReqResult

from rheo_sglang import compat
from rheo_sglang.admission.control import AdmissionControl
from rheo_sglang.admission.controller import Action, Controller, Observation, Rules
from rheo_sglang.admission.scheduling import SchedulerAdmission
from rheo_sglang.config import RheoConfig
from rheo_sglang.hooks.scheduler import admit_request
from rheo_sglang.working_sets import COUNTED_EVERY

LONG = 500


class Script(Controller):
    """A controller that decides as a test says; what it is asked is kept."""

    def __init__(self, admitted: bool, pausing: int) -> None:
        super().__init__(Rules(1.0, 0.5, 1.0))
        self.admitted, self.pausing = admitted, pausing
        self.asked: list[int] = []
        self.observed: list[Observation] = []

    def admits(self, running: int, working_sets: float, needed: float, frames: int) -> bool:
        self.asked.append(running)
        return self.admitted

    def observe(self, seen: Observation) -> Action:
        self.observed.append(seen)
        self.limit = max(seen.running - self.pausing, 1)
        return Action.PAUSE if self.pausing else Action.NONE


def admission_of(
    scheduler: Scheduler, admitted: bool = True, pausing: int = 0
) -> tuple[SchedulerAdmission, Script]:
    """Admission control over a real engine, by a script, and its script; it is time to observe."""
    engine = Server(Shape(frames=4, pages=64), RheoConfig(dense_threshold=0)).backend.engine
    control = AdmissionControl(engine, RheoConfig())
    control.controller = script = Script(admitted, pausing)
    pass_time(control)
    return SchedulerAdmission(scheduler, control), script


def pass_time(control: AdmissionControl) -> None:
    control.table.activity.steps += COUNTED_EVERY


class Req:
    """What of SGLang's request is looked at."""

    def __init__(self, rid: str, prompt: int = 100, answered: int = 5, **others: Any) -> None:
        self.rid = rid
        self.origin_input_ids, self.output_ids = [1] * prompt, [2] * answered
        self.sampling_params = SimpleNamespace(max_new_tokens=others.pop("max_new_tokens", LONG))
        self.to_finish = self.input_embeds = None
        self.return_logprob = self.retracted = False
        self.is_finished = others.pop("finished", False)
        vars(self).update(others)

    def finished(self) -> bool:
        return self.is_finished

    def reset_for_retract(self) -> None:
        assert self.released, "its KV was not given back first"
        self.retracted = True


class Batch:
    """What of SGLang's batch is looked at."""

    def __init__(self, reqs: list[Req]) -> None:
        self.reqs, self.batch_is_full = reqs, True

    def filter_batch(self, keep_indices: list[int]) -> None:
        self.reqs = [self.reqs[index] for index in keep_indices]


class Scheduler:
    """A queue, as SGLang's scheduler has one."""

    def __init__(self, waiting: list[Req], max_queued_requests: int | None = None) -> None:
        self.waiting_queue, self.max_queued_requests = waiting, max_queued_requests
        self.tree_cache = object()

    def _add_request_to_queue(self, req: Req, is_retracted: bool = False) -> None:
        assert is_retracted and req.retracted
        self.waiting_queue.append(req)


@pytest.fixture(autouse=True)
def released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "release_into_tree", lambda req, tree: setattr(req, "released", True))


def adder_of(admission: SchedulerAdmission, running: list[Req], added: list[Req]) -> Any:
    return SimpleNamespace(
        token_to_kv_pool_allocator=SimpleNamespace(admission=admission),
        running_batch=Batch(running),
        can_run_list=added,
    )


def hooked(adder: Any, req: Req) -> Any:
    return admit_request(lambda *args, **kwargs: "SGLang's answer", adder, req, False, None)


def test_sglang_answers_whoever_fits_and_the_others_are_told_there_is_no_room() -> None:
    admission, script = admission_of(Scheduler([]))
    running = [Req("a"), Req("done", finished=True), Req("one token", max_new_tokens=1)]
    adder = adder_of(admission, running, [Req("b", prompt=7, answered=0)])
    assert hooked(adder, Req("new")) == "SGLang's answer"
    assert script.asked == [2], "those that are done, or say one token, need no frames"
    script.admitted = False
    assert hooked(adder, Req("new")) is AddReqResult.NO_TOKEN
    assert hooked(adder, Req("scored", max_new_tokens=0)) == "SGLang's answer", "it never decodes"
    plain = SimpleNamespace(token_to_kv_pool_allocator=object())
    assert hooked(plain, Req("new")) == "SGLang's answer", "another backend's allocator"


def test_after_a_refusal_sglang_looks_again_once_there_was_an_observation() -> None:
    admission, _ = admission_of(Scheduler([]), admitted=False)
    batch = Batch([Req("a")])
    admission.before_decode(batch)
    assert batch.batch_is_full, "SGLang's own reason to stop is its own"
    admission.admits(adder_of(admission, [Req("a")], []), Req("new"))
    admission.before_decode(batch)
    assert batch.batch_is_full, "it is not time yet"
    pass_time(admission.control)
    admission.before_decode(batch)
    assert not batch.batch_is_full


def paused(reqs: list[Req], count: int, waiting: list[Req], limit: int | None = None) -> tuple[list, list]:
    """Ids that still run and ids in the queue, after ``count`` of the requests, which joined in order, are to pause."""
    scheduler = Scheduler(waiting, limit)
    admission, script = admission_of(scheduler, pausing=count)
    for req in reqs:
        admission.admits(adder_of(admission, [], []), req)
    batch = Batch(list(reqs))
    admission.before_decode(batch)
    assert [seen.running for seen in script.observed] == [sum(not req.finished() for req in reqs)]
    assert admission.control.counters["paused"] == len(reqs) - len(batch.reqs)
    return [req.rid for req in batch.reqs], [req.rid for req in scheduler.waiting_queue]


def test_the_youngest_pauses_and_is_the_first_of_the_queue() -> None:
    reqs = [Req(name) for name in "abc"]
    assert paused(reqs, 1, [Req("w")]) == (["a", "b"], ["c", "w"])
    assert paused([Req(name) for name in "abc"], 2, [Req("w")]) == (["a"], ["b", "c", "w"])


def test_somebody_always_goes_on() -> None:
    assert paused([Req("a"), Req("b")], 5, [])[0] == ["a"]
    assert paused([Req("a")], 1, []) == (["a"], [])


@pytest.mark.parametrize(
    "others",
    [
        {"finished": True},
        {"to_finish": "abort"},
        {"return_logprob": True},
        {"input_embeds": [0.5]},
        {"beam_group": object()},
        {"answered": LONG - 16},
    ],
    ids=lambda others: next(iter(others)),
)
def test_who_would_lose_something_or_ends_soon_does_not_pause(others: dict[str, Any]) -> None:
    reqs = [Req("a"), Req("b"), Req("youngest", **others)]
    running, queue = paused(reqs, 1, [])
    assert (running, queue) == (["a", "youngest"], ["b"])


def test_a_full_queue_is_left_alone() -> None:
    assert paused([Req("a"), Req("b"), Req("c")], 2, [Req("w")], limit=2) == (["a", "b"], ["c", "w"])
    assert paused([Req("a"), Req("b")], 1, [Req("w")], limit=1) == (["a", "b"], ["w"])


def test_a_request_that_comes_back_is_as_old_as_it_was() -> None:
    scheduler = Scheduler([])
    admission, _ = admission_of(scheduler, pausing=1)
    a, b, c = (Req(name) for name in "abc")
    for req in (a, b, c):
        admission.admits(adder_of(admission, [], []), req)
    batch = Batch([a, b, c])
    admission.before_decode(batch)
    assert scheduler.waiting_queue == [c]
    admission.admits(adder_of(admission, [], []), c)
    d = Req("d")
    admission.admits(adder_of(admission, [], []), d)
    batch = Batch([a, b, d, scheduler.waiting_queue.pop()])
    pass_time(admission.control)
    admission.before_decode(batch)
    assert scheduler.waiting_queue == [d]

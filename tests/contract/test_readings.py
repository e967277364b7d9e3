"""Readings of both engines: what the steps selected and hit, and what is in use, taken before a step."""

from __future__ import annotations

import pytest
import torch
from engine_pair import LENGTHS, Pair, config_of
from engine_server import HEADS, LAYERS, PAGE_SIZE, EngineServer

from rheo_sglang.readings import Reading

STEPS = 3


def arrived(server: EngineServer) -> Reading:
    if server.device.type == "cuda":
        torch.cuda.synchronize()
    reading = server.engine.readings.collect()
    assert reading is not None
    assert server.engine.readings.collect() is None, "a reading was handed out twice"
    return reading


def test_both_engines_read_what_was_selected_and_hit(rng: torch.Generator) -> None:
    pair = Pair(config_of("importance", miss_mode="fetch"), 10, rng.device, torch.float32, 0, padding=1)
    for server in pair.servers:
        server.engine.readings.interval = 1
    hits = selected = context = 0
    for number in range(STEPS):
        in_use = [server.table.counters() for server in pair.servers]
        pair.step(number)
        for server, counters in zip(pair.servers, in_use, strict=True):
            reading = arrived(server)
            assert reading.hits is not None
            assert reading.steps == number
            assert reading.decoded_tokens == number * len(LENGTHS)
            assert reading.in_use == {name: counters[name] for name in reading.in_use}
            assert (reading.hits.hits, reading.hits.selected) == (hits, selected)
            assert reading.hits.samples == number * len(LENGTHS) * LAYERS * HEADS
            assert reading.hits.context == context
            rates = server.recorder.counts.rates[:-1]
            if number == 0:
                assert not reading.hits.rates.any()
            assert reading.fetched == 0, "where all misses go one way, nobody counts which way"
            now = server.engine.readings.now()
            assert now.hits is not None
            assert now.hits.rates == pytest.approx(rates.sum((0, 2)).cpu().numpy(), rel=1e-6)
        for found in pair.selections[pair.reference]:
            hits += int(found.num_hits.sum())
            selected += int(found.num_selected.sum())
        context += LAYERS * HEADS * sum(-(-(length + number + 1) // PAGE_SIZE) for length in LENGTHS.values())
        pair.align()
    assert 0 < hits < selected
    assert [server.engine.miss_route for server in pair.servers] == ["cpu", "fetch"]


def test_no_reading_is_taken_where_nobody_asks_for_one(rng: torch.Generator) -> None:
    pair = Pair(config_of("lru"), 10, rng.device, torch.float32, 0)
    pair.step(0)
    assert [server.engine.readings.collect() for server in pair.servers] == [None, None]


def test_readings_are_an_interval_apart(rng: torch.Generator) -> None:
    pair = Pair(config_of("lru"), 10, rng.device, torch.float32, 0)
    readings = pair.reference.engine.readings
    readings.interval = 3
    found = []
    for number in range(5):
        pair.step(number, (pair.reference,))
        reading = readings.collect()
        if reading is not None:
            found.append(reading.steps)
    assert found == [0, 3]

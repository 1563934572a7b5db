"""Amounts that are collected before they are written."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry

from gateway.metrics.admission import Admission
from gateway.metrics.series import Factory, PendingAmounts

OBSERVED = (0.0015, 0.3, 0.3, 7.0, 1000.0)


async def test_amounts_are_written_in_the_turn_of_the_loop_after_they_were_added() -> None:
    """A worker may be killed as soon as its answer has left, and is counted all the same."""
    registry = CollectorRegistry()
    create, pending = Factory(registry, Admission(None)), PendingAmounts()
    counter, histogram = create.counter("answers_total", "Answers"), create.histogram("s", "Times")
    for _ in range(2):
        pending.add(counter)
        pending.add(counter, 2)
        for seconds in OBSERVED:
            pending.observe(histogram, seconds)
        await asyncio.sleep(0)
    assert registry.get_sample_value("gateway_answers_total") == 6
    assert registry.get_sample_value("gateway_s_count") == 2 * len(OBSERVED)


async def test_observations_together_are_those_one_by_one() -> None:
    samples = []
    for collected in (True, False):
        registry = CollectorRegistry()
        create, pending = Factory(registry, Admission(None)), PendingAmounts()
        histogram = create.histogram("s", "Times")
        for seconds in OBSERVED:
            if collected:
                pending.observe(histogram, seconds)
            else:
                histogram.observe(seconds)
        await asyncio.sleep(0)
        samples.append([sample for metric in registry.collect() for sample in metric.samples])
    assert samples[0] == samples[1]

"""What a purchase in flight takes of a worker's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.bench.bulk import measure_in_flight
from tests.bench.processes import raise_descriptor_limit

IN_FLIGHT: Final = 1_000
MAX_BYTES: Final = 60 * 1024
"""Of one purchase, which took 33 KB when this was written."""


def test_a_purchase_in_flight_takes_little_memory(redis_server: str, tmp_path: Path) -> None:
    raise_descriptor_limit()  # the worker and the client inherit it
    found = measure_in_flight(tmp_path / "gateway", redis_server, IN_FLIGHT)
    assert (found.held_bytes - found.idle_bytes) / IN_FLIGHT < MAX_BYTES

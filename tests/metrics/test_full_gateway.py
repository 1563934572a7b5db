"""The size of `/metrics` and what a scrape takes, with every series that the bounds allow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.metrics import families
from tests.metrics.full_gateway import Measured

BOUNDS = (
    *(families.MAX_REQUESTS, families.MAX_UPSTREAM, families.MAX_TOKENS, families.MAX_IMAGES),
    *(families.MAX_COSTS, families.MAX_REFUSALS, families.MAX_REFUSALS),
)
MEGABYTE = 1_000_000


@pytest.mark.timed
def test_a_scrape_of_every_series_takes_less_than_300_ms(tmp_path: Path) -> None:
    """10,000 keys, 100 models, 4 workers; processor time."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.metrics.full_gateway"],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        capture_output=True,
        check=True,
    )
    measured = Measured(**json.loads(run.stdout))
    assert measured.samples > sum(BOUNDS)  # every family is full
    assert measured.samples < 45_000
    assert measured.seconds + measured.gzip_seconds < 0.2
    assert measured.first_seconds < 0.6  # the first scrape of a worker, which reads all keys
    assert measured.text_bytes < 5 * MEGABYTE
    assert measured.gzip_bytes < MEGABYTE
    assert measured.memory_bytes < 60 * MEGABYTE
    assert measured.files_bytes < 40 * MEGABYTE

"""The command line, with fail points in its workers: `python -m tests.failing_gateway serve …`.

The environment variable `FAIL_POINTS` is the folder through which a test controls it. Leases and
locks are shorter than usual, so that a test does not wait long for those of a killed worker.
"""

from __future__ import annotations

import os
from pathlib import Path

import gateway.__main__  # first: it sets the folder of the metrics
from gateway import assembly
from gateway.cache import flights, idempotency_keys
from gateway.wiring.stores import open_store
from tests.failpoints import FOLDER_VARIABLE, MORTAL_LEASE_SECONDS, Strings, with_fail_points

flights.LEASE_SECONDS = MORTAL_LEASE_SECONDS  # type: ignore[misc]
idempotency_keys.LOCK_SECONDS = MORTAL_LEASE_SECONDS  # type: ignore[misc]
assembly.open_store = with_fail_points(  # type: ignore[attr-defined]
    open_store, Strings(Path(os.environ[FOLDER_VARIABLE]))
)
gateway.__main__.main()

"""The command line, but its workers have fail points: `python -m tests.failing_gateway serve …`.

The environment variable `FAIL_POINTS` names the folder through which a test pulls the strings.
Claims live shorter than usual, so that a test need not wait long for one whose owner died.
"""

from __future__ import annotations

import os
from pathlib import Path

import gateway.__main__  # before all others of the gateway: it says where metrics are counted
from gateway import assembly as app
from gateway.cache import flights
from tests.failpoints import FOLDER_VARIABLE, MORTAL_LEASE_SECONDS, Strings, with_fail_points

flights.LEASE_SECONDS = MORTAL_LEASE_SECONDS  # type: ignore[misc]
app.open_store = with_fail_points(app.open_store, Strings(Path(os.environ[FOLDER_VARIABLE])))
gateway.__main__.main()

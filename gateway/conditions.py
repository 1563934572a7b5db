"""Log lines of states that last: one when a state begins, one when it ends, reminders in between.

An outage fails thousands of calls, and each of them notices it. A line for each would hide all
other lines. `Condition` writes the first with its details, at most one a minute while the state
lasts, and the last with its duration and the number of occurrences.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final

REMIND_SECONDS: Final = 60.0

FLAP_SECONDS: Final = 10.0
"""If a state begins again within this time after its end, its first occurrence after this time is
logged."""

MAX_DETAILS: Final = 8
"""Different details of one state that are logged at once."""


class Condition:
    """One state of this worker, such as a store that is unavailable.

    `began` and `ended` are the log events, `counted` is the field with the number of occurrences.
    `fields` are those of every line. Threads may share a condition: at worst, a count is short.
    """

    def __init__(
        self,
        log: Any,
        began: str,
        ended: str,
        *,
        counted: str = "occurrences",
        fields: dict[str, Any] | None = None,
        level: str = "warning",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._began, self._ended = began, ended
        self._counted = counted
        self._fields = fields or {}
        self._level = level
        self._clock = clock
        self._began_at: float | None = None
        self._occurred_at = 0.0
        self._logged_at: float | None = None  # of this state's last line; None: it has none yet
        self._quiet_until = 0.0
        self._count = 0
        self._details: set[str] = set()

    @property
    def lasts(self) -> bool:
        """Whether the state has begun and not ended."""
        return self._began_at is not None

    def occurs(self, detail: str = "", **fields: Any) -> None:
        """The state shows once more. A `detail` that is new in this state is logged at once."""
        now = self._occurred_at = self._clock()
        if self._began_at is None:
            self._began_at = now
        self._count += 1
        if self._logged_at is None:
            is_due = now >= self._quiet_until
        else:
            is_new = detail not in self._details and len(self._details) < MAX_DETAILS
            is_due = is_new or now - self._logged_at >= REMIND_SECONDS
        if not is_due:
            return
        self._details.add(detail)
        if self._count > 1:
            fields[self._counted] = self._count
            fields["lasted_seconds"] = round(now - self._began_at, 1)
        self._logged_at = now
        write = getattr(self._log, self._level)
        write(self._began, **self._fields, **fields, pid=os.getpid())

    def ends(self, **fields: Any) -> None:
        """The state is over, if it lasted."""
        if self._began_at is None:
            return
        now = self._clock()
        # One that began again soon may have shown only once, and yet have lasted.
        has_lasted = now - self._began_at >= FLAP_SECONDS
        if self._logged_at is not None or has_lasted:
            fields[self._counted] = self._count
            fields["lasted_seconds"] = round(now - self._began_at, 1)
            self._quiet_until = now + FLAP_SECONDS
            self._count = 0  # that of a state without a line is added to the next one
            self._log.info(self._ended, **self._fields, **fields, pid=os.getpid())
        self._began_at = self._logged_at = None
        self._details.clear()

    def ends_if_quiet(self, seconds: float) -> None:
        """The state is over if it has not shown for so long."""
        if self._began_at is not None and self._clock() - self._occurred_at >= seconds:
            self.ends()

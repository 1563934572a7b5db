"""The outage of one server, in the log from its first call that fails until it can be used again.

Later calls may never come, or go to another server. So the outage itself tries the server until it
is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from gateway.conditions import Condition

log = structlog.get_logger(__name__)

CHECK_SECONDS: Final = 1.0
"""The pause before another attempt to use the server."""

QUIET_SECONDS: Final = 2.0
"""How long no call may fail before a successful check ends the outage."""


class Outage:
    """Logs `store_unavailable`, and one `store_available` after it.

    `is_available` tries the server, and raises nothing. `location` is for the log.
    """

    def __init__(
        self, *, location: str, holds_books: bool, is_available: Callable[[], Awaitable[bool]]
    ) -> None:
        self._is_available = is_available
        self._condition = Condition(
            log,
            "store_unavailable",
            "store_available",
            counted="failed_calls",
            fields={"store": location, "holds": "books" if holds_books else "bytes"},
        )
        self._checking: asyncio.Task[None] | None = None
        self._is_stopped = False

    @property
    def lasts(self) -> bool:
        """Whether an outage has begun and not ended."""
        return self._condition.lasts

    def occurs(self, reason: str) -> None:
        """A call has failed."""
        if self._is_stopped:
            return
        self._condition.occurs(reason, reason=reason)
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check_until_over(), name="redis-outage")

    def ends(self) -> None:
        """The server can be used, or nothing uses it any more."""
        self._condition.ends()

    def stop(self) -> None:
        """Ends the attempts. Calls that fail from now on are not logged."""
        self._is_stopped = True
        if self._checking is not None:
            self._checking.cancel()

    async def _check_until_over(self) -> None:
        while self._condition.lasts:
            await asyncio.sleep(CHECK_SECONDS)
            if await self._is_available():
                self._condition.ends_if_quiet(QUIET_SECONDS)

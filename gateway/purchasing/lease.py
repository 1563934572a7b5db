"""Holds a flight's lease for as long as its purchase runs.

A lease that ended too early would let another worker buy the same images: the store was unavailable
when it had to be renewed, its clock was set forward, or it has lost writes. So the lease is renewed
early, for the whole purchase, and a lease that is lost is acquired again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import structlog

from gateway.cache.flight_events import Flight
from gateway.errors import StoreUnavailable
from gateway.store.batch import Batch
from gateway.store.protocol import Store

RETRY_SECONDS: Final = 1.0
"""The pause before another attempt for a lease that may be lost. A follower waits five seconds."""

CHECK_SECONDS: Final = 3.0
"""How often a lease is renewed at least: a store that lost writes has silently lost it.

A follower waits five seconds once such a store is back, so the leader is first."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """The lengths of a lease, in seconds."""

    reserved: float
    """From the reservation on, and whenever the lease is acquired again."""
    whole: float
    """As long as a purchase may take."""
    check: float
    """How often it is renewed."""


class LeaseKeeper:
    """Keeps the lease of one flight, until `stop` ends that.

    It also stops if a block with it fails, in which its purchase waits for a turn or for upstream.
    """

    def __init__(
        self,
        store: Store,
        flight: Flight,
        times: LeaseTimes,
        *,
        opening: asyncio.Task[float] | None = None,
    ) -> None:
        """`opening` opens the journal of the purchase, if it is not open yet."""
        self._store = store
        self._flight = flight
        self._times = times
        self._opening = opening
        self._is_delivered = False
        self._ends_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts to renew, soon: an outage may begin at any time."""
        loop = asyncio.get_running_loop()
        self._ends_at = loop.time() + self._times.whole
        # Many purchases end before, and then have never had a task for it. Between two renewals a
        # timer takes a kilobyte less than a task that sleeps.
        self._timer = loop.call_later(self._first_pause, self._begin)

    @property
    def _first_pause(self) -> float:
        return min(RETRY_SECONDS, self._times.check / 3)

    def _begin(self) -> None:
        self._timer = None
        # Not one of `OwnedTasks`, because a draining worker need not wait for it.
        self._task = asyncio.create_task(self._keep_on(), name=f"renew lease {self._flight.id}")

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self.stop()

    def note_delivered(self) -> None:
        """From now on the lease is renewed, but not acquired again if lost: storing ends it."""
        self._is_delivered = True

    def stop(self) -> None:
        """Ends the task: the flight has ended."""
        # A cancelled task keeps its error, whose traceback has this keeper: no cycle may be left.
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _keep_on(self) -> None:
        loop = asyncio.get_running_loop()
        left = self._ends_at - loop.time()
        if left <= 0:
            return
        try:
            pause = self._times.check if await self._renew(left) else RETRY_SECONDS
        except StoreUnavailable:
            pause = min(RETRY_SECONDS, self._times.check)
        except Exception:
            log.exception("lease_renewal_failed", flight=self._flight.id)
            pause = self._times.check
        self._task, self._timer = None, loop.call_later(pause, self._begin)

    async def _renew(self, left: float) -> bool:
        """Whether the lease is held for as long as it is needed."""
        # Recovery releases the lease of a dead worker only if there is a journal.
        has_journal = self._opening is None or self._opening.done()
        seconds = max(left, self._times.reserved) if has_journal else self._times.reserved
        batch = Batch(self._store)
        renewed = self._flight.renew(batch, seconds=seconds)
        await batch.execute()
        if renewed.value or self._is_delivered:
            return has_journal
        # In two steps, and briefly at first: a call that timed out may still run once the flight
        # has ended, and would take the lease for nothing.
        lease = self._flight.acquire(batch, seconds=self._times.reserved)
        await batch.execute()
        return not lease.value.acquired and not lease.value.leased

"""Purchases wait for their turn at an account that has a rate of its own.

The queue is in the store, over all gateways (`store.commands.TakeTurns`). A worker asks for all of
its waiting purchases of an account at once: at most `1 / MIN_PAUSE_SECONDS` calls a second, however
many of them wait, and at least one a second. See `docs/reference/queue.md`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

import structlog

from gateway.errors import ErrorCode, GatewayError, StoreUnavailable, detach
from gateway.images import Principal
from gateway.purchasing.account_rates import LocalRate, ReportedRate, read_reported_rate
from gateway.store.batch import execute
from gateway.store.commands import (
    CorrectAccount,
    Place,
    ReadTurns,
    TakeTurns,
    Turn,
)
from gateway.store.protocol import Store

MIN_PAUSE_SECONDS: Final = 0.05
"""Between two calls to the store for one account."""

BLOCKED_SECONDS: Final = 0.1
"""The pause while nothing tells when the next turn comes: a purchase has to end, or another worker
to take its turn."""

MAX_PAUSE_SECONDS: Final = 1.0

OUTAGE_SECONDS: Final = 2.0
"""How long purchases wait for a store that is unavailable."""

SHOWN_PLACES_SECONDS: Final = 5.0
"""How old the position of a stream's purchase becomes, unless more than 250 streams wait."""

MAX_PLACES: Final = 10
"""Positions that one call reads: each may be counted among the purchases of 50 keys."""

MAX_SHOWN: Final = 50
"""Positions of streams that are read in a second."""

MAX_LATE: Final = 100
"""Waits that have lasted for too long and end between two calls for turns."""

CORRECTION_SECONDS: Final = 1.0
"""Between two corrections of an account's bucket by one worker."""

log = structlog.get_logger(__name__)


class Rate(NamedTuple):
    """What an account takes, of all gateways together; None: any number."""

    images_per_minute: int | None = None
    concurrent: int | None = None


class QueueObserver(Protocol):
    """Records how purchases wait for one account; the metrics implement it."""

    def waits(self, more: int) -> None:
        """A purchase begins (1) or stops (−1) to wait."""

    def waited(self, seconds: float) -> None:
        """How long a purchase has waited for its turn."""


@dataclass(slots=True)
class QueueWait:
    """How a request's purchases wait, for the header `x-gateway-queue` of its answer."""

    position: int = 0
    """In the queue; 0 while none waits."""
    wait_seconds: float = 0.0
    """The estimate."""
    waited_seconds: float = 0.0

    def use(self, turn: Turn) -> None:
        """Notes the place of a purchase that waits."""
        self.position, self.wait_seconds = turn.position, turn.wait_seconds

    @property
    def text(self) -> str | None:
        """The header's value; None without a wait."""
        return self.place or self.waited

    @property
    def place(self) -> str | None:
        """`position=7, wait=80s` of a purchase that waits."""
        if not self.position:
            return None
        return f"position={self.position}, wait={math.ceil(self.wait_seconds)}s"

    @property
    def waited(self) -> str | None:
        """`waited=12.4s` of one that has waited."""
        return f"waited={self.waited_seconds:.1f}s" if self.waited_seconds else None


@dataclass(slots=True)
class _QueuedPurchase:
    """A purchase that waits."""

    purchase: str
    waiting: QueueWait
    until: float
    """When it gives up, by the queue's clock."""
    shown_at: float | None
    """When the position that a stream shows was read; None: it is not shown."""
    ended: asyncio.Future[GatewayError | None]
    """None: its turn has come."""

    def end(self, error: GatewayError | None = None) -> None:
        if not self.ended.done():
            self.ended.set_result(error)


@dataclass(slots=True)
class _Account:
    """An account, and the purchases of this worker that wait for it."""

    name: str
    rate: Rate
    local: LocalRate
    """While the store is unavailable."""
    purchases: dict[str, _QueuedPurchase] = field(default_factory=dict)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    reported: ReportedRate | None = None
    """By upstream, since the last correction."""
    correcting: asyncio.Task[None] | None = None


class AccountQueue:
    """The queues of all accounts, as one worker sees them.

    `workers` is the number of this gateway's: while the store is unavailable, each takes its share
    of an account's rate. `is_wanted` tells whether a client still waits for a purchase.
    """

    def __init__(
        self,
        store: Store,
        rates: Mapping[str, Rate],
        *,
        worker: str,
        workers: int = 1,
        max_wait_seconds: float,
        observers: Mapping[str, QueueObserver] = MappingProxyType({}),
        is_wanted: Callable[[str], bool] = lambda purchase: True,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._worker = worker
        self._max_wait_seconds = max_wait_seconds
        self._observers = observers
        self._is_wanted = is_wanted
        self._clock = clock
        self._sleep = sleep
        self._is_draining = False
        self._accounts = {
            name: _Account(name, rate, LocalRate(*rate, share=workers, clock=clock, sleep=sleep))
            for name, rate in rates.items()
            if rate != Rate()
        }

    def place(self, account: str, principal: Principal, *, images: int) -> Place | None:
        """What a purchase needs of an account; None if nothing waits for it."""
        known = self._accounts.get(account)
        if known is None:
            return None
        return Place(
            account,
            principal.key_id,
            images,
            principal.priority,
            *known.rate,
            max_wait=0.0 if self._is_draining else self._max_wait_seconds,
        )

    # ── waiting ─────────────────────────────────────────────────────────────────────────────

    async def wait(
        self,
        purchase: str,
        account_name: str,
        turn: Turn,
        waiting: QueueWait,
        *,
        is_stream: bool = False,
    ) -> None:
        """Returns when it is the turn of a reserved purchase.

        Raises `GatewayError` if it has to be released at 0: it has waited for `max_wait`, no
        client waits for it any more, or this worker drains. Raises `StoreUnavailable` after an
        outage.
        """
        if turn.state == "taken":
            return
        if turn.state == "refused":
            raise self.refusal(turn, waiting)
        if self._is_draining:
            raise _drained()
        waiting.use(turn)
        account, started = self._accounts[account_name], self._clock()
        queued = _QueuedPurchase(
            purchase,
            waiting,
            started + self._max_wait_seconds,
            started if is_stream else None,
            asyncio.get_running_loop().create_future(),
        )
        account.purchases[purchase] = queued
        account.woken.set()
        if account.task is None:
            account.task = asyncio.create_task(
                self._take_turns(account), name=f"queue of {account.name}"
            )
        observer = self._observers.get(account.name)
        if observer is not None:
            observer.waits(1)
        log.info("purchase_queued", purchase=purchase, upstream=account.name, **_shown(turn))
        try:
            error = await queued.ended
        finally:
            account.purchases.pop(purchase, None)
            if observer is not None:
                observer.waits(-1)
            waiting.waited_seconds += self._clock() - started
        if error is not None:
            if error.status != 429:  # a refusal shows the place
                waiting.position = 0
            log.info("purchase_left_queue", purchase=purchase, reason=error.code)
            raise error
        waiting.position = 0
        if observer is not None:
            observer.waited(waiting.waited_seconds)

    def refusal(self, turn: Turn, waiting: QueueWait) -> GatewayError:
        """The error of a purchase that would have to wait for too long, or has done so."""
        if self._is_draining:
            return _drained()
        waiting.use(turn)
        seconds = max(1, math.ceil(turn.wait_seconds))
        return GatewayError(
            f"The gateway's account at upstream makes a limited number of images a minute, and "
            f"{turn.position - 1 if turn.position else 'too many'} purchases wait before this one. "
            f"Nothing was bought. Please try again in {seconds}s.",
            status=429,
            type="images",
            code=ErrorCode.RATE_LIMIT_EXCEEDED,
            headers={"Retry-After": str(seconds), "retry-after-ms": str(seconds * 1000)},
        )

    def drain(self) -> None:
        """Hands all waiting purchases back: this worker ends."""
        self._is_draining = True
        for account in self._accounts.values():
            for queued in account.purchases.values():
                queued.end(_drained())

    async def close(self) -> None:
        """Ends the tasks of the queues."""
        tasks = [
            task
            for account in self._accounts.values()
            for task in (account.task, account.correcting)
            if task is not None
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _take_turns(self, account: _Account) -> None:
        """Asks for turns for as long as purchases wait."""
        try:
            seen: tuple[str, ...] = ()
            available_at = places_at = self._clock()
            while account.purchases:
                pause = BLOCKED_SECONDS
                try:
                    turns = await execute(
                        self._store,
                        TakeTurns(account.name, self._worker, *account.rate, seen=seen),
                    )
                    seen, available_at = turns.taken, self._clock()
                    for purchase in seen:
                        if purchase in account.purchases:
                            account.purchases[purchase].end()
                    if turns.has_more:
                        continue
                    pause = turns.next_in or BLOCKED_SECONDS
                    if self._clock() - places_at >= MAX_PAUSE_SECONDS:
                        places_at = self._clock()
                        await self._read_places(account)
                    await self._end_waits(account)
                except StoreUnavailable as outage:
                    if self._clock() - available_at >= OUTAGE_SECONDS:
                        for queued in account.purchases.values():
                            queued.end(detach(outage))
                except Exception:
                    log.exception("queue_failed", upstream=account.name)
                    pause = MAX_PAUSE_SECONDS
                await self._pause(account, pause)
        finally:
            account.task = None

    async def _pause(self, account: _Account, seconds: float) -> None:
        """Waits until the next call: also a purchase that joins may be the next one."""
        await self._sleep(MIN_PAUSE_SECONDS)
        account.woken.clear()
        rest = min(seconds, MAX_PAUSE_SECONDS) - MIN_PAUSE_SECONDS
        if rest > 0 and account.purchases:
            tasks = {
                asyncio.ensure_future(self._sleep(rest)),
                asyncio.ensure_future(account.woken.wait()),
            }
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()

    async def _end_waits(self, account: _Account) -> None:
        """Ends the waits that have lasted for too long, and those that no client needs."""
        now = self._clock()
        waiting = [one for one in account.purchases.values() if not one.ended.done()]
        for queued in waiting:
            if not self._is_wanted(queued.purchase):
                queued.end(_unwanted())
        late = [one for one in waiting if one.until <= now and not one.ended.done()][:MAX_LATE]
        for i in range(0, len(late), MAX_PLACES):
            some = late[i : i + MAX_PLACES]
            for queued, turn in zip(some, await self._places(account, some), strict=True):
                # Its turn may have come since the last call.
                error = None if turn.state == "taken" else self.refusal(turn, queued.waiting)
                queued.end(error)

    async def _read_places(self, account: _Account) -> None:
        """Reads where the purchases are whose streams show it, the oldest positions first."""
        now = self._clock()
        due = [
            (one.shown_at, one)
            for one in account.purchases.values()
            if one.shown_at is not None
            and now - one.shown_at >= SHOWN_PLACES_SECONDS
            and not one.ended.done()
        ]
        shown = [one for _, one in sorted(due, key=lambda each: each[0])[:MAX_SHOWN]]
        for i in range(0, len(shown), MAX_PLACES):
            some = shown[i : i + MAX_PLACES]
            for queued, turn in zip(some, await self._places(account, some), strict=True):
                queued.shown_at = now
                if turn.state == "queued":
                    queued.waiting.use(turn)

    async def _places(self, account: _Account, purchases: list[_QueuedPurchase]) -> list[Turn]:
        ids = tuple(queued.purchase for queued in purchases)
        command = ReadTurns(account.name, *account.rate, purchases=ids)
        turns: Sequence[Turn] = await execute(self._store, command)
        return list(turns)

    # ── what else an account's rate depends on ──────────────────────────────────────────────

    @asynccontextmanager
    async def without_store(
        self, account: str, waiting: QueueWait, *, images: int
    ) -> AsyncIterator[None]:
        """A turn while the store is unavailable: this worker goes by its own share of the rate.

        Raises `GatewayError` if it would have to wait for longer than `max_wait`.
        """
        known = self._accounts.get(account)
        if known is None:
            yield
            return
        started = self._clock()
        wait = known.local.take(images, max_wait_seconds=self._max_wait_seconds)
        if wait is None or self._is_draining:
            raise self.refusal(Turn("refused", 0, known.local.wait_seconds(images)), waiting)
        async with known.local.waiting(wait):
            if (waited := self._clock() - started) > MIN_PAUSE_SECONDS:
                waiting.waited_seconds += waited
            yield

    def note(self, account: str, status: int, headers: Mapping[str, str]) -> None:
        """Corrects an account's bucket by the headers of a response of upstream."""
        known = self._accounts.get(account)
        if known is None or (reported := read_reported_rate(status, headers)) is None:
            return
        known.reported = reported if known.reported is None else known.reported.and_then(reported)
        if known.correcting is None:
            known.correcting = asyncio.create_task(
                self._correct(known), name=f"correct rate of {account}"
            )

    async def _correct(self, account: _Account) -> None:
        try:
            while (reported := account.reported) is not None:
                account.reported = None
                with suppress(StoreUnavailable):  # the next response reports it again
                    correction = CorrectAccount(
                        account.name,
                        account.rate.images_per_minute,
                        reported.remaining,
                        reported.stop_seconds,
                    )
                    await execute(self._store, correction)
                if reported.stop_seconds:
                    log.warning(
                        "account_stopped", upstream=account.name, seconds=reported.stop_seconds
                    )
                await self._sleep(CORRECTION_SECONDS)
        finally:
            account.correcting = None


class LocalTurn:
    """The turn of a purchase while the store is unavailable, at one account after the other."""

    def __init__(self, queue: AccountQueue, waiting: QueueWait, *, images: int) -> None:
        self._queue = queue
        self._waiting = waiting
        self._images = images
        self._held = AsyncExitStack()
        self._account: str | None = None

    async def take(self, account: str) -> None:
        """Leaves the account before. Raises as `AccountQueue.without_store`."""
        if account == self._account:
            return
        # First, or two purchases that go on to each other's account would wait for each other.
        await self.aclose()
        turn = self._queue.without_store(account, self._waiting, images=self._images)
        await self._held.enter_async_context(turn)
        self._account = account

    async def aclose(self) -> None:
        """Lets the next purchase have the turn."""
        self._account = None
        await self._held.aclose()


def _drained() -> GatewayError:
    return GatewayError(
        "This worker of the gateway is shutting down, and this request waited for its turn. "
        "Nothing was bought. Retry in 1 second.",
        code=ErrorCode.OVERLOADED,
        headers={"Retry-After": "1"},
    )


def _unwanted() -> GatewayError:
    return GatewayError(
        "The client left while this request waited for its turn, so nothing was bought.",
        code=ErrorCode.REQUEST_TIMEOUT,
    )


def _shown(turn: Turn) -> dict[str, object]:
    return {"position": turn.position, "wait_seconds": round(turn.wait_seconds, 1)}

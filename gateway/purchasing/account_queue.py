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
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

import structlog

from gateway.errors import ErrorCode, GatewayError, StoreUnavailable, detach
from gateway.images import Principal
from gateway.purchasing.account_rates import LocalRate, Said, read_said
from gateway.store.batch import execute
from gateway.store.commands import (
    MAX_STOP_SECONDS,
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
"""How old the position of a stream's purchase may be."""

MAX_PLACES: Final = 100
"""Positions that one call reads."""

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
class Waiting:
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
        """`position=7, wait=80s`, afterwards `waited=12.4s`; None without a wait."""
        return self.place or self.waited

    @property
    def place(self) -> str | None:
        """The first of these."""
        if not self.position:
            return None
        return f"position={self.position}, wait={math.ceil(self.wait_seconds)}s"

    @property
    def waited(self) -> str | None:
        """The second."""
        return f"waited={self.waited_seconds:.1f}s" if self.waited_seconds else None


@dataclass(slots=True)
class _Waiter:
    """A purchase that waits."""

    purchase: str
    waiting: Waiting
    until: float
    """When it gives up, by the queue's clock."""
    is_shown: bool
    """A stream shows its position."""
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
    waiters: dict[str, _Waiter] = field(default_factory=dict)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    said: Said | None = None
    """What upstream has said since the last correction."""
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
        waiting: Waiting,
        *,
        is_stream: bool = False,
    ) -> None:
        """Returns when it is the turn of a reserved purchase.

        Raises `GatewayError` if it has to be released at 0: it has waited for `max_wait`, nobody
        waits for it any more, or this worker drains. Raises `StoreUnavailable` after an outage.
        """
        if turn.state == "taken":
            return
        if turn.state == "refused":
            raise self.refusal(turn, waiting)
        waiting.use(turn)
        account, started = self._accounts[account_name], self._clock()
        waiter = _Waiter(
            purchase,
            waiting,
            started + self._max_wait_seconds,
            is_stream,
            asyncio.get_running_loop().create_future(),
        )
        account.waiters[purchase] = waiter
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
            error = await waiter.ended
        finally:
            account.waiters.pop(purchase, None)
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

    def refusal(self, turn: Turn, waiting: Waiting) -> GatewayError:
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
            for waiter in account.waiters.values():
                waiter.end(_drained())

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
            while account.waiters:
                pause = BLOCKED_SECONDS
                try:
                    turns = await execute(
                        self._store,
                        TakeTurns(account.name, self._worker, *account.rate, seen=seen),
                    )
                    seen, available_at = turns.taken, self._clock()
                    for purchase in seen:
                        if purchase in account.waiters:
                            account.waiters[purchase].end()
                    pause = turns.next_in or BLOCKED_SECONDS
                    if self._clock() - places_at >= SHOWN_PLACES_SECONDS:
                        places_at = self._clock()
                        await self._read_places(account)
                    await self._end_waits(account)
                except StoreUnavailable as outage:
                    if self._clock() - available_at >= OUTAGE_SECONDS:
                        for waiter in account.waiters.values():
                            waiter.end(detach(outage))
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
        if rest > 0 and account.waiters:
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
        waiters = [one for one in account.waiters.values() if not one.ended.done()]
        for waiter in waiters:
            if not self._is_wanted(waiter.purchase):
                waiter.end(_unwanted())
        late = [one for one in waiters if one.until <= now and not one.ended.done()]
        for i in range(0, len(late), MAX_PLACES):
            some = late[i : i + MAX_PLACES]
            for waiter, turn in zip(some, await self._places(account, some), strict=True):
                # Its turn may have come since the last call.
                error = None if turn.state == "taken" else self.refusal(turn, waiter.waiting)
                waiter.end(error)

    async def _read_places(self, account: _Account) -> None:
        """Reads where the purchases are whose streams show it."""
        shown = [one for one in account.waiters.values() if one.is_shown and not one.ended.done()]
        for i in range(0, len(shown), MAX_PLACES):
            some = shown[i : i + MAX_PLACES]
            for waiter, turn in zip(some, await self._places(account, some), strict=True):
                if turn.state == "queued":
                    waiter.waiting.use(turn)

    async def _places(self, account: _Account, waiters: list[_Waiter]) -> list[Turn]:
        purchases = tuple(waiter.purchase for waiter in waiters)
        command = ReadTurns(account.name, *account.rate, purchases=purchases)
        turns: Sequence[Turn] = await execute(self._store, command)
        return list(turns)

    # ── what else an account's rate depends on ──────────────────────────────────────────────

    @asynccontextmanager
    async def without_store(
        self, account: str, waiting: Waiting, *, images: int
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
        if known is None or (said := read_said(status, headers)) is None:
            return
        known.said = said if known.said is None else known.said.and_then(said)
        if known.correcting is None:
            known.correcting = asyncio.create_task(
                self._correct(known), name=f"correct rate of {account}"
            )

    async def _correct(self, account: _Account) -> None:
        try:
            while (said := account.said) is not None:
                account.said = None
                with suppress(StoreUnavailable):  # the next response says it again
                    stop_seconds = min(said.stop_seconds, MAX_STOP_SECONDS)
                    rate = account.rate.images_per_minute
                    correction = CorrectAccount(account.name, rate, said.remaining, stop_seconds)
                    await execute(self._store, correction)
                if said.stop_seconds:
                    log.warning("account_stopped", upstream=account.name, seconds=said.stop_seconds)
                await self._sleep(CORRECTION_SECONDS)
        finally:
            account.correcting = None


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

"""How purchases from upstream end: the log event of a failed one, and the last failures, shared.

Every worker of every gateway adds to one record for each upstream in the store, at most once a
second, so an operator sees the same whichever worker answers. The record is bounded, and has
nothing that names a buyer: see `failure_report`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Protocol

import orjson
import structlog
from pydantic import TypeAdapter

from gateway.errors import ErrorCode, UpstreamFailure
from gateway.failure_report import Reason
from gateway.images import ImageRequest, Record
from gateway.store.batch import execute, execute_kept
from gateway.store.commands import CompareAndSet, Get, ScanRecords, Write
from gateway.store.protocol import Store
from gateway.stored import read_stored

SPACE: Final = "upstreams"
MAX_FAILURES: Final = 10
MAX_OPEN_BREAKERS: Final = 64
WRITE_SECONDS: Final = 1.0
"""The shortest time between two writes of a worker."""
SUCCESS_SECONDS: Final = 10.0
"""How old the time of the last success may be while purchases succeed."""
BREAKER_SECONDS: Final = 30.0
"""How often a worker repeats that its breaker is open. After twice that the entry expires."""
_OWN_CODES: Final = frozenset(ErrorCode)
_ATTEMPTS: Final = 3
"""To write, if other workers write at the same moment. The next second tries again."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FailedPurchase:
    """A failure of upstream, as operators see it."""

    time: float
    """Unix seconds."""
    phase: str
    reason: str
    status: int | None = None
    type: str | None = None
    code: str | None = None
    message: str = ""
    upstream_request_id: str | None = None
    request_id: str = ""
    key: str = ""
    model: str = ""

    @property
    def explanation(self) -> str:
        """What happened and where to look."""
        known = Reason.__members__.get(self.reason.upper())
        return known.explanation if known is not None else f"Upstream failed: {self.reason}."

    @property
    def concerns_one_request(self) -> bool:
        known = Reason.__members__.get(self.reason.upper())
        return known is not None and known.concerns_one_request


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """How the purchases from one upstream have ended, in all workers."""

    name: str
    last_success_at: float | None = None
    """Unix seconds."""
    failures_since_success: int = 0
    failures: tuple[FailedPurchase, ...] = ()
    """The last ones, newest first."""
    open_breakers: Mapping[str, float] = field(default_factory=dict)
    """Workers whose breaker is open, with the time at which they last said so."""

    @property
    def last_failure(self) -> FailedPurchase | None:
        return self.failures[0] if self.failures else None

    @property
    def cause(self) -> FailedPurchase | None:
        """The newest failure since the last success that concerns other requests too."""
        since = self.failures[: self.failures_since_success]
        return next((failed for failed in since if not failed.concerns_one_request), None)

    @property
    def is_failing(self) -> bool:
        """Whether purchases fail for a reason that concerns others too."""
        return bool(self.open_breakers) or self.cause is not None

    def encode(self) -> bytes:
        return orjson.dumps(asdict(self))

    @staticmethod
    def decode(data: bytes) -> UpstreamState:
        """The inverse of `encode`; unknown fields are ignored. Raises `ValueError`."""
        state = _STATE.validate_json(data)
        return replace(state, failures=state.failures[:MAX_FAILURES])

    def public(self) -> dict[str, Any]:
        """As the admin API shows it."""
        return {
            "name": self.name,
            "failing": self.is_failing,
            "breaker": "open" if self.open_breakers else "closed",
            "open_breakers": len(self.open_breakers),
            "last_success_at": self.last_success_at,
            "failures_since_success": self.failures_since_success,
            "last_failure": asdict(self.last_failure) if self.last_failure else None,
            "failures": [asdict(failure) for failure in self.failures],
        }


_STATE: Final = TypeAdapter(UpstreamState)


def _latest(failures: list[FailedPurchase]) -> list[FailedPurchase]:
    """The newest of `failures`, which are sorted so.

    Refusals of single requests do not push out the newest failure that concerns others too.
    """
    kept, older = failures[:MAX_FAILURES], failures[MAX_FAILURES:]
    if all(failed.concerns_one_request for failed in kept):
        cause = next((failed for failed in older if not failed.concerns_one_request), None)
        kept[-1:] = [cause] if cause is not None else kept[-1:]
    return kept


@dataclass(slots=True)
class _Pending:
    """What a worker has not written yet."""

    succeeded_at: float | None = None
    failures: list[FailedPurchase] = field(default_factory=list)
    """Newest first."""
    since_success: int = 0

    def added_to(self, state: UpstreamState) -> UpstreamState:
        failures = sorted((*self.failures, *state.failures), key=lambda f: f.time, reverse=True)
        # A success of this worker ends the failures of others, unless these are newer.
        newest = state.last_failure
        is_reset = self.succeeded_at is not None and (
            newest is None or newest.time <= self.succeeded_at
        )
        successes = [at for at in (state.last_success_at, self.succeeded_at) if at is not None]
        return replace(
            state,
            last_success_at=max(successes, default=None),
            failures_since_success=(0 if is_reset else state.failures_since_success)
            + self.since_success,
            failures=tuple(_latest(failures)),
        )

    def before(self, later: _Pending) -> _Pending:
        """This and what came after it."""
        return _Pending(
            succeeded_at=later.succeeded_at or self.succeeded_at,
            failures=_latest([*later.failures, *self.failures]),
            since_success=later.since_success
            + (0 if later.succeeded_at is not None else self.since_success),
        )


class Observer(Protocol):
    """Shows how purchases go, as the metrics do."""

    def judged(self, *, is_failing: bool, last_success_at: float | None) -> None:
        """Gets the state of upstream over all workers, as this worker knows it."""


class UpstreamHealth:
    """Logs and remembers how the purchases of this worker end."""

    def __init__(
        self,
        store: Store,
        *,
        name: str,
        worker: str,
        is_breaker_open: Callable[[], bool],
        observer: Observer,
        clock: Callable[[], float] = time.time,
        changed: asyncio.Event | None = None,
    ) -> None:
        self._store = store
        self._name = name
        self._worker = worker
        self._is_breaker_open = is_breaker_open
        self._observer = observer
        self._clock = clock
        self._pending = _Pending()
        self._writing = _Pending()
        self._seen = UpstreamState(name)
        self._written_at = -WRITE_SECONDS
        self._lock = asyncio.Lock()
        self.changed = changed or asyncio.Event()
        """Set to have a failure written at once, if the last write is a second ago."""

    def failed(
        self,
        failure: UpstreamFailure,
        request: ImageRequest,
        record: Record,
        *,
        failover: bool = False,
    ) -> None:
        """A purchase failed. Writes the one log event of this account that says why.

        With `failover` another account is asked.
        """
        report = failure.report.without_buyer(names=request.user_names, prompt=request.prompt)
        failed = FailedPurchase(
            time=self._clock(),
            phase=report.phase,
            reason=report.reason.value,
            status=report.status,
            type=report.type,
            code=report.code,
            message=report.message,
            upstream_request_id=failure.upstream_request_id,
            request_id=record.request_id,
            key=record.key,
            model=request.model,
        )
        is_refusal = report.reason in (Reason.CONTENT_REFUSED, Reason.TAKEN_DOWN)
        write = log.info if is_refusal else log.warning
        shown = asdict(failed)
        del shown["time"]
        write(
            "upstream_failed",
            upstream=self._name,
            **shown,
            purchase=record.id,
            answered_status=failure.status,
            # A code of upstream's own may name the buyer.
            answered_code=failure.code if failure.code in _OWN_CODES else failed.code,
            charge=failure.charge.value,
            **({"failover": True} if failover else {}),
            **request.trace.fields,
        )
        if is_refusal:  # upstream does its work
            self.succeeded()
            return
        # Nothing was sent; what opened the breaker is known.
        if report.reason in (Reason.BREAKER_OPEN, Reason.NO_ACCOUNT):
            return
        self._pending.failures = _latest([failed, *self._pending.failures])
        self._pending.since_success += 1
        if time.monotonic() - self._written_at >= WRITE_SECONDS:
            self.changed.set()

    def succeeded(self) -> None:
        """Upstream did what it was asked."""
        self._pending.succeeded_at = self._clock()
        self._pending.since_success = 0

    def current(self) -> UpstreamState:
        """The state as this worker knows it, without asking the store."""
        return self.with_own(self._seen)

    async def refresh(self) -> None:
        """Writes what is new, at most once a second; else reads. Raises `StoreUnavailable`."""
        try:
            async with self._lock:
                if self._must_write() and time.monotonic() - self._written_at >= WRITE_SECONDS:
                    await self._write_pending()
                else:
                    await self._read()
        finally:  # without the store, as far as this worker knows it
            state = self.current()
            self._observer.judged(
                is_failing=state.is_failing, last_success_at=state.last_success_at
            )

    @property
    def writing(self) -> asyncio.Lock:
        """Held while it writes to the store, or reads from it."""
        return self._lock

    def with_own(self, state: UpstreamState) -> UpstreamState:
        """A state that was read, with what is new here."""
        state = self._pending.added_to(self._writing.added_to(state))
        breakers = {name: at for name, at in state.open_breakers.items() if name != self._worker}
        if self._is_breaker_open():
            breakers[self._worker] = self._clock()
        return replace(state, open_breakers=breakers)

    def _must_write(self) -> bool:
        now, pending = self._clock(), self._pending
        said_at = self._seen.open_breakers.get(self._worker)
        if self._is_breaker_open() != (said_at is not None):
            return True
        if pending.failures or (said_at is not None and now - said_at >= BREAKER_SECONDS):
            return True
        if pending.succeeded_at is None:
            return False
        last = self._seen.last_success_at
        is_old = last is None or abs(pending.succeeded_at - last) >= SUCCESS_SECONDS
        return is_old or self._seen.failures_since_success > 0

    async def _write_pending(self) -> None:
        self._written_at = time.monotonic()
        self._writing, self._pending = self._pending, _Pending()
        is_written = False
        try:
            for _ in range(_ATTEMPTS):
                found = await self._read()
                now = self._clock()
                state = self.with_own(self._seen)
                newest = sorted(state.open_breakers.items(), key=lambda item: -item[1])
                state = replace(state, open_breakers=dict(newest[:MAX_OPEN_BREAKERS]))
                if self._pending.failures or self._pending.succeeded_at is not None:
                    # Came meanwhile: written now, or it would count twice.
                    self._writing = self._writing.before(self._pending)
                    self._pending = _Pending()
                change = Write(SPACE, self._name, state.encode(), expected=found)
                if await execute(self._store, CompareAndSet((change,))) is None:
                    self._seen, is_written = _without_expired(state, now), True
                    return
        finally:
            written, self._writing = self._writing, _Pending()
            if not is_written:
                self._pending = written.before(self._pending)

    async def _read(self) -> bytes | None:
        found = await execute_kept(self._store, Get(SPACE, self._name))
        state = found and read_stored("upstream", found, UpstreamState.decode, name=self._name)
        self._seen = _without_expired(state or UpstreamState(self._name), self._clock())
        return found


class AccountsHealth:
    """How the purchases of this worker end at each account."""

    def __init__(
        self, store: Store, accounts: Mapping[str, UpstreamHealth], *, changed: asyncio.Event
    ) -> None:
        self._store = store
        self.accounts = accounts
        self.changed = changed
        """Set to have a failure written at once, if the last write is a second ago."""

    def current(self) -> Sequence[UpstreamState]:
        """The states as this worker knows them, in the order of the accounts."""
        return [health.current() for health in self.accounts.values()]

    async def refresh(self) -> None:
        """Writes what is new of each account, or reads. Raises `StoreUnavailable`."""
        self.changed.clear()
        for health in self.accounts.values():
            await health.refresh()

    async def read_all(self) -> Sequence[UpstreamState]:
        """The states of all accounts, by name, with what is new here.

        Also of those that other gateways on the store have or had. Raises `StoreUnavailable`.
        """
        # A write that ends during the read would be neither in what was read nor still pending.
        async with AsyncExitStack() as held:
            for health in self.accounts.values():
                await held.enter_async_context(health.writing)
            found = await read_states(self._store, time.time())
        states = {state.name: state for state in found}
        for name, health in self.accounts.items():
            states[name] = health.with_own(states.get(name, UpstreamState(name)))
        return [states[name] for name in sorted(states)]


async def read_states(store: Store, now: float) -> Sequence[UpstreamState]:
    """The states of all upstreams that gateways on this store have had, by name."""
    states, after = [], ""
    while True:
        page = await execute(store, ScanRecords(SPACE, after))
        for name, data in page.records.items():
            state = read_stored("upstream", data, UpstreamState.decode, name=name)
            if state is not None:
                states.append(_without_expired(state, now))
        if page.after is None:
            return sorted(states, key=lambda state: state.name)
        after = page.after


def _without_expired(state: UpstreamState, now: float) -> UpstreamState:
    """The state without the breakers of workers that no longer repeat that theirs is open."""
    current = {
        name: at for name, at in state.open_breakers.items() if now - at < 2 * BREAKER_SECONDS
    }
    return replace(state, open_breakers=current)

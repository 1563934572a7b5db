"""The attempts of one purchase: each account once, without a pause, then the retries.

While it is certain that nothing was charged, the next account is asked. When all of them were
asked, at most `MAX_RETRIES` retries follow, with pauses, at those that may be asked again. One
deadline holds for all. See `docs/reference/upstreams.md#failover`, and
`docs/reference/billing.md#retries-and-the-circuit-breaker`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from gateway.errors import UpstreamFailure, detach
from gateway.frozen import frozen
from gateway.images import ImageRequest, PartialImage, UpstreamAnswer
from gateway.upstream import failures
from gateway.upstream.breaker import Permit
from gateway.upstream.observer import Observer, Pace
from gateway.upstream.outcomes import Answered, Failed, Outcome, PreparedRequest, Reply
from gateway.upstream.session import ClientSettings, SendState

MAX_RETRIES: Final = 2
RETRY_WINDOW_SECONDS: Final = 30.0
"""After the first attempt has started. Later than this no retry starts."""

_FIRST_BACKOFF_SECONDS: Final = 0.5
_JITTER: Final = 0.25


class StreamHandlers(NamedTuple):
    """What a stream calls. Both count towards the deadline, and must not raise."""

    on_partial: Callable[[PartialImage], Awaitable[None]]
    """For each partial image. Reading continues when it returns."""
    on_open: Callable[[], Awaitable[None]]
    """Once, when upstream's 200 has arrived. After that no other attempt is made."""


class Client(Protocol):
    """The client of an account, as far as attempts need it."""

    @property
    def settings(self) -> ClientSettings: ...
    @property
    def pace(self) -> Pace: ...
    @property
    def observer(self) -> Observer: ...
    def prepare(
        self, request: ImageRequest, *, images: int, upstream_model: str = ""
    ) -> PreparedRequest: ...
    def prepare_stream(
        self,
        request: ImageRequest,
        handlers: StreamHandlers,
        *,
        started: float,
        upstream_model: str = "",
    ) -> PreparedRequest: ...
    def acquire(self) -> Permit | UpstreamFailure: ...
    def report(
        self, permit: Permit, outcome: Outcome | None, *, is_counted: bool = False
    ) -> None: ...
    async def attempt(
        self, prepared: PreparedRequest, state: SendState, *, resends: int
    ) -> Outcome: ...
    async def parse_reply(self, reply: Reply, *, images: int) -> Answered | Failed: ...
    def timed_out(self, state: SendState) -> Failed: ...
    def relayed(self, answer: UpstreamAnswer) -> UpstreamAnswer: ...
    def relayed_failure(
        self, failure: UpstreamFailure, prepared: PreparedRequest
    ) -> UpstreamFailure: ...


class Rerouting(Protocol):
    """Moves a purchase from one account to the next."""

    @property
    def waited_seconds(self) -> float:
        """How long the purchase has waited before, which counts towards the deadline."""

    async def prepare_attempt(self, account: str) -> UpstreamFailure | None:
        """Called before each attempt. A failure: this account is passed over because of it."""

    def note_failure(self, account: str, failure: UpstreamFailure, *, is_final: bool) -> None:
        """An account did not take the purchase. Unless `is_final`, others are or were asked.

        May be called more than once for an account.
        """


class SingleAccount:
    """The rerouting of a purchase at the one account that there is: none."""

    waited_seconds = 0.0

    async def prepare_attempt(self, account: str) -> UpstreamFailure | None:
        """Never passes over it."""
        return None

    def note_failure(self, account: str, failure: UpstreamFailure, *, is_final: bool) -> None:
        """Nothing: the purchase raises the failure."""


@frozen
class Candidate:
    """An account that a purchase may ask."""

    client: Client
    name: str = ""
    upstream_model: str = ""
    """The model's name there; empty: ours."""
    streams: bool = True
    on_refused: Callable[[], None] = lambda: None
    """Called if the account cannot sell the model for now."""


@dataclass(slots=True)
class _Tried:
    """A candidate, and the outcome of its last attempt."""

    candidate: Candidate
    prepared: PreparedRequest | None = None
    permit: Permit | None = None
    outcome: Failed | None = None
    number: int = 0
    """The number of the last attempt, among those at all accounts."""
    attempts: int = 0
    failed_at: float = 0.0
    is_counted: bool = False
    """The breaker has counted the failure."""

    @property
    def client(self) -> Client:
        return self.candidate.client


class Attempts:
    """Buys images at the first candidate that takes the purchase."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        request: ImageRequest,
        *,
        images: int,
        stream: StreamHandlers | None = None,
        rerouting: Rerouting | None = None,
    ) -> None:
        self._asked = [_Tried(candidate) for candidate in candidates]
        self._request = request
        self._images = images
        self._stream = stream
        self._rerouting = rerouting or SingleAccount()
        self._pace = candidates[0].client.pace
        self._seconds = max(one.client.settings.timeout_seconds for one in self._asked)
        self._seconds -= self._rerouting.waited_seconds
        self._started = self._pace.clock()
        self._current = self._asked[0]
        self._state = SendState()
        self._attempts = 0
        self._rejected: UpstreamFailure | None = None
        """The failure of an account that was not asked, because of its breaker or its queue."""
        self._unmade: UpstreamFailure | None = None
        """The failure of an account that cannot make what is asked for."""

    async def run(self) -> UpstreamAnswer:
        """The answer; the bytes of its images are not checked.

        Raises `UpstreamFailure` if no image came, with the presumed `charge` and the name of the
        account. The deadline applies until the last byte has arrived; decoding has none.
        """
        outcome: Outcome | None = None
        try:
            outcome = await self._try_before_deadline()
            current = self._current
            if isinstance(outcome, Reply):
                most = self._request.max_images(self._images)
                outcome = await current.client.parse_reply(outcome, images=most)
        finally:
            self._report_all(outcome)
        if outcome is None:
            self._note_other_failures()
            raise self._failure_of_none()
        if isinstance(outcome, Failed):
            self._note_other_failures(but=self._current)
            failure = self._relayed(self._current, outcome)
            self._rerouting.note_failure(self._current.candidate.name, failure, is_final=True)
            raise failure
        return current.client.relayed(outcome.answer)

    def _relayed(self, asked: _Tried, failed: Failed) -> UpstreamFailure:
        failure = failed.failure
        if asked.prepared is not None:
            failure = asked.client.relayed_failure(failure, asked.prepared)
        failure.upstream = asked.candidate.name or None
        return failure

    def _failure_of_none(self) -> UpstreamFailure:
        """The failure if each candidate was passed over, or cannot sell the model for now."""
        failure = self._rejected or self._unmade or failures.all_passed_over()
        failure.upstream = failure.upstream or self._current.candidate.name or None
        self._rerouting.note_failure(failure.upstream or "", failure, is_final=True)
        return failure

    # ── the order of attempts ───────────────────────────────────────────────────────────────

    async def _try_before_deadline(self) -> Outcome | None:
        try:
            async with asyncio.timeout(self._seconds):
                return await self._try()
        except TimeoutError:
            return self._current.client.timed_out(self._state)

    async def _try(self) -> Outcome | None:
        """Asks until there is an answer or a failure that ends the purchase."""
        waits: list[float] = []
        try:
            return await self._ask_in_turn(waits)
        finally:
            waited = self._rerouting.waited_seconds + sum(waits)
            self._current.client.observer.waited(waited)

    async def _ask_in_turn(self, waits: list[float]) -> Outcome | None:
        """Asks each account once, then again those that may be; `waits` gets the pauses."""
        for number, asked in enumerate(self._asked):
            outcome = await self._ask(asked)
            if outcome is not None and not self._goes_on(outcome):
                return outcome
            if isinstance(outcome, Failed) and number + 1 < len(self._asked):
                self._leave(asked, outcome)
        retries = 0
        while retries < MAX_RETRIES and (found := self._next_retry(retries)) is not None:
            asked, wait = found
            retries += 1
            asked.client.observer.retried()
            await self._wait(asked, wait)
            waits.append(wait)
            outcome = await self._ask(asked)
            if outcome is not None and not self._goes_on(outcome):
                return outcome
        return self._best_failure()

    def _goes_on(self, outcome: Outcome) -> bool:
        return isinstance(outcome, Failed) and outcome.is_certainly_free

    def _next_retry(self, retries: int) -> tuple[_Tried, float] | None:
        """The account that may be asked again first, and the wait until then."""
        now = self._pace.clock()
        found: tuple[_Tried, float] | None = None
        for asked in self._asked:
            if asked.outcome is None or not asked.outcome.is_retryable:
                continue
            requested = failures.requested_wait_seconds(asked.outcome.failure)
            if requested is None:
                jitter = 1 - _JITTER * self._pace.random()
                wait = _FIRST_BACKOFF_SECONDS * 2**retries * jitter
            else:
                wait = max(0.0, requested - (now - asked.failed_at))
            if now - self._started + wait > RETRY_WINDOW_SECONDS:
                continue
            if found is None or (wait, asked.attempts) < (found[1], found[0].attempts):
                found = asked, wait
        return found

    async def _wait(self, asked: _Tried, seconds: float) -> None:
        asked.client.observer.waits(1)
        try:
            await self._pace.sleep(seconds)
        finally:
            asked.client.observer.waits(-1)

    def _best_failure(self) -> Failed | None:
        """The failure that ends the purchase: rather one that a later request may not meet.

        None: that is the failure of an account that was not asked.
        """
        failed = [asked for asked in self._asked if asked.outcome is not None]
        if not failed:
            return None
        self._current = max(
            failed, key=lambda asked: (not _of_account(asked.outcome), asked.number)
        )
        if self._rejected is not None and _of_account(self._current.outcome):
            return None
        return self._current.outcome

    # ── one account ─────────────────────────────────────────────────────────────────────────

    async def _ask(self, asked: _Tried) -> Outcome | None:
        """The outcome of one attempt; None if the account was passed over."""
        if asked.permit is None:
            permit = asked.client.acquire()
            if isinstance(permit, UpstreamFailure):
                self._note_rejected(asked, permit)
                return None
            asked.permit = permit
        rejected = await self._rerouting.prepare_attempt(asked.candidate.name)
        if rejected is not None:
            self._note_rejected(asked, rejected)
            asked.client.report(asked.permit, None)
            asked.permit = None
            return None
        if asked.prepared is None:
            try:
                asked.prepared = self._prepare(asked)
            except UpstreamFailure as unmade:
                self._unmade = detach(unmade)
                asked.client.report(asked.permit, None)
                asked.permit = None
                return None
        if self._current is not asked and self._attempts:
            self._current.client.observer.failed_over()
        self._current = asked
        outcome = await self._attempt(asked, asked.prepared)
        asked.attempts += 1
        self._attempts += 1
        asked.number, asked.failed_at = self._attempts, self._pace.clock()
        asked.outcome = outcome if isinstance(outcome, Failed) else None
        if asked.outcome is not None and asked.outcome.concerns_account:
            asked.candidate.on_refused()
        return outcome

    def _prepare(self, asked: _Tried) -> PreparedRequest:
        model = asked.candidate.upstream_model
        if self._stream is not None and asked.candidate.streams:
            return asked.client.prepare_stream(
                self._request, self._stream, started=self._started, upstream_model=model
            )
        return asked.client.prepare(self._request, images=self._images, upstream_model=model)

    async def _attempt(self, asked: _Tried, prepared: PreparedRequest) -> Outcome:
        self._state = state = SendState()
        seconds = asked.client.settings.timeout_seconds
        if seconds >= self._seconds:  # the deadline of the purchase comes first
            outcome = await asked.client.attempt(prepared, state, resends=self._attempts)
        else:
            try:
                async with asyncio.timeout(seconds):
                    outcome = await asked.client.attempt(prepared, state, resends=self._attempts)
            except TimeoutError:
                outcome = asked.client.timed_out(state)
        # If the deadline passes before the next attempt, nothing is under way.
        self._state = SendState()
        return outcome

    def _note_rejected(self, asked: _Tried, failure: UpstreamFailure) -> None:
        """Keeps the failure of the account that may be asked first."""
        failure.upstream = asked.candidate.name or None
        known = self._rejected
        if known is None or _retry_after(failure) < _retry_after(known):
            self._rejected = failure

    # ── leaving an account ──────────────────────────────────────────────────────────────────

    def _leave(self, asked: _Tried, outcome: Failed) -> None:
        """Reports a failure now: the next account may take minutes."""
        self._report(asked, outcome)
        self._note_failure_of(asked, outcome)

    def _note_other_failures(self, *, but: _Tried | None = None) -> None:
        for asked in self._asked:
            if asked is not but and asked.outcome is not None:
                self._note_failure_of(asked, asked.outcome)

    def _note_failure_of(self, asked: _Tried, outcome: Failed) -> None:
        self._rerouting.note_failure(
            asked.candidate.name, self._relayed(asked, outcome), is_final=False
        )

    def _report(self, asked: _Tried, outcome: Outcome | None) -> None:
        if asked.permit is None:
            return
        asked.client.report(asked.permit, outcome, is_counted=asked.is_counted)
        asked.is_counted |= isinstance(outcome, Failed) and outcome.is_outage
        asked.permit = None

    def _report_all(self, outcome: Outcome | None) -> None:
        """Reports every account whose outcome is not known to its breaker yet."""
        for asked in self._asked:
            self._report(asked, outcome if asked is self._current else asked.outcome)


def _of_account(outcome: Failed | None) -> bool:
    return outcome is not None and outcome.concerns_account


def _retry_after(failure: UpstreamFailure) -> float:
    return failures.requested_wait_seconds(failure) or 0.0

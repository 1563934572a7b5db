"""The way of one purchase over the accounts at upstream.

The journal names an account before that account is asked: at first by its reservation, and after a
failover by `Reroute`, which moves the reservation to the next account in one step. So a dead
worker's journal names the account that was asked last, and nothing is charged at two accounts.
While the store is unavailable, accounts are asked before there is a journal: `Purchases._open_late`
opens it, and moves it to the account that is asked by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final, Protocol

import structlog

from gateway.billing import pricing, quota
from gateway.billing.pricing import Estimate
from gateway.billing.quota import AccountBudget
from gateway.catalog import Model
from gateway.errors import GatewayError, StoreUnavailable, UpstreamFailure
from gateway.failure_report import Reason
from gateway.images import ImageRequest, Principal, Record
from gateway.purchasing.account_queue import AccountQueue, LocalTurn, QueueWait
from gateway.purchasing.journal import Reserved
from gateway.purchasing.upstream_health import UpstreamHealth
from gateway.store.batch import Batch
from gateway.store.commands import Place, Reservation, Turn
from gateway.store.protocol import Store
from gateway.upstream import failures
from gateway.upstream.accounts import Account

TAKEN: Final = Turn()

log = structlog.get_logger(__name__)


class Candidates(Protocol):
    """Chooses the accounts that a purchase may ask."""

    def candidates(self, model: str, request: ImageRequest, *, images: int) -> Sequence[Account]:
        """In the order of trial: those that can make the request, or all if none can.

        Raises `GatewayError` if there is none in service.
        """

    def can_make(self, account: Account, request: ImageRequest, *, images: int) -> bool:
        """Whether the account's service can be asked for the purchase."""


class Summary(Protocol):
    """What the request's answer shows of its purchase."""

    upstream: str | None
    is_answering: bool
    waiting: QueueWait


@dataclass(slots=True)
class Route:
    """The accounts that a purchase may ask, and its reservation at the one that it asks."""

    accounts: Sequence[Account]
    account: Account
    """The one that the journal names."""
    reserved: Reserved
    """As the journal has it: its record names the account."""
    bound: Estimate
    """What is reserved: the estimate at the largest price factor of `accounts`."""
    store: Store
    worker: str
    principal: Principal
    request: ImageRequest
    model: Model
    summary: Summary
    health: Mapping[str, UpstreamHealth]
    queue: AccountQueue
    reserved_at: float = 0.0
    """The store's time of the reservation, which is the record's; 0 before it is known."""
    is_made: bool = True
    """Its accounts can make it; False: they refuse it unsent, so it takes no turn of theirs."""
    turn: Turn = TAKEN
    """Whether it has to wait for the account that the journal names."""
    local_turn: LocalTurn | None = None
    """Its turn, if the store was unavailable when the purchase began."""
    opening: asyncio.Task[float] | None = None
    """Opens the journal, if the store was unavailable when the purchase began."""
    is_certain: bool = True
    """The journal names that account, and has its turn; False after a reroute without a reply, and
    until `opening` has moved the journal."""
    places: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Position and estimate in the queues of accounts that were passed over."""
    reported: frozenset[str] = frozenset()
    """The accounts whose failure is in the log."""

    def _named(self, name: str) -> Account:
        return next((one for one in self.accounts if one.name == name), self.accounts[0])

    def pass_over(self) -> bool:
        """Goes on to the next account before anything is reserved; False if there is none."""
        if len(self.accounts) == 1:
            return False
        self._narrow_to(self.accounts[1:])
        return True

    async def leave_out_unaffordable(self) -> bool:
        """Leaves out dear accounts over their budgets before anything is reserved.

        Such an account is never asked, so its price need not be reserved. False if the bound
        stays as it is.
        """
        cheapest = min(account.price_factor for account in self.accounts)
        dear = {
            account.name: budget
            for account in self.accounts
            if account.price_factor > cheapest
            and (budget := budget_of(account)) is not None
            and budget.maxima
        }
        if not dear:
            return False
        batch = Batch(self.store)
        states = {name: quota.peek_budget(batch, budget) for name, budget in dear.items()}
        try:
            await batch.execute()
        except StoreUnavailable:
            return False  # the purchase was denied already
        left = [
            account
            for account in self.accounts
            if account.name not in dear
            or not quota.is_over_budget(
                dear[account.name],
                states[account.name].value,
                self._reserved_at(account).estimate,
            )
        ]
        if largest_factor(left) == largest_factor(self.accounts):
            return False
        self._narrow_to(left)
        return True

    def _narrow_to(self, accounts: Sequence[Account]) -> None:
        """The others are not asked any more, so the bound need not hold their prices."""
        images = self.reserved.estimate.images
        _, self.bound = estimates(accounts, self.model, self.request, images)
        self.accounts = accounts
        self.account = accounts[0]
        self.reserved = self._reserved_at(self.account)

    def _reserved_at(self, account: Account) -> Reserved:
        record = named_record(self.reserved.record, account, self.model)
        images = self.reserved.estimate.images
        estimate = pricing.estimate(self.model, self.request, images, account.price_factor)
        return replace(self.reserved, record=record, estimate=estimate.amounts)

    # ── the account's queue ─────────────────────────────────────────────────────────────────

    def place(self, account: Account) -> Place | None:
        """What the purchase needs of an account; None if nothing waits for it."""
        if not self.is_made:
            return None
        images = self.reserved.estimate.images
        return self.queue.place(account.name, self.principal, images=images)

    @property
    def must_wait(self) -> bool:
        """Whether the account that the journal names does not take it at once."""
        return self.turn.state != "taken"

    async def wait_for_turn(self) -> None:
        """Waits for the account that the journal names. Raises as `AccountQueue.wait`."""
        await self.queue.wait(
            self.reserved.purchase,
            self.account.name,
            self.turn,
            self.summary.waiting,
            is_stream=self.request.stream,
        )
        self.turn = TAKEN

    @property
    def waited_seconds(self) -> float:
        """How long it has waited so far, which counts towards the deadline."""
        return self.summary.waiting.waited_seconds

    # ── from one account to the next ────────────────────────────────────────────────────────

    async def prepare_attempt(self, account: str) -> UpstreamFailure | None:
        """Names an account in the journal before it is asked. A failure: it is passed over."""
        chosen = self._named(account)
        try:
            if self.local_turn is not None:
                await self.local_turn.take(account)
            if chosen is not self.account or not self.is_certain:
                await self._reroute(chosen)
        except GatewayError as refused:
            log.info("account_passed_over", upstream=chosen.name, reason=refused.code)
            waiting = self.summary.waiting
            self.places[chosen.name] = waiting.position, waiting.wait_seconds
            waiting.position = 0  # unless this failure ends the purchase
            return failures.passed_over(refused)
        self.summary.upstream = chosen.name
        return None

    def note_failure(self, account: str, failure: UpstreamFailure, *, is_final: bool) -> None:
        """Logs why an account did not take the purchase. The last failure is logged with it."""
        if not is_final:
            self.report(failure, account=account, failover=True)
        elif failure.report.reason is Reason.NO_ACCOUNT:
            waiting = self.summary.waiting
            waiting.position, waiting.wait_seconds = self.places.get(account, (0, 0.0))

    def report(
        self, failure: UpstreamFailure, *, account: str | None = None, failover: bool = False
    ) -> None:
        """Writes the log event of a failed account, once for each."""
        name = account or failure.upstream or self.account.name
        if name in self.reported:
            return
        self.reported |= {name}
        health = self.health.get(name)
        if health is not None:
            health.failed(failure, self.request, self.reserved.record, failover=failover)

    def is_answered(self) -> None:
        """The account has begun to answer."""
        self.summary.is_answering = True

    def succeeded(self) -> None:
        """The account did what it was asked."""
        self.summary.is_answering = True
        health = self.health.get(self.account.name)
        if health is not None:
            health.succeeded()

    def failed_record(self, failure: UpstreamFailure) -> Record:
        """The record of the purchase, of the account whose failure ended it."""
        account = self._named(failure.upstream or self.account.name)
        record = self.reserved.record
        return named_record(record, account, self.model, time=self.reserved_at or record.time)

    async def _reroute(self, account: Account) -> None:
        """Moves the reservation. Raises `GatewayError` if the account cannot be asked."""
        rerouted = self._reserved_at(account)
        if self.opening is not None and not self.opening.done():
            # `opening` moves the journal to it
            self.account, self.reserved, self.is_certain = account, rerouted, False
            return
        principal = self.principal if self.opening is None else self.principal.without_limits()
        batch = Batch(self.store)
        reservation = quota.reroute(
            batch,
            principal,
            self.reserved.purchase,
            worker=self.worker,
            estimate=self.bound.amounts,
            payload=rerouted.encode(),
            account=budget_of(account),
            place=self.place(account) if self.opening is None else None,
        )
        was_certain, self.is_certain = self.is_certain, False
        try:
            await batch.execute()
        except StoreUnavailable:
            # The journal may not name this account, so it is not asked.
            log.warning("reroute_failed", purchase=self.reserved.purchase, upstream=account.name)
            raise
        moved = reservation.value
        if moved.denied is not None or moved.turn.state == "refused" or not moved.reserved_at:
            self.is_certain = was_certain
            raise self._refusal(principal, moved)
        self.account, self.reserved, self.reserved_at = account, rerouted, moved.reserved_at
        self.turn = moved.turn
        await self.wait_for_turn()
        self.is_certain = True

    def _refusal(self, principal: Principal, reservation: Reservation) -> GatewayError:
        """Why the journal was not moved to another account."""
        if reservation.turn.state == "refused":
            return self.queue.refusal(reservation.turn, self.summary.waiting)
        if quota.is_refused_by_account(principal, reservation):
            return failures.over_budget(self.model.id)
        return failures.all_passed_over()  # a limit was lowered, or the journal is closed


def named_record(record: Record, account: Account, model: Model, **changes: Any) -> Record:
    """The record of a purchase at an account, with some other fields changed."""
    theirs = account.name_of(model.id)
    upstream_model = theirs if theirs != model.id else None
    return record.but(upstream=account.name, upstream_model=upstream_model, **changes)


def budget_of(account: Account) -> AccountBudget | None:
    """What counts a purchase at the account; None if it has no windows of its own."""
    return AccountBudget(account.subject, account.budget) if account.is_counted else None


def largest_factor(accounts: Sequence[Account]) -> Decimal:
    """Of the accounts that a purchase may ask: its reservation holds the price there."""
    if len(accounts) == 1:
        return accounts[0].price_factor
    return max(account.price_factor for account in accounts)


def estimates(
    accounts: Sequence[Account], model: Model, request: ImageRequest, images: int
) -> tuple[Estimate, Estimate]:
    """The upper bounds of a purchase: at the first account, and whichever account takes it."""
    factor, largest = accounts[0].price_factor, largest_factor(accounts)
    first = pricing.estimate(model, request, images, factor)
    if largest == factor:
        return first, first
    return first, pricing.estimate(model, request, images, largest)

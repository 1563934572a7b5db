"""The accounts at upstream with their clients: chooses among them for each purchase.

By priority, then by weight among the accounts that may be asked: in service, with a closed circuit
breaker, and not resting. An account rests for a while *for a model* after it has said that it
cannot sell that model. If all accounts rest, they are asked all the same, and say again what is
wrong. See `docs/reference/upstreams.md`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from functools import partial
from itertools import groupby
from typing import Any, Final

from gateway.images import ImageRequest, UpstreamAnswer
from gateway.tracing import NO_TRACER, Tracer
from gateway.upstream import failures, openai
from gateway.upstream.accounts import Account, Accounts
from gateway.upstream.attempts import Attempts, Candidate, Rerouting, StreamHandlers
from gateway.upstream.client import UpstreamClient, open_client
from gateway.upstream.dialect import Dialect
from gateway.upstream.observer import Observer, Pace
from gateway.upstream.session import ClientSettings

REST_SECONDS: Final = 60.0
"""How long an account is not asked for a model after 401, 403, 404 for it, or a billing limit."""

MAX_RESTING: Final = 1024
"""Models that accounts rest for at a time. Clients choose the names of models without a row."""


class Pool:
    """Buys images from the accounts that have their model."""

    def __init__(self, accounts: Accounts, clients: Sequence[UpstreamClient], pace: Pace) -> None:
        self.accounts = accounts
        self._clients = dict(zip((one.name for one in accounts), clients, strict=True))
        self._pace = pace
        self._resting: dict[tuple[str, str], float] = {}
        """By account and model, until when. The oldest come first."""
        self.is_disabled: Callable[[str], bool] = lambda name: False
        """Whether the operator has taken the account of this name out of service."""

    def client(self, account: str) -> UpstreamClient:
        """The client of an account."""
        return self._clients[account]

    def use_pace(self, pace: Pace) -> None:
        """Replaces the clock and the randomness, for tests."""
        self._pace = pace
        for client in self._clients.values():
            client._pace = pace  # noqa: SLF001 - tests alone

    def candidates(
        self, model: str, request: ImageRequest | None = None, *, images: int = 1
    ) -> Sequence[Account]:
        """The accounts that a purchase may ask, in the order of trial.

        With `request`, accounts that cannot make it are left out, unless none can: then the first
        one answers why. Raises `GatewayError` if there is none, or each one is out of service.
        """
        having = self.accounts.having(model)
        if not having:
            raise failures.unserved(model)
        in_service = [account for account in having if not self.is_disabled(account.name)]
        if not in_service:
            raise failures.disabled(model)
        in_service = list(self._able(in_service, request, images=images))
        if len(in_service) == 1:
            return in_service
        awake = [account for account in in_service if not self.rests(account.name, model)]
        if not awake:
            return self._in_order(in_service)
        ready = [account for account in awake if self._clients[account.name].admits()]
        # Those with an open breaker reject the purchase, unless it closes meanwhile.
        return [
            *self._in_order(ready),
            *self._in_order([account for account in awake if account not in ready]),
        ]

    def can_make(self, account: Account, request: ImageRequest, *, images: int) -> bool:
        """Whether the account's service can be asked for a purchase."""
        client, name = self._clients[account.name], account.name_of(request.model)
        return client.can_make(request, images=images, upstream_model=name)

    def _able(
        self, accounts: Sequence[Account], request: ImageRequest | None, *, images: int
    ) -> Sequence[Account]:
        """The accounts that can make the request; all of them if none can."""
        if request is None or len(accounts) == 1:
            return accounts
        able = [one for one in accounts if self.can_make(one, request, images=images)]
        return able or accounts

    def price_factor(
        self, model: str, request: ImageRequest | None = None, *, images: int = 1
    ) -> Decimal:
        """The largest price factor among the accounts in service that have a model.

        With `request`, accounts that cannot make it do not count, unless none can.
        """
        having = self.accounts.having(model)
        in_service = [account for account in having if not self.is_disabled(account.name)]
        return max(
            (
                account.price_factor
                for account in self._able(in_service or having, request, images=images)
            ),
            default=self.accounts.all[0].price_factor,
        )

    def rests(self, account: str, model: str) -> bool:
        """Whether the account has lately refused to sell the model."""
        until = self._resting.get((account, model))
        if until is None:
            return False
        if self._pace.clock() < until:
            return True
        del self._resting[account, model]
        return False

    def resting(self, account: str) -> Collection[str]:
        """The models that the account rests for."""
        known = [model for name, model in self._resting if name == account]
        return [model for model in known if self.rests(account, model)]

    def buy(
        self,
        request: ImageRequest,
        accounts: Sequence[Account],
        *,
        images: int,
        stream: StreamHandlers | None = None,
        rerouting: Rerouting | None = None,
    ) -> Coroutine[Any, Any, UpstreamAnswer]:
        """Buys images from the first of `accounts` that takes the purchase.

        With `stream` the image is bought as a stream, where the account streams. Raises
        `UpstreamFailure`.
        """
        candidates = [
            Candidate(
                self._clients[account.name],
                account.name,
                upstream_model=account.name_of(request.model),
                streams=account.streams,
                on_refused=partial(self._rest, account.name, request.model),
            )
            for account in accounts
        ]
        attempts = Attempts(candidates, request, images=images, stream=stream, rerouting=rerouting)
        return attempts.run()  # not awaited here: one coroutine less while upstream works

    def _rest(self, account: str, model: str) -> None:
        self._resting.pop((account, model), None)
        self._resting[account, model] = self._pace.clock() + REST_SECONDS
        if len(self._resting) > MAX_RESTING:
            del self._resting[next(iter(self._resting))]

    def _in_order(self, accounts: Sequence[Account]) -> Sequence[Account]:
        """By priority; among equals a random order in which weights are chances to be first."""
        ordered: list[Account] = []
        by_priority = sorted(accounts, key=lambda account: account.priority)
        for _, equals in groupby(by_priority, key=lambda account: account.priority):
            left = list(equals)
            while left:
                ordered.append(left.pop(self._draw([account.weight for account in left])))
        return ordered

    def _draw(self, weights: Sequence[int]) -> int:
        point = self._pace.random() * sum(weights)
        for index, weight in enumerate(weights):
            point -= weight
            if point < 0:
                return index
        return len(weights) - 1


def _openai(_account: Account) -> Dialect:
    return openai


@asynccontextmanager
async def open_pool(
    accounts: Accounts,
    settings: Sequence[ClientSettings],
    *,
    observe: Callable[[str], Observer],
    dialect_of: Callable[[Account], Dialect] = _openai,
    tracer: Tracer = NO_TRACER,
    pace: Pace | None = None,
) -> AsyncIterator[Pool]:
    """The accounts of a process with their connection pools, which are closed on exit.

    `settings` are those of their clients, in the same order. `observe` makes the observer of an
    account by its name, and `dialect_of` finds its dialect.
    """
    pace = pace or Pace()
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                open_client(
                    of_account,
                    dialect=dialect_of(account),
                    observer=observe(account.name),
                    tracer=tracer,
                    pace=pace,
                )
            )
            for account, of_account in zip(accounts, settings, strict=True)
        ]
        yield Pool(accounts, clients, pace)

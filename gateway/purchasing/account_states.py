"""The accounts at upstream as operators see them: routing, switch, budget and health together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gateway.limits import LIMITS, MICROS_PER_USD
from gateway.purchasing.upstream_health import UpstreamState
from gateway.purchasing.upstream_switches import Switch
from gateway.store.batch import execute
from gateway.store.commands import Counter, CounterState, PeekCounters
from gateway.store.protocol import Store
from gateway.upstream.accounts import Account


async def read_budgets(
    store: Store, accounts: Sequence[Account]
) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """What accounts have used of their budgets, by name. Raises `StoreUnavailable`."""
    asked = [
        (account, LIMITS[name], maximum)
        for account in accounts
        for name, maximum in account.budget.items()
    ]
    counters = tuple(
        Counter(account.subject, limit.unit, limit.period, maximum)
        for account, limit, maximum in asked
    )
    states = await execute(store, PeekCounters(counters)) if counters else ()
    found: dict[str, list[Mapping[str, Any]]] = {account.name: [] for account in accounts}
    for (account, limit, maximum), state in zip(asked, states, strict=True):
        found[account.name].append(_budget(limit.name, maximum, state))
    return found


def _budget(name: str, maximum: int, state: CounterState) -> Mapping[str, Any]:
    return {
        "limit": name,
        "max": maximum / MICROS_PER_USD,
        "used": state.used / MICROS_PER_USD,
        "reserved": state.reserved / MICROS_PER_USD,
        "resets_in": round(state.resets_in, 3),
    }


def public_accounts(
    accounts: Sequence[Account],
    base_urls: Mapping[str, str],
    *,
    switch_of: Callable[[str], Switch | None],
    budgets: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, dict[str, Any]]:
    """The accounts by name, without their credentials. `budgets` are those of `read_budgets`."""
    return {
        account.name: _public_account(
            account,
            base_url=base_urls[account.name],
            switch=switch_of(account.name),
            budget=budgets[account.name],
        )
        for account in accounts
    }


def _public_account(
    account: Account,
    *,
    base_url: str,
    switch: Switch | None,
    budget: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    return {
        "base_url": base_url,
        "group": account.group,
        "dialect": account.dialect,
        "models": dict(account.models),
        "priority": account.priority,
        "weight": account.weight,
        "price_factor": str(account.price_factor),
        "images_per_minute": account.images_per_minute,
        "concurrent": account.concurrent,
        "enabled": switch is None,
        "disabled": None if switch is None else switch.public(),
        "limits": list(budget),
    }


def public_states(
    states: Sequence[UpstreamState], accounts: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A row for each account of this gateway, and for others that the store knows."""
    known = {state.name: state for state in states}
    names = [*accounts, *(name for name in known if name not in accounts)]
    return [
        {
            **known.get(name, UpstreamState(name)).public(),
            "account": accounts.get(name),
        }
        for name in names
    ]

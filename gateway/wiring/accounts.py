"""The accounts at upstream, as the settings list them."""

from __future__ import annotations

from gateway.configuration.settings import Settings, UpstreamSettings
from gateway.upstream.accounts import Account, Accounts


def create_accounts(settings: Settings) -> Accounts:
    """The accounts of a gateway, for the rows of no catalog yet. No I/O."""
    are_several = bool(settings.upstreams)
    return Accounts([_account(one, is_counted=are_several) for one in settings.accounts])


def _account(upstream: UpstreamSettings, *, is_counted: bool) -> Account:
    limits = {
        "usd_per_day": upstream.limits.usd_micros_per_day,
        "usd_per_week": upstream.limits.usd_micros_per_week,
        "usd_per_month": upstream.limits.usd_micros_per_month,
    }
    budget = {name: maximum for name, maximum in limits.items() if maximum is not None}
    return Account(
        upstream.name,
        upstream.group or upstream.name,
        models=upstream.models,
        priority=upstream.priority,
        weight=upstream.weight,
        images_per_minute=upstream.images_per_minute,
        concurrent=upstream.concurrent,
        price_factor=upstream.price_factor,
        budget=budget,
        timeout_seconds=upstream.timeout_seconds,
        streams=upstream.streams,
        dialect=upstream.dialect,
        # One that is counted from the first purchase on can get a budget in the middle of a month.
        is_counted=is_counted or bool(budget),
    )

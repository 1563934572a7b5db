"""Connects the policy, the store and the memory of the books to metrics and health."""

from __future__ import annotations

from collections.abc import Callable

from gateway.access.policy import CurrentPolicy, Policy, PolicySource
from gateway.api.services import Health
from gateway.cache.books_memory import BooksMemory, BooksUse
from gateway.configuration.settings import Settings
from gateway.metrics import Metrics
from gateway.store.protocol import Store
from gateway.wiring.cache import Cache


def create_policy(source: PolicySource, metrics: Metrics) -> CurrentPolicy:
    """Reads the policy, and passes each version to the metrics: their labels depend on it."""

    def on_change(policy: Policy) -> None:
        metrics.use_policy(
            models=policy.catalog.models,
            sizes=policy.values_of("size"),
            qualities=policy.values_of("quality"),
            prices_as_of=policy.catalog.prices_as_of,
            retiring_models=policy.retiring_models,
        )

    return CurrentPolicy(source, on_change=on_change, on_failure=metrics.config_reload_failures.inc)


def create_store_observer(health: Health, metrics: Metrics) -> Callable[[bool], None]:
    """Records after each batch whether the store is available."""

    def observe(is_available: bool) -> None:
        if not is_available:
            metrics.cache.store_errors.inc()
        # Only when the state changes: setting the gauge writes to a file.
        if is_available != health.store_up or not health.store_reached:
            metrics.cache.store_up.set(is_available)
        health.store_up = is_available
        health.store_reached = health.store_reached or is_available

    return observe


def create_books_observer(health: Health) -> Callable[[bool], None]:
    """Records whether the books use most of their memory."""

    def observe(is_low: bool) -> None:
        health.is_books_memory_low = is_low

    return observe


def create_room_observer(health: Health) -> Callable[[BooksUse], None]:
    """Records whether hardly any memory or disk is left."""

    def observe(use: BooksUse) -> None:
        health.is_store_nearly_full = use.is_nearly_full

    return observe


def create_books_memory(
    settings: Settings, store: Store, cache: Cache, *, metrics: Metrics, health: Health
) -> BooksMemory:
    """What measures how much memory or disk the books use, and tells `health`."""
    return BooksMemory(
        store,
        cache.blobs,
        metrics.cache,
        shares_bytes=settings.store.blobs_url is None,
        on_change=create_books_observer(health),
        on_measured=create_room_observer(health),
    )

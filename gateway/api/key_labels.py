"""The keys that have labels of their own in the metrics."""

from __future__ import annotations

from gateway.api.services import Services
from gateway.billing.scopes import KeyNames
from gateway.metrics import MAX_KEYS


async def label_keys(services: Services) -> None:
    """Tells the metrics which keys may have labels of their own: the oldest ones.

    Listing the keys also makes them known to this worker. One that knew none, as after a restart,
    would refuse them all while their clients' address is over its failed attempts.
    """
    keys = await services.keys.learn(MAX_KEYS)
    services.metrics.use_keys(key.name for key in keys)
    services.running_totals.keys = [KeyNames(key.key_id, key.name, key.team) for key in keys]
    services.running_totals.are_keys_few = len(keys) < MAX_KEYS


async def show_running_totals(services: Services) -> None:
    """Reads the running totals of money for the metrics. Raises `StoreUnavailable`."""
    # So a new key is there from its first second. Listing many would stop the event loop.
    if services.running_totals.are_keys_few:
        await label_keys(services)
    models = services.policy().catalog.models
    services.metrics.running_totals.show(await services.running_totals.read(models))

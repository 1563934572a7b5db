"""Whether the purchases of dead workers get settled."""

from __future__ import annotations

from gateway.configuration.settings import Settings
from gateway.process.findings import Finding
from gateway.purchasing.unreadable import OpenPurchases, read_open_journals
from gateway.store.protocol import Store


async def check_open_purchases(settings: Settings, store: Store) -> Finding:
    """Counts the open journals that no worker owns. Raises `StoreUnavailable`."""
    dead_after_seconds = settings.workers.dead_after_seconds
    found = await read_open_journals(store, dead_after_seconds=dead_after_seconds)
    return judge_open_purchases(found)


def judge_open_purchases(found: OpenPurchases) -> Finding:
    """Whether purchases of dead workers are open, and whether all journals can be read."""
    if found.unreadable:
        message = (
            f"{len(found.unreadable)} open purchases have a journal that cannot be read: see "
            "`gateway ledger repair --dry-run`."
        )
        return Finding("open purchases", "warning", message)
    if found.left:
        message = (
            f"{len(found.left)} purchases of dead workers are open. A running gateway settles them "
            "within seconds."
        )
        return Finding("open purchases", "warning", message)
    return Finding("open purchases", "ok", "none of a dead worker")

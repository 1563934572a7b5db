"""The Lua scripts, read at import.

Each command has a script `lua/<aggregate>/<command>.lua`. The parts of `lua/shared` that it uses
are put in front of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, and the SHA-1 by which the server caches it."""

    source: str
    sha: str


# A script that finds further keys in what it reads needs `declared`. One whose keys are all in its
# command calls the server directly: the check would take time and find nothing.
_BOOKS: Final = ("clock", "declared", "books")
_COUNTERS: Final = (*_BOOKS, "counters")
_JOURNALS: Final = (*_COUNTERS, "journals", "queues")
_LEDGER: Final = ("calendar", "ledger")
_INDEX: Final = ("clock", "lru_index")
_SLOTS: Final = ("clock", "expiry", "slots")

_SHARED_PARTS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "blobs": {"put_blob": ()},
    "books": {"read_books": (*_BOOKS, *_LEDGER)},
    "counters": {"admit": _COUNTERS, "peek_counters": _COUNTERS},
    "entries": {
        "read_entry": ("clock",),
        "scan_entries": ("scan",),
        "acquire_lease": _SLOTS,
        "renew_lease": _SLOTS,
        "release_lease": _SLOTS,
        "store_images": _SLOTS,
        "empty_slots": _SLOTS,
        "prolong_slots": _SLOTS,
    },
    "events": {"publish": ("clock",)},
    "hits": {"count_hits": ("clock",), "read_hits": (), "delete_hits": ()},
    "journals": {
        "reserve": _JOURNALS,
        "reroute": _JOURNALS,
        "receive": (),
        "take_turns": _JOURNALS,
        "read_turns": _JOURNALS,
        "correct_account": _JOURNALS,
        "settle": (*_JOURNALS, *_LEDGER),
        "open_journals": _BOOKS,
        "read_journals": (),
    },
    "ledger": {
        "append": (*_BOOKS, *_LEDGER, "refusals"),
        "append_refusals": (*_BOOKS, *_LEDGER, "refusals"),
        "read_ledger": (*_BOOKS, *_LEDGER),
        "read_ledger_back": (*_BOOKS, *_LEDGER),
        "search_ledger": (*_BOOKS, *_LEDGER),
        "search_refusals": (*_BOOKS, "refusals"),
        "trim_ledger": (*_BOOKS, *_LEDGER),
    },
    "lru_index": {
        "track": _INDEX,
        "evict_to": _INDEX,
        "touch": _INDEX,
        "untrack": _INDEX,
        "eviction_candidates": _INDEX,
        "read_lru_totals": _INDEX,
        "are_tracked": _INDEX,
        "sweep": _INDEX,
    },
    "ordered_sets": {
        "add_to_ordered_sets": ("clock", "expiry"),
        "remove_from_ordered_sets": (),
        "count_ordered_sets": (),
    },
    "records": {"get_by_index": (), "compare_and_set": ()},
    "server": {"handshake": (), "inspect": ("clock",), "measure": ()},
    "sets": {
        "add_to_set": ("clock", "expiry"),
        "remove_from_set": (),
        "add_to_bounded_sets": ("clock", "expiry"),
        "scan_set": ("scan",),
    },
    "totals": {
        "fold_totals": (*_BOOKS, "totals"),
        "read_totals": (*_BOOKS, "totals"),
        "read_totals_state": (*_BOOKS, "totals"),
        "remove_totals": (*_BOOKS, "totals"),
    },
    "values": {"set_value": ("clock",), "advance_counter": ("clock",), "delete_value": ()},
    "workers": {
        "heartbeat": ("clock",),
        "expired_workers": ("clock",),
        "deregister": (),
    },
}
"""Aggregate → script → the parts of `lua/shared` in front of it."""


def _read_script(aggregate: str, name: str, *shared: str) -> Script:
    folder = resources.files("gateway.store.redis") / "lua"
    parts = [folder / "shared" / f"{part}.lua" for part in shared]
    parts.append(folder / aggregate / f"{name}.lua")
    source = "\n".join(part.read_text("utf-8") for part in parts)
    # Redis names a script by its SHA-1. Without the flag, a Python in FIPS mode refuses SHA-1.
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


SCRIPTS: Final[Mapping[str, Script]] = {
    name: _read_script(aggregate, name, *shared)
    for aggregate, scripts in _SHARED_PARTS.items()
    for name, shared in scripts.items()
}
"""All scripts by the name of their command."""

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


_COUNTERS: Final = ("books", "counters")
_JOURNALS: Final = ("books", "counters", "journals", "queues")

_SHARED_PARTS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "blobs": {"put_blob": ()},
    "books": {"read_books": ("books", "ledger")},
    "counters": {"admit": _COUNTERS, "peek_counters": _COUNTERS},
    "entries": {
        "read_entry": (),
        "scan_entries": ("scan",),
        "acquire_lease": ("slots",),
        "renew_lease": ("slots",),
        "release_lease": ("slots",),
        "store_images": ("slots",),
        "empty_slots": ("slots",),
        "prolong_slots": ("slots",),
    },
    "events": {"publish": ()},
    "hits": {"count_hits": (), "read_hits": (), "delete_hits": ()},
    "journals": {
        "reserve": _JOURNALS,
        "reroute": _JOURNALS,
        "receive": ("books",),
        "take_turns": _JOURNALS,
        "read_turns": _JOURNALS,
        "correct_account": _JOURNALS,
        "settle": (*_JOURNALS, "ledger"),
        "open_journals": ("books",),
        "read_journals": (),
    },
    "ledger": {
        "append": ("books", "ledger", "refusals"),
        "append_refusals": ("books", "ledger", "refusals"),
        "read_ledger": ("books", "ledger"),
        "read_ledger_back": ("books", "ledger"),
        "search_ledger": ("books", "ledger"),
        "search_refusals": ("books", "refusals"),
        "trim_ledger": ("books", "ledger", "totals"),
    },
    "lru_index": {
        "track": ("lru_index",),
        "evict_to": ("lru_index",),
        "touch": ("lru_index",),
        "untrack": ("lru_index",),
        "eviction_candidates": ("lru_index",),
        "read_lru_totals": ("lru_index",),
        "are_tracked": ("lru_index",),
        "sweep": ("lru_index",),
    },
    "ordered_sets": {
        "add_to_ordered_sets": (),
        "remove_from_ordered_sets": (),
        "count_ordered_sets": (),
    },
    "records": {"get_by_index": (), "compare_and_set": ()},
    "server": {"handshake": (), "inspect": (), "measure": ()},
    "sets": {
        "add_to_set": (),
        "remove_from_set": (),
        "add_to_bounded_sets": (),
        "scan_set": ("scan",),
    },
    "totals": {
        "fold_totals": ("books", "totals"),
        "read_totals": ("books", "totals"),
        "read_totals_state": ("books", "totals"),
        "remove_totals": ("books", "totals"),
    },
    "values": {"set_value": (), "advance_counter": (), "delete_value": ()},
    "workers": {
        "heartbeat": ("books",),
        "expired_workers": ("books",),
        "deregister": ("books",),
    },
}
"""Aggregate → script → the parts of `lua/shared` in front of it, after those that all have."""


def _read_script(aggregate: str, name: str, *shared: str) -> Script:
    folder = resources.files("gateway.store.redis") / "lua"
    parts = [folder / "shared" / f"{part}.lua" for part in ("clock", "declared", *shared)]
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

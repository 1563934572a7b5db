"""The Lua scripts, read at import.

Each command has a script `lua/<aggregate>/<command>.lua`. The parts of `lua/shared` that it uses
are put in front of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity, several times a command
class Script:
    """A Lua script, and the SHA-1 by which the server caches it."""

    source: str
    sha: str


# A script that finds further keys in what it reads needs `declared`. If all keys of a script are in
# its command, it does without, because the check would only take time.
_BOOKS: Final = ("clock", "declared", "books")
_COUNTERS: Final = ("clock", "buckets", "declared", "books", "counters")
_JOURNALS: Final = (*_COUNTERS, "journals", "queues")
_LEDGER: Final = ("calendar", "ledger")
_INDEX: Final = ("clock", "lru_index")
_SLOTS: Final = ("clock", "expiry", "slots")


def _planned(script: str, *parts: str) -> tuple[str, ...]:
    """Parts of a script that begins with its plan, and ends there if the plan holds.

    So the functions of the other parts are only created if it does not.
    """
    first = ("clock", "buckets", "plans", script)
    return (*first, *(part for part in parts if part not in first))


_SHARED_PARTS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "blobs": {"put_blob": ()},
    "books": {"read_books": (*_BOOKS, *_LEDGER)},
    "counters": {"admit": _planned("planned_admit", *_COUNTERS), "peek_counters": _COUNTERS},
    "entries": {
        "read_entry": ("clock",),
        "scan_entries": ("scan",),
        "acquire_lease": ("clock", "first_lease", "expiry", "slots"),
        "renew_lease": _SLOTS,
        "release_lease": _SLOTS,
        "store_images": _SLOTS,
        "empty_slots": _SLOTS,
        "prolong_slots": _SLOTS,
    },
    "events": {"publish": ()},
    "hits": {"count_hits": ("clock",), "read_hits": (), "delete_hits": ()},
    "journals": {
        "reserve": _planned("planned_reserve", *_JOURNALS),
        "reroute": _JOURNALS,
        "receive": (),
        "take_turns": (*_JOURNALS, "many"),
        "read_turns": _JOURNALS,
        "correct_account": _JOURNALS,
        "settle": _planned("planned_settle", *_JOURNALS, *_LEDGER),
        "open_journals": _BOOKS,
        "read_journals": (),
    },
    "ledger": {
        "append": (*_BOOKS, *_LEDGER, "refusals"),
        "append_refusals": (*_BOOKS, *_LEDGER, "many", "refusals"),
        "read_ledger": (*_BOOKS, *_LEDGER),
        "read_ledger_back": (*_BOOKS, *_LEDGER),
        "search_ledger": (*_BOOKS, *_LEDGER),
        "search_refusals": (*_BOOKS, "refusals"),
        "trim_ledger": (*_BOOKS, *_LEDGER, "totals"),
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
        "add_to_ordered_sets": (),
        "remove_from_ordered_sets": (),
        "count_ordered_sets": (),
    },
    "records": {"get_by_index": (), "compare_and_set": ()},
    "server": {"handshake": (), "inspect": ("clock",), "measure": ()},
    "sets": {
        "add_to_set": (),
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
    "values": {"set_value": (), "advance_counter": ("clock",), "delete_value": ()},
    "workers": {
        "heartbeat": ("clock",),
        "expired_workers": ("clock",),
        "deregister": (),
    },
}
"""Aggregate → script → the parts of `lua/shared` in front of it."""


_BLANK_LINES: Final = re.compile(r"\n\s*\n")

_COMMENT: Final = re.compile(r" *--.*")

_FUNCTION: Final = re.compile(r"^local function (\w+)\(.*?^end\n", re.MULTILINE | re.DOTALL)

_NAME: Final = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class _Piece:
    """A function of a part, or the code between two functions."""

    source: str
    names: frozenset[str]
    """All words in it, and so all functions that it calls."""
    function: str = ""


@cache
def _read_pieces(path: str) -> Sequence[_Piece]:
    """A file below `lua/`, without comments."""
    folder = resources.files("gateway.store.redis") / "lua"
    source, at, pieces = _COMMENT.sub("", (folder / path).read_text("utf-8")), 0, []
    for found in _FUNCTION.finditer(source):
        pieces.append(_piece(source[at : found.start()]))
        pieces.append(_piece(found[0], found[1]))
        at = found.end()
    return [*pieces, _piece(source[at:] + "\n")]


def _piece(source: str, function: str = "") -> _Piece:
    return _Piece(source, frozenset(_NAME.findall(source)), function)


def _read_script(aggregate: str, name: str, *shared: str) -> Script:
    """Leaves out functions that nothing calls, because the server would create them in each run."""
    paths = [*(f"shared/{part}.lua" for part in shared), f"{aggregate}/{name}.lua"]
    pieces = [piece for path in paths for piece in _read_pieces(path)]
    kept, used = [], set[str]()
    for piece in reversed(pieces):  # a function can only be called by what comes after it
        if not piece.function or piece.function in used:
            kept.append(piece.source)
            used |= piece.names
    source = _BLANK_LINES.sub("\n", "".join(reversed(kept)))
    # Redis names a script by its SHA-1. Without the flag, a Python in FIPS mode refuses SHA-1.
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


SCRIPTS: Final[Mapping[str, Script]] = {
    name: _read_script(aggregate, name, *shared)
    for aggregate, scripts in _SHARED_PARTS.items()
    for name, shared in scripts.items()
}
"""All scripts by the name of their command."""

"""The Lua scripts, read once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final

# ── scripts ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, and the name under which the server remembers it."""

    source: str
    sha: str


def _read_script(aggregate: str, name: str, *shared: str) -> Script:
    folder = resources.files("gateway.store.redis") / "lua"
    parts = [folder / "shared" / f"{part}.lua" for part in ("clock", *shared)]
    parts.append(folder / aggregate / f"{name}.lua")
    source = "\n".join(part.read_text("utf-8") for part in parts)
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


_BOOKS: Final = ("books",)
_METERS: Final = ("books", "meters")
_JOURNALS: Final = ("books", "meters", "journals")

_SHARED_PARTS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "records": {"get_through": (), "put": ()},
    "entries": {
        "read_entry": (),
        "scan_entries": (),
        **dict.fromkeys(("claim", "extend", "release", "keep", "clear"), ("slots",)),
    },
    "values": {"note": (), "drop_note": ()},
    "sets": {"enlist": (), "strike": ()},
    "lru_index": dict.fromkeys(
        (
            *("shelve", "shrink", "touch", "unshelve"),
            *("oldest", "read_shelf", "on_shelf", "sweep"),
        ),
        ("shelf",),
    ),
    "blobs": {"put_blob": ()},
    "events": {"publish": ()},
    "workers": dict.fromkeys(("beat", "dead_workers", "retire"), _BOOKS),
    "counters": {"admit": _METERS, "read_meters": _METERS},
    "journals": {
        "reserve": _JOURNALS,
        "receive": _BOOKS,
        "settle": _JOURNALS,
        "open_journals": _BOOKS,
    },
    "ledger": {"append": _BOOKS, "read_ledger": _BOOKS},
    "server": {"inspect": (), "stamp": ()},
}
"""Aggregate → script → the parts of `lua/shared/` that are put before it."""

SCRIPTS: Final[Mapping[str, Script]] = {
    name: _read_script(aggregate, name, *shared)
    for aggregate, scripts in _SHARED_PARTS.items()
    for name, shared in scripts.items()
}
"""All scripts by the name of their file, read once."""

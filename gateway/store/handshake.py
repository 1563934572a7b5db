"""What can be wrong with a store before its first verb: it is not there, or not ours to read.

Both adapters raise these while they open; they are for whoever starts the gateway, and never
become an answer to a request. A store that is there but silent is `errors.StoreUnavailable`.
"""

from __future__ import annotations

from typing import Final

SCHEMA_VERSION: Final = 1
"""Stamped into every store. An older one is upgraded by whoever may create it, else refused; a
newer one is always refused."""


class StoreMissing(Exception):
    """There is no store at `place`, and whoever opened it may not create one."""

    def __init__(self, place: str) -> None:
        super().__init__(f"There is no store at {place}. `gateway serve` creates it.")
        self.place = place


class SchemaMismatch(Exception):
    """The store at `place` was written by a gateway whose layout this one does not know."""

    def __init__(self, place: str, found: str, *, wanted: int = SCHEMA_VERSION) -> None:
        super().__init__(
            f"The store at {place} has layout version {found}; this gateway reads version {wanted}."
        )
        self.place = place
        self.found = found
        self.wanted = wanted

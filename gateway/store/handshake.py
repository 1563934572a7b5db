"""The check before the first command: is there a store, and can this gateway read it?

Both adapters raise these errors while they open a store. Only the command line shows them; a
client of a running gateway gets `errors.StoreUnavailable`.
"""

from __future__ import annotations

from typing import Final

SCHEMA_VERSION: Final = 3
"""Written into every new store. A store of any other version is refused, older ones included:
until the first release there are no upgrades."""


class StoreMissing(Exception):
    """There is no store at `location`, and the command that opened it must not create one."""

    def __init__(self, location: str) -> None:
        super().__init__(f"There is no store at {location}. `gateway serve` creates it.")
        self.location = location


class SchemaMismatch(Exception):
    """The store at `location` has a schema version that this gateway cannot read."""

    def __init__(self, location: str, found: str, *, supported: int = SCHEMA_VERSION) -> None:
        super().__init__(
            f"The store at {location} has schema version {found}; this gateway reads version"
            f" {supported}. Use an empty store, or the gateway version that created this one."
        )
        self.location = location
        self.found = found
        self.supported = supported


class StoreMisconfigured(Exception):
    """A server answers, but the gateway cannot use it until an operator changes a setting.

    Its message is one line, which names the fault and the fix.
    """


class StoreReadOnly(StoreMisconfigured):
    """The server is a replica. During a failover the address may lead to one for seconds."""

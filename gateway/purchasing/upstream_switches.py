"""Accounts at upstream that the operator has taken out of service, while gateways run.

The list is in the store, and every worker of every gateway learns of a change at once. While
the store is unavailable, the last known list holds. Purchases under way go on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson
import structlog

from gateway.access.audit import Actor, AuditEvent, audit_write
from gateway.errors import INVALID_REQUEST, ErrorCode, GatewayError, StoreUnavailable
from gateway.store.batch import execute, execute_kept
from gateway.store.commands import CompareAndSet, Get, ScanRecords, Write
from gateway.store.protocol import Store
from gateway.stored import read_stored
from gateway.values import nearest

SPACE: Final = "upstream_switches"
REFRESH_SECONDS: Final = 0.4
"""How often a worker looks for a change if the store cannot tell it of one at once."""
MAX_REASON: Final = 200
"""Characters."""
_ATTEMPTS: Final = 5
_READ: Final = ScanRecords(SPACE)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Switch:
    """An account that is out of service."""

    since: float
    """Unix seconds."""
    by: str
    reason: str | None = None

    def encode(self) -> bytes:
        return orjson.dumps(self.public())

    def public(self) -> dict[str, Any]:
        """As the admin API shows it."""
        return {"since": self.since, "by": self.by, "reason": self.reason}

    @staticmethod
    def decode(data: bytes) -> Switch:
        """The inverse of `encode`; unknown fields are ignored."""
        fields = orjson.loads(data)
        return Switch(float(fields["since"]), str(fields.get("by", "")), fields.get("reason"))


class UpstreamSwitches:
    """Takes accounts out of service and back, and knows those that are out."""

    def __init__(
        self,
        store: Store,
        names: Collection[str],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._names = names
        self._clock = clock
        self._disabled: Mapping[str, Switch] = {}
        self._is_read = False
        self.changed = asyncio.Event()
        """The list may have changed since the last refresh."""
        store.kept.watch(_READ, self.changed.set)

    def is_disabled(self, name: str) -> bool:
        """Whether an account is out of service, as far as this worker knows."""
        return name in self._disabled

    def switch_of(self, name: str) -> Switch | None:
        """Since when and why an account is out of service; None if it is not."""
        return self._disabled.get(name)

    async def refresh(self) -> None:
        """Reads the list. Raises `StoreUnavailable`."""
        self.changed.clear()
        page = await execute_kept(self._store, _READ)
        found = {
            name: read_stored("upstream_switch", data, Switch.decode, name=name)
            for name, data in page.records.items()
            if name in self._names
        }
        # One that cannot be read is out of service all the same.
        switches = {name: switch or Switch(0.0, "unknown") for name, switch in found.items()}
        changed = switches.keys() ^ self._disabled.keys() if self._is_read else ()
        for name in changed:
            log.info("upstream_switched", upstream=name, enabled=name not in switches)
        self._disabled, self._is_read = switches, True

    async def disable(self, name: str, *, actor: Actor, reason: str | None = None) -> None:
        """Takes an account out of service. Raises 404 for an unknown one."""
        switch = Switch(self._clock(), actor.by, reason[:MAX_REASON] if reason else None)
        await self._change(name, switch, actor=actor)

    async def enable(self, name: str, *, actor: Actor) -> None:
        """Puts an account back into service. Raises 404 for an unknown one."""
        await self._change(name, None, actor=actor)

    async def _change(self, name: str, switch: Switch | None, *, actor: Actor) -> None:
        """Changes the list and writes the event of the audit in the same step."""
        if name not in self._names:
            raise _unknown(name, self._names)
        for _ in range(_ATTEMPTS):
            before = await execute(self._store, Get(SPACE, name))
            if (before is None) == (switch is None):
                break  # it is as it should be
            event = AuditEvent(
                actor,
                "upstream.enable" if switch is None else "upstream.disable",
                f"upstream:{name}",
                before={"enabled": before is None},
                after={"enabled": switch is None}
                | ({"reason": switch.reason} if switch and switch.reason else {}),
                time=self._clock(),
            )
            data = None if switch is None else switch.encode()
            writes = (Write(SPACE, name, data, expected=before), audit_write(event))
            if await execute(self._store, CompareAndSet(writes)) is None:
                break
        else:
            raise StoreUnavailable("The gateway's store was too busy, so nothing was changed.")
        await self.refresh()


def _unknown(name: str, names: Collection[str]) -> GatewayError:
    near = nearest(name, names)
    return GatewayError(
        f"There is no upstream '{name[:200]}'. Did you mean '{near}'? The upstreams are "
        f"{', '.join(names)}.",
        type=INVALID_REQUEST,
        param="name",
        code=ErrorCode.UPSTREAM_NOT_FOUND,
    )

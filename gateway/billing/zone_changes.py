"""The time zones that the books have had: windows and days of each begin with its change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

import orjson

from gateway.calendar import Calendar
from gateway.store.batch import execute
from gateway.store.commands import CompareAndSet, Get, Write
from gateway.store.protocol import Store

META: Final = "meta"
TIME_ZONES: Final = "time_zones"
MAX_ZONES: Final = 20

ROLLING_SECONDS: Final = 3600.0
"""How long gateways with two time zones may run beside each other, before and after a change."""


class ZoneChange(NamedTuple):
    """A time zone of the windows, and since when: 0 for the first one."""

    since: float
    zone: str


async def note_time_zone(store: Store, zone: str, now: float) -> None:
    """Notes the time zone of the windows, if it is another one than before.

    Each gateway does it when it starts: records do not say in which windows they count.
    """
    data = await execute(store, Get(META, TIME_ZONES))
    zones = _decode_zones(data)
    if zones and zones[-1].zone == zone:
        return
    changed = [*zones, ZoneChange(now if zones else 0.0, zone)][-MAX_ZONES:]
    write = Write(META, TIME_ZONES, orjson.dumps([list(one) for one in changed]), expected=data)
    await execute(store, CompareAndSet((write,)))


async def read_zones(store: Store, default: str) -> Sequence[ZoneChange]:
    """The time zones of the windows in their order, at least one."""
    return _decode_zones(await execute(store, Get(META, TIME_ZONES))) or [ZoneChange(0.0, default)]


def _decode_zones(data: bytes | None) -> list[ZoneChange]:
    return [] if data is None else [ZoneChange(*change) for change in orjson.loads(data)]


async def days_complete_since(store: Store, zone: str) -> float:
    """Where the first day begins that has all of its records in the rows of days of a zone.

    Rows of a zone begin with the records that were folded since it is the zone; those of UTC are
    always there. Raises `StoreUnavailable`.
    """
    if zone == "UTC":
        return 0.0
    latest = (await read_zones(store, zone))[-1]
    if latest.zone != zone:
        return math.inf
    if not latest.since:
        return 0.0
    return float(Calendar(ZoneInfo(zone)).day_at(latest.since + ROLLING_SECONDS).ends_at)

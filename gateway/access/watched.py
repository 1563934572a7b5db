"""Whose limits are watched: every active key, every team that a key names, and everyone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from gateway.access.key_records import KeyRecord
from gateway.access.keys import Keys
from gateway.events import Watched
from gateway.images import LimitSubject

EVERYONE: Final = Watched(LimitSubject("everyone", "everyone", shown_as="", rules={}), None)


async def list_watched(keys: Keys, *, clock: Callable[[], float] = time.time) -> Sequence[Watched]:
    """All limit subjects with their limits. Raises `StoreUnavailable`."""
    now = clock()
    found = await keys.map_keys(
        lambda record: watched_key(record) if record.is_active(now) else None
    )
    active = [watched for watched in found if watched is not None]
    teams = sorted({watched.team for watched in active if watched.team is not None})
    return (*active, *map(_watched_team, teams), EVERYONE)


def watched_key(record: KeyRecord) -> Watched:
    """A key with its limits."""
    rules = record.limit_rules()
    subject = LimitSubject(f"key:{record.id}", "key", shown_as=record.name, rules=rules)
    return Watched(subject, record.team)


def _watched_team(name: str) -> Watched:
    return Watched(LimitSubject(f"team:{name}", "team", shown_as=name, rules={}), name)

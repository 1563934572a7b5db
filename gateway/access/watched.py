"""Whose limits are watched: every active key, every team, and everyone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from gateway.access.key_records import KeyRecord
from gateway.access.keys import Keys
from gateway.access.subjects import AllSubjects, Subjects
from gateway.events import Watched
from gateway.images import LimitSubject


async def list_watched(
    keys: Keys, subjects: Subjects, *, clock: Callable[[], float] = time.time
) -> Sequence[Watched]:
    """All limit subjects with their limits as they are now. Raises `StoreUnavailable`."""
    now, stored = clock(), await subjects.read_all()

    def resolve(record: KeyRecord) -> Watched | None:
        if not record.is_active(now):
            return None
        resolved = subjects.resolve(record, stored.of_key(record))
        return Watched(resolved.subjects[0], record.team)

    active = [watched for watched in await keys.map_keys(resolve) if watched is not None]
    named = {watched.team for watched in active if watched.team is not None}
    teams = sorted({*named, *stored.teams, *subjects.declared().teams})
    return (
        *active,
        *(_watched_team(name, subjects, stored) for name in teams),
        Watched(subjects.everyone_subject(stored), None),
    )


def watched_key(record: KeyRecord) -> Watched:
    """A key with its own limits."""
    rules = record.limit_rules()
    subject = LimitSubject(f"key:{record.id}", "key", shown_as=record.name, rules=rules)
    return Watched(subject, record.team)


def _watched_team(name: str, subjects: Subjects, stored: AllSubjects) -> Watched:
    return Watched(subjects.team_subject(name, stored), name)

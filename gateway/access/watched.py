"""Whose limits are watched: every active key, every team, and everyone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gateway.access.key_records import KeyRecord
from gateway.access.keys import Keys
from gateway.access.subjects import Subjects
from gateway.events import Watched
from gateway.images import LimitSubject


async def list_watched(keys: Keys, subjects: Subjects, *, at: float) -> Sequence[Watched]:
    """All limit subjects with the limits and raises that hold at a time, in Unix seconds.

    Raises `StoreUnavailable`.
    """
    stored = await subjects.read_all()

    def resolve(record: KeyRecord) -> Watched | None:
        if not record.is_active(at):
            return None
        resolved = subjects.resolve(record, stored.of_key(record), at=at)
        return Watched(resolved.subjects[0], record.team)

    active = [watched for watched in await keys.map_keys(resolve) if watched is not None]

    def add_teams() -> Sequence[Watched]:
        named = {watched.team for watched in active if watched.team is not None}
        teams = sorted({*named, *stored.teams, *subjects.declared().teams})
        return (
            *active,
            *(Watched(subjects.team_subject(name, stored, at=at), name) for name in teams),
            Watched(subjects.everyone_subject(stored, at=at), None),
        )

    # In a thread, as the keys: there may be as many teams.
    return await asyncio.to_thread(add_teams)


def watched_key(record: KeyRecord) -> Watched:
    """A key with its own limits."""
    rules = record.limit_rules()
    subject = LimitSubject(f"key:{record.id}", "key", shown_as=record.name, rules=rules)
    return Watched(subject, record.team)

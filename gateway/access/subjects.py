"""Limit subjects: whose limits hold for a key, from the store and from `access.yaml`.

The store has teams in the space `teams`, everyone as `everyone` in the space `access`, and raises
in the space `raises` under the subject's name. Each change of one of them also writes another
`generation` in the space `access`. An admission compares that with the generation that its
principal was made of, so a change takes effect from the next request on. What a file declares comes
before what the store has.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from types import MappingProxyType
from typing import Final

from gateway.access.access_file import NOTHING, AccessFile
from gateway.access.key_records import KeyRecord, Scope
from gateway.access.raises import Raise, active_raises, decode_raises, raised_amounts
from gateway.access.subject_records import SubjectRecord
from gateway.calendar import UTC_CALENDAR, Calendar
from gateway.errors import StoreUnavailable
from gateway.images import LimitRule, LimitSubject
from gateway.store.batch import Batch, Result
from gateway.store.commands import Get
from gateway.store.protocol import Store
from gateway.stored import read_stored

TEAMS: Final = "teams"
ACCESS: Final = "access"
EVERYONE: Final = "everyone"
"""The name of the record in the space `access`, and of the limit subject."""
GENERATION: Final = "generation"
RAISES: Final = "raises"

_NO_SUBJECT: Final = SubjectRecord()


@dataclass(frozen=True, slots=True)
class StoredSubjects:
    """What the store has on the limit subjects of a key."""

    generation: bytes = b""
    """b"" if none was ever written. What was read is at least as new."""
    everyone: SubjectRecord | None = None
    team: SubjectRecord | None = None
    raises: Mapping[str, tuple[Raise, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """By the name of the limit subject."""


@dataclass(frozen=True, slots=True)
class ResolvedKey:
    """What follows for a key from its team, everyone and the raises."""

    subjects: tuple[LimitSubject, ...]
    """The key, its team if it has one, and everyone."""
    models: frozenset[str] | None
    """Those that both the key and its team may use; None for all."""
    scope: Scope | None
    labels: Mapping[str, str]
    fresh_until: float
    """Unix seconds until which this holds: a raise ends then."""


class Subjects:
    """Reads limit subjects, and resolves what holds for a key."""

    def __init__(
        self,
        store: Store,
        *,
        declared: Callable[[], AccessFile] = lambda: NOTHING,
        calendar: Calendar = UTC_CALENDAR,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self.declared: Final = declared
        """What `access.yaml` declares now."""
        self.calendar: Final = calendar
        self._clock = clock

    async def read(self, record: KeyRecord) -> StoredSubjects:
        """What the store has for a key, in one round trip. Raises `StoreUnavailable`."""
        batch = Batch(self._store)
        # The generation first: if something changes in between, it is too old, and the next
        # admission notices that.
        generation = batch.add(Get(ACCESS, GENERATION))
        everyone = batch.add(Get(ACCESS, EVERYONE))
        team = batch.add(Get(TEAMS, record.team)) if record.team is not None else None
        raises = {name: batch.add(Get(RAISES, name)) for name in _subject_names(record)}
        await batch.execute()
        return StoredSubjects(
            generation.value or b"",
            everyone=read_subject("everyone", everyone.value),
            team=read_subject(f"team {record.team}", team.value) if team is not None else None,
            raises={name: read_raises(name, found.value) for name, found in _present(raises)},
        )

    def resolve(self, record: KeyRecord, stored: StoredSubjects) -> ResolvedKey:
        """What holds for a key now."""
        declared, now = self.declared(), self._clock()
        everyone = declared.everyone or stored.everyone or _NO_SUBJECT
        team = declared.teams.get(record.team or "") or stored.team or _NO_SUBJECT
        fresh_until = math.inf

        def rules(name: str, of: KeyRecord | SubjectRecord) -> dict[str, LimitRule]:
            nonlocal fresh_until
            active, first_end = active_raises(stored.raises.get(name, ()), self.calendar, now)
            fresh_until = min(fresh_until, first_end)
            return of.limit_rules(raised_amounts(active))

        key_name, team_name = f"key:{record.id}", f"team:{record.team}"
        subjects = [LimitSubject(key_name, "key", record.name, rules(key_name, record))]
        if record.team is not None:
            subjects.append(LimitSubject(team_name, "team", record.team, rules(team_name, team)))
        subjects.append(LimitSubject(EVERYONE, "everyone", "", rules(EVERYONE, everyone)))
        return ResolvedKey(
            tuple(subjects),
            models=_common(record.models, team.models),
            scope=record.scope or team.scope,
            labels={**(team.labels or {}), **(record.labels or {})},
            fresh_until=fresh_until,
        )


def read_subject(what: str, data: bytes | None) -> SubjectRecord | None:
    """The record of a team or of everyone; None if there is none.

    Raises `StoreUnavailable` if it is unreadable: without its limits, nobody may buy.
    """
    if data is None:
        return None
    record = read_stored("limit_subject", data, SubjectRecord.decode, name=what)
    if record is None:
        raise StoreUnavailable(
            f"The gateway's record of {what} is unreadable.", reason=f"{what} is unreadable"
        )
    return record


def read_raises(name: str, data: bytes | None) -> tuple[Raise, ...]:
    """The raises of a limit subject. Unreadable ones add nothing."""
    return () if data is None else read_stored("raises", data, decode_raises, name=name) or ()


def _subject_names(record: KeyRecord) -> tuple[str, ...]:
    team = () if record.team is None else (f"team:{record.team}",)
    return f"key:{record.id}", *team, EVERYONE


def _present(found: Mapping[str, Result[bytes | None]]) -> list[tuple[str, Result[bytes | None]]]:
    return [(name, result) for name, result in found.items() if result.value is not None]


def _common(*allowed: tuple[str, ...] | None) -> frozenset[str] | None:
    """The models that all allow; None if all allow every model."""
    sets = [frozenset(models) for models in allowed if models is not None]
    return reduce(frozenset.intersection, sets) if sets else None

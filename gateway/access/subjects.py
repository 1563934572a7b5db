"""Limit subjects: whose limits hold for a key, from the store and from `access.yaml`.

The store has teams in the space `teams`, everyone as `everyone` in the space `access`, and raises
in the space `raises` under the subject's name. Each change of one of them also writes another
`generation` in the space `access`. An admission compares that with the generation that its
principal was made of, so a change takes effect from the next request on. What a file declares comes
before what the store has.
"""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from types import MappingProxyType
from typing import Final, TypeVar

from gateway.access.access_file import NOTHING, AccessFile
from gateway.access.key_records import KeyRecord, Scope
from gateway.access.raises import Raise, active_raises, decode_raises, raised_amounts
from gateway.access.subject_records import SubjectRecord
from gateway.calendar import UTC_CALENDAR, Calendar
from gateway.errors import GatewayError, StoreUnavailable
from gateway.images import LimitRule, LimitSubject
from gateway.store.batch import Batch, Result, execute
from gateway.store.commands import CompareAndSet, Get, Write
from gateway.store.pages import scan_records
from gateway.store.protocol import Store
from gateway.stored import read_stored

TEAMS: Final = "teams"
ACCESS: Final = "access"
EVERYONE: Final = "everyone"
"""The name of the record in the space `access`, and of the limit subject."""
GENERATION: Final = "generation"
RAISES: Final = "raises"

WRITE_ATTEMPTS: Final = 20
RETRY_SECONDS: Final = 0.01

T = TypeVar("T")

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
class AllSubjects:
    """What the store has on all limit subjects."""

    everyone: SubjectRecord | None
    teams: Mapping[str, SubjectRecord]
    raises: Mapping[str, tuple[Raise, ...]]

    def of_key(self, record: KeyRecord) -> StoredSubjects:
        """The part that a key needs. It has no generation, so no admission can use it."""
        team = self.teams.get(record.team) if record.team is not None else None
        return StoredSubjects(everyone=self.everyone, team=team, raises=self.raises)


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
        self._changing = asyncio.Lock()

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

    async def read_all(self) -> AllSubjects:
        """What the store has on all of them. Raises `StoreUnavailable`."""
        everyone = read_subject("everyone", await execute(self._store, Get(ACCESS, EVERYONE)))
        teams: dict[str, SubjectRecord] = {}
        raises: dict[str, tuple[Raise, ...]] = {}
        async for page in scan_records(self._store, TEAMS):
            # One that is unreadable is left out: it must not hide the others.
            found = {name: decode_subject(f"team {name}", data) for name, data in page.items()}
            teams |= {name: record for name, record in found.items() if record is not None}
        async for page in scan_records(self._store, RAISES):
            raises |= {name: read_raises(name, data) for name, data in page.items()}
        return AllSubjects(everyone, teams, raises)

    def team_subject(
        self, name: str, found: AllSubjects, *, at: float | None = None
    ) -> LimitSubject:
        """A team with its limits, and the raises that hold at a time, or now."""
        record = self.declared().teams.get(name) or found.teams.get(name) or _NO_SUBJECT
        subject = f"team:{name}"
        rules = self._rules(record, found.raises.get(subject), at)
        return LimitSubject(subject, "team", name, rules)

    def everyone_subject(self, found: AllSubjects, *, at: float | None = None) -> LimitSubject:
        """Everyone, with the limits, and the raises that hold at a time, or now."""
        record = self.declared().everyone or found.everyone or _NO_SUBJECT
        rules = self._rules(record, found.raises.get(EVERYONE), at)
        return LimitSubject(EVERYONE, "everyone", "", rules)

    def _rules(
        self, record: SubjectRecord, raises: tuple[Raise, ...] | None, at: float | None
    ) -> dict[str, LimitRule]:
        moment = self._clock() if at is None else at
        active, _ = active_raises(raises or (), self.calendar, moment)
        return record.limit_rules(raised_amounts(active))

    async def commit(self, make: Callable[[], Awaitable[tuple[T, Sequence[Write]]]]) -> T:
        """Makes the writes, and begins another generation, in one step; returns `make`'s result.

        If something changes at the same time, `make` reads and checks again. Raises `GatewayError`
        409 if that happens too often.
        """
        # All changes write the generation: those of this process would keep each other from it.
        async with self._changing:
            return await self._commit(make)

    async def _commit(self, make: Callable[[], Awaitable[tuple[T, Sequence[Write]]]]) -> T:
        for attempt in range(WRITE_ATTEMPTS):
            # Before `make` reads: whatever changes after this makes the compare-and-set fail.
            generation = await execute(self._store, Get(ACCESS, GENERATION))
            result, writes = await make()
            if not writes:
                return result  # nothing changes
            begun = secrets.token_hex(8).encode()
            changes = (Write(ACCESS, GENERATION, begun, expected=generation), *writes)
            if await execute(self._store, CompareAndSet(changes)) is None:
                return result
            # Not all of them at the same time again.
            await asyncio.sleep(random.random() * RETRY_SECONDS * (attempt + 1))  # noqa: S311
        raise GatewayError("Other requests are changing teams or limits. Try again.", status=409)

    def resolve(
        self, record: KeyRecord, stored: StoredSubjects, *, at: float | None = None
    ) -> ResolvedKey:
        """What holds for a key, with the raises that hold at a time, or now."""
        declared, now = self.declared(), self._clock() if at is None else at
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

    Raises `StoreUnavailable` if it is unreadable: no key may buy without knowing its limits.
    """
    record = decode_subject(what, data)
    if record is None and data is not None:
        raise StoreUnavailable(
            f"The gateway's record of {what} is unreadable.", reason=f"{what} is unreadable"
        )
    return record


def decode_subject(what: str, data: bytes | None) -> SubjectRecord | None:
    """The record of a team or of everyone; None if there is none, or if it is unreadable."""
    if data is None:
        return None
    return read_stored("limit_subject", data, SubjectRecord.decode, name=what)


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

"""Teams: made, changed and removed by an administrator, or declared by `access.yaml`.

A team exists as soon as an active key names it. A record is only needed for what its keys have in
common: limits, models, a cache scope, labels.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from gateway.access.audit import Actor, AuditEvent, audit_write, changed_fields
from gateway.access.keys import Keys
from gateway.access.subject_records import NewTeam, SubjectRecord
from gateway.access.subjects import RAISES, TEAMS, Subjects, decode_subject, read_subject
from gateway.errors import INVALID_REQUEST, ErrorCode, GatewayError, shorten_name
from gateway.store.batch import execute
from gateway.store.commands import Get, Write
from gateway.store.protocol import Store

T = TypeVar("T")

MAX_NAMED: Final = 5
"""Keys that a message names."""


@dataclass(frozen=True, slots=True)
class Team:
    """A team for the admin API and the command line."""

    record: SubjectRecord
    keys: int
    """Active ones that are in it."""
    declared_in: str | None = None
    """The name of the file that declares it."""

    def public(self) -> dict[str, Any]:
        """All of its fields."""
        shown = {**self.record.public(), "keys": self.keys}
        return shown if self.declared_in is None else {**shown, "declared_in": self.declared_in}


class Teams:
    """Lists and changes teams."""

    def __init__(
        self,
        store: Store,
        subjects: Subjects,
        keys: Keys,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._subjects = subjects
        self._keys = keys
        self._clock = clock

    async def list_teams(self) -> Sequence[Team]:
        """All teams, by name. Raises `StoreUnavailable`."""
        return await self.map_teams(lambda team: team)

    async def map_teams(self, convert: Callable[[Team], T]) -> Sequence[T]:
        """As `list_teams`, each converted in a thread, where thousands delay no request."""
        members = await self._members()
        stored = (await self._subjects.read_all()).teams

        def convert_all() -> list[T]:
            names = sorted({*members, *stored, *self._subjects.declared().teams})
            teams = (self._team(n, stored.get(n), len(members.get(n, ()))) for n in names)
            return [convert(team) for team in teams]

        return await asyncio.to_thread(convert_all)

    async def show(self, name: str) -> Team:
        """One team. Raises `GatewayError` 404."""
        stored, members = await self._read(name), (await self._members()).get(name, ())
        if stored is None and not members and name not in self._subjects.declared().teams:
            raise _not_found(name)
        return self._team(name, stored, len(members))

    async def create(self, spec: NewTeam, *, actor: Actor) -> Team:
        """Makes a team; keys may be in it already. Raises `GatewayError` 409 for its name."""
        self._refuse_declared(spec.name)
        record = SubjectRecord(
            name=spec.name, created_at=int(self._clock()), **spec.record_fields()
        )

        async def make() -> tuple[SubjectRecord, Sequence[Write]]:
            if await self._read(spec.name) is not None:
                raise GatewayError(
                    f"There is a team '{spec.name}' already.",
                    type=INVALID_REQUEST,
                    code=ErrorCode.NAME_TAKEN,
                )
            event = self._event(actor, "team.create", record.name, None, record.public())
            write = Write(TEAMS, record.name, record.encode(), expected=None)
            return record, (write, event)

        made = await self._subjects.commit(make)
        return self._team(made.name, made, len((await self._members()).get(made.name, ())))

    async def change(self, name: str, changes: Mapping[str, Any], *, actor: Actor) -> Team:
        """Merges `changes` into a team; None removes a field, one limit or one label.

        Raises `InvalidRequest`, or `GatewayError` 404 or 409.
        """
        self._refuse_declared(name)
        # One that only keys name gets a record now.
        keys = (await self.show(name)).keys

        async def make() -> tuple[SubjectRecord, Sequence[Write]]:
            data = await execute(self._store, Get(TEAMS, name))
            old = read_subject(f"team {name}", data) or SubjectRecord(name=name)
            new = old.merge(changes)
            if new == old:
                return old, ()
            if data is None:
                new = new.model_copy(update={"created_at": int(self._clock())})
            before, after = changed_fields(old.public(), new.public())
            event = self._event(actor, "team.change", name, before, after)
            return new, (Write(TEAMS, name, new.encode(), expected=data), event)

        return self._team(name, await self._subjects.commit(make), keys)

    async def remove(self, name: str, *, actor: Actor) -> None:
        """Removes a team. Raises `GatewayError` 404, or 409 while active keys are in it."""
        self._refuse_declared(name)

        async def make() -> tuple[None, Sequence[Write]]:
            data = await execute(self._store, Get(TEAMS, name))
            members = (await self._members()).get(name, ())
            if members:
                raise _has_keys(name, members)
            if data is None:
                raise _not_found(name)
            # Its raises would hold for a later team of the same name.
            raises = await execute(self._store, Get(RAISES, f"team:{name}"))
            writes = [Write(TEAMS, name, None, expected=data)]
            if raises is not None:
                writes.append(Write(RAISES, f"team:{name}", None, expected=raises))
            old = decode_subject(f"team {name}", data)
            before = old.public() if old is not None else None
            return None, (*writes, self._event(actor, "team.remove", name, before, None))

        await self._subjects.commit(make)

    async def _read(self, name: str) -> SubjectRecord | None:
        return read_subject(f"team {name}", await execute(self._store, Get(TEAMS, name)))

    async def _members(self) -> Mapping[str, Sequence[str]]:
        """The names of the active keys by team."""
        now = self._clock()
        found = await self._keys.map_keys(
            lambda record: (record.team, record.name) if record.is_active(now) else None
        )

        def by_team() -> Mapping[str, Sequence[str]]:
            members: dict[str, list[str]] = {}
            for team, key in filter(None, found):
                if team is not None:
                    members.setdefault(team, []).append(key)
            return members

        return await asyncio.to_thread(by_team)

    def _team(self, name: str, stored: SubjectRecord | None, keys: int) -> Team:
        declared = self._subjects.declared()
        if (record := declared.teams.get(name)) is not None:
            return Team(record, keys, declared_in=declared.name)
        return Team(stored or SubjectRecord(name=name), keys)

    def _refuse_declared(self, name: str) -> None:
        declared = self._subjects.declared()
        if name in declared.teams:
            raise declared.refuse(f"team '{name}'")

    def _event(
        self,
        actor: Actor,
        action: str,
        name: str,
        before: Mapping[str, Any] | None,
        after: Mapping[str, Any] | None,
    ) -> Write:
        return audit_write(
            AuditEvent(actor, action, f"team:{name}", before, after, time=self._clock())
        )


def _not_found(name: str) -> GatewayError:
    return GatewayError(
        f"There is no team '{shorten_name(name)}'.",
        type=INVALID_REQUEST,
        code=ErrorCode.TEAM_NOT_FOUND,
    )


def _has_keys(name: str, members: Sequence[str]) -> GatewayError:
    shown = ", ".join(f"'{key}'" for key in members[:MAX_NAMED])
    more = f" and {len(members) - MAX_NAMED} more" if len(members) > MAX_NAMED else ""
    return GatewayError(
        f"Team '{name}' has active keys: {shown}{more}. Revoke them, or move them to another team.",
        type=INVALID_REQUEST,
        code=ErrorCode.TEAM_HAS_KEYS,
    )

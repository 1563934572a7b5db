"""The limits and raises of a key, a team or everyone, by their scope."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.access.audit import Actor, AuditEvent, audit_write, changed_fields
from gateway.access.key_records import KeyRecord
from gateway.access.key_spaces import KEYS, NAMES, decode_key
from gateway.access.keys import Keys
from gateway.access.limit_values import LimitValue, as_number, in_units, largest
from gateway.access.raises import (
    MAX_RAISES,
    BadRaise,
    Raise,
    active_raises,
    decode_raises,
    encode_raises,
    parse_raise,
    raised_amounts,
)
from gateway.access.specs import parse_model
from gateway.access.subject_records import EveryoneSpec, SubjectRecord
from gateway.access.subjects import ACCESS, EVERYONE, RAISES, Subjects, read_raises, read_subject
from gateway.access.teams import Teams
from gateway.errors import (
    INVALID_REQUEST,
    ErrorCode,
    GatewayError,
    InvalidRequest,
    StoreUnavailable,
    shorten_name,
)
from gateway.images import LimitSubject, LimitSubjectKind
from gateway.store.batch import execute
from gateway.store.commands import CompareAndSet, Get, Write
from gateway.store.pages import scan_records
from gateway.store.protocol import Store
from gateway.stored import read_stored

KEEP_RAISES_SECONDS: Final = 35 * 86_400
"""How long a raise that has ended stays in the store."""


@dataclass(frozen=True, slots=True)
class ScopeLimits:
    """The limits of one scope as they are now."""

    subject: LimitSubject
    """With the raises that hold now."""
    values: Mapping[str, LimitValue]
    """As they are set, without raises."""
    raises: Sequence[Raise]
    """Those that hold now."""
    declared_in: str | None
    """The name of the file that declares the limits."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A key, a team or everyone, as it is stored or declared."""

    kind: LimitSubjectKind
    name: str
    """Of the limit subject."""
    shown_as: str
    record: KeyRecord | SubjectRecord
    is_declared: bool
    stored: bytes | None = None
    """The record of a key in the store."""

    @property
    def scope(self) -> str:
        return f"{self.kind}:{self.shown_as}" if self.shown_as else self.kind


class LimitChanges:
    """Shows, sets and raises limits."""

    def __init__(
        self,
        store: Store,
        subjects: Subjects,
        *,
        keys: Keys,
        teams: Teams,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._subjects = subjects
        self._keys = keys
        self._teams = teams
        self._clock = clock

    async def show(self, scope: str) -> ScopeLimits:
        """The limits of a scope. Raises `InvalidRequest`, or `GatewayError` 404."""
        found = await self._find(scope)
        active = self._active(await self._read_raises(found.name))
        rules = found.record.limit_rules(raised_amounts(active))
        declared = self._subjects.declared()
        return ScopeLimits(
            LimitSubject(found.name, found.kind, found.shown_as, rules),
            found.record.limit_values,
            active,
            declared_in=declared.name if found.is_declared else None,
        )

    async def of_keys(self, records: Sequence[KeyRecord]) -> Mapping[str, LimitSubject]:
        """Keys as limit subjects, with the raises that hold now, by id."""
        stored = await self._subjects.read_all()

        def resolve() -> dict[str, LimitSubject]:
            found = ((r.id, self._subjects.resolve(r, stored.of_key(r))) for r in records)
            return {key_id: resolved.subjects[0] for key_id, resolved in found}

        # In a thread: a thousand keys take tens of milliseconds.
        return await asyncio.to_thread(resolve)

    async def of_teams(self, names: Sequence[str]) -> Mapping[str, LimitSubject]:
        """Teams as limit subjects, with the raises that hold now, by name."""
        stored = await self._subjects.read_all()
        return await asyncio.to_thread(
            lambda: {name: self._subjects.team_subject(name, stored) for name in names}
        )

    async def set(self, scope: str, limits: object, *, actor: Actor) -> ScopeLimits:
        """Merges limits into those of a scope; None removes one.

        Raises `InvalidRequest`, or `GatewayError` 404 or 409.
        """
        found, changes = await self._find(scope), {"limits": limits}
        parse_model(EveryoneSpec, {"limits": {}} if isinstance(limits, Mapping) else changes)
        if found.kind == "key":
            await self._keys.change(found.name.removeprefix("key:"), changes, actor=actor)
        elif found.kind == "team":
            await self._teams.change(found.shown_as, changes, actor=actor)
        else:
            await self._set_everyone(changes, actor)
        return await self.show(scope)

    async def _set_everyone(self, changes: Mapping[str, Any], actor: Actor) -> None:
        if (declared := self._subjects.declared()).everyone is not None:
            raise declared.refuse("the limits of everyone")

        async def make() -> tuple[None, Sequence[Write]]:
            data = await execute(self._store, Get(ACCESS, EVERYONE))
            old = read_subject("everyone", data) or SubjectRecord()
            new = old.merge(changes)
            if new == old:
                return None, ()
            before, after = changed_fields(old.public(), new.public())
            event = self._event(actor, "limits.change", EVERYONE, before, after)
            return None, (Write(ACCESS, EVERYONE, new.encode(), expected=data), event)

        await self._subjects.commit(make)

    # ── raises ──────────────────────────────────────────────────────────────────────────────

    async def add_raise(self, scope: str, fields: Mapping[str, Any], *, actor: Actor) -> Raise:
        """Adds to a limit until the end of a day; also to one that a file declares.

        Raises `InvalidRequest`, or `GatewayError` 404.
        """
        now = self._clock()
        try:
            checked = parse_raise(fields, self._subjects.calendar, now)
        except BadRaise as error:
            raise _invalid(error.param, str(error)) from None
        raised = Raise(
            id=f"raise_{secrets.token_hex(8)}", by=actor.by, created_at=int(now), **checked
        )

        async def make() -> tuple[Raise, Sequence[Write]]:
            found = await self._find(scope)
            data = await execute(self._store, Get(RAISES, found.name))
            raises = self._kept(_readable_raises(found, data))
            self._check(found, self._active(raises), raised)
            writes = [
                Write(RAISES, found.name, encode_raises((*raises, raised)), expected=data),
                self._event(actor, "limits.raise", found.scope, None, raised.public()),
            ]
            if found.stored is not None:
                # The key still has the limit, and is not revoked.
                of_key = found.name.removeprefix("key:")
                writes.append(Write(KEYS, of_key, found.stored, expected=found.stored))
            return raised, writes

        return await self._subjects.commit(make)

    def _check(self, found: _Found, active: Sequence[Raise], raised: Raise) -> None:
        values = found.record.limit_values
        if (value := values.get(raised.limit)) is None:
            known = ", ".join(values) or "none"
            raise _invalid(
                "limit",
                f"Invalid 'limit': {_named(found)} has no limit '{raised.limit}' that could be "
                f"raised. It has: {known}.",
            )
        if len(active) >= MAX_RAISES:
            raise _invalid("scope", f"{_named(found)} has {MAX_RAISES} raises already.")
        total = value.maximum + raised_amounts((*active, raised))[raised.limit]
        if in_units(raised.limit, total) > largest(raised.limit):
            raise _invalid(
                "amount", f"Invalid 'amount': the limit would be too large: {as_number(total)}."
            )

    async def remove_raise(self, raise_id: str, *, actor: Actor) -> None:
        """Ends a raise before its time. Raises `GatewayError` 404."""

        async def make() -> tuple[None, Sequence[Write]]:
            async for page in scan_records(self._store, RAISES):
                for name, data in page.items():
                    raises = read_raises(name, data)
                    ended = next((r for r in self._active(raises) if r.id == raise_id), None)
                    if ended is not None:
                        left = encode_raises([r for r in raises if r.id != raise_id])
                        scope = await self._scope_of(name)
                        event = self._event(actor, "limits.raise_end", scope, ended.public(), None)
                        return None, (Write(RAISES, name, left, expected=data), event)
            raise GatewayError(
                f"There is no raise with the id '{shorten_name(raise_id)}'.",
                type=INVALID_REQUEST,
                code=ErrorCode.RAISE_NOT_FOUND,
            )

        await self._subjects.commit(make)

    async def forget_ended(self) -> int:
        """Deletes raises that ended long ago; returns how many limit subjects had some."""
        deleted = 0
        async for page in scan_records(self._store, RAISES):
            for name, data in page.items():
                # Unreadable ones are of a newer gateway, or damaged, and stay.
                raises = read_stored("raises", data, decode_raises, name=name) or ()
                kept = self._kept(raises)
                if len(kept) < len(raises):
                    # No other generation: what has ended holds for nothing.
                    write = Write(RAISES, name, encode_raises(kept), expected=data)
                    deleted += await execute(self._store, CompareAndSet((write,))) is None
        return deleted

    def _active(self, raises: Sequence[Raise]) -> Sequence[Raise]:
        return active_raises(raises, self._subjects.calendar, self._clock())[0]

    def _kept(self, raises: Sequence[Raise]) -> Sequence[Raise]:
        before = self._clock() - KEEP_RAISES_SECONDS
        return active_raises(raises, self._subjects.calendar, before)[0]

    async def _read_raises(self, name: str) -> Sequence[Raise]:
        return read_raises(name, await execute(self._store, Get(RAISES, name)))

    # ── scopes ──────────────────────────────────────────────────────────────────────────────

    async def _find(self, scope: str) -> _Found:
        kind, _, name = scope.partition(":")
        if scope == EVERYONE:
            return await self._find_everyone()
        if kind == "team" and name:
            team = await self._teams.show(name)
            is_declared = team.declared_in is not None
            return _Found("team", scope, name, team.record, is_declared)
        if kind == "key" and name:
            return await self._find_key(name)
        shown = shorten_name(scope)
        raise _invalid(
            "scope", f"Invalid 'scope': expected everyone, team:NAME or key:NAME, not '{shown}'."
        )

    async def _find_everyone(self) -> _Found:
        declared = self._subjects.declared().everyone
        if declared is not None:
            return _Found("everyone", EVERYONE, "", declared, is_declared=True)
        stored = read_subject("everyone", await execute(self._store, Get(ACCESS, EVERYONE)))
        return _Found("everyone", EVERYONE, "", stored or SubjectRecord(), is_declared=False)

    async def _find_key(self, name: str) -> _Found:
        """The key that has the name, else the one with this id."""
        declared = self._subjects.declared()
        known = declared.keys.get(name) or declared.ids.get(name)
        if known is not None:
            return _Found("key", f"key:{known.id}", known.name, known, is_declared=True)
        data = await execute(self._store, Get(KEYS, name, index=NAMES))
        data = data or await execute(self._store, Get(KEYS, name))
        record = decode_key(data)
        if record is None:
            raise GatewayError(
                f"There is no active key '{shorten_name(name)}'.",
                type=INVALID_REQUEST,
                code=ErrorCode.KEY_NOT_FOUND,
            )
        subject = f"key:{record.id}"
        return _Found("key", subject, record.name, record, is_declared=False, stored=data)

    async def _scope_of(self, subject: str) -> str:
        """The scope of a limit subject; a key without a record is named by its id."""
        kind, _, key_id = subject.partition(":")
        if kind != "key":
            return subject
        if (declared := self._subjects.declared().ids.get(key_id)) is not None:
            return f"key:{declared.name}"
        data = await execute(self._store, Get(KEYS, key_id))
        record = decode_key(data)
        return subject if record is None else f"key:{record.name}"

    def _event(
        self,
        actor: Actor,
        action: str,
        scope: str,
        before: Mapping[str, Any] | None,
        after: Mapping[str, Any] | None,
    ) -> Write:
        return audit_write(AuditEvent(actor, action, scope, before, after, time=self._clock()))


def _readable_raises(found: _Found, data: bytes | None) -> Sequence[Raise]:
    """The raises, to write them again. Raises `StoreUnavailable` if that would lose some."""
    if data is None:
        return ()
    raises = read_stored("raises", data, decode_raises, name=found.name)
    if raises is None:
        raise StoreUnavailable(
            f"The gateway's raises of {found.scope} are unreadable.",
            reason=f"raises of {found.scope} are unreadable",
        )
    return raises


def _named(found: _Found) -> str:
    if found.kind == "everyone":
        return "Everyone"
    return f"{found.kind.capitalize()} '{found.shown_as}'"


def _invalid(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code=ErrorCode.INVALID_VALUE)

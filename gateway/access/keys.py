"""Virtual keys: authentication and administration."""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from gateway.access.key_records import (
    SHOWN_PREFIX,
    KeyRecord,
    KeySpec,
    Scope,
    SecretHash,
    Validation,
    _fields,
    _in_units,
    _merged,
)
from gateway.errors import GatewayError, IncorrectKey, StoreUnavailable
from gateway.images import LimitSubject, Reuse
from gateway.store.batch import execute
from gateway.store.commands import CompareAndSet, Get, ReadRecords, Write
from gateway.store.protocol import Store

KEYS: Final = "keys"
SECRETS: Final = "secrets"
NAMES: Final = "names"

SECRET_PREFIX: Final = "gk-"  # noqa: S105 - what every secret starts with
MAX_KNOWN: Final = 10_000
"""Records that one worker keeps in memory."""
TRUST_SECONDS: Final = 3600.0
"""How long a key is trusted while the store is away (CONTRACT §6, *Store down*)."""
WRITE_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class Key:
    """A key that may be used right now."""

    subject: LimitSubject
    models: frozenset[str] | None
    """The models that it may use; None for all."""
    validation: Validation | None
    """None for what the gateway is set to."""
    scope: Scope | None
    """None for what the gateway is set to."""
    reuse: Reuse
    allow_no_cache: bool
    """Whether its requests may ask for other images than those that there are."""
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class _Known:
    """What a secret opens, as this worker has last seen it."""

    key: Key
    ends_at: float
    """Unix seconds from which on it opens nothing; in the past for a revoked key."""


class Keys:
    """Makes, changes and recognises keys."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()  # by the hash of a secret
        self._confirmed_at: dict[str, float] = {}  # by key id

    async def authenticate(self, secret: str) -> Key:
        """The key that this secret opens; from memory when this worker has seen it before.

        Raises the 401 of WIRE §2 row 2 when there is none, or it is revoked or expired.
        """
        hashed = _hash(secret)
        known = self._known.get(hashed)
        if known is None or known.ends_at <= self._clock():
            known = await self._fetch(hashed)
        if known is None or known.ends_at <= self._clock():
            raise IncorrectKey(secret)
        return known.key

    async def confirm(self, secret: str) -> Key:
        """`authenticate` by the store's word, for a request that no admission will look at.

        While the store is away, what this worker remembers holds.
        """
        hashed = _hash(secret)
        with suppress(StoreUnavailable):
            if await self._fetch(hashed) is None:
                self._known.pop(hashed, None)
        return await self.authenticate(secret)

    def mark_confirmed(self, key: Key) -> None:
        """The store has just said that this key is what we think it is."""
        self._confirmed_at[key.subject.key_id] = self._clock()

    def is_trusted_without_store(self, key: Key) -> bool:
        """Whether its word holds while the store is away: it was confirmed within the hour."""
        confirmed_at = self._confirmed_at.get(key.subject.key_id, 0.0)
        return confirmed_at > self._clock() - TRUST_SECONDS

    def update(self, secret: str, record: bytes) -> None:
        """Takes note of a record that an admission found to be newer; b"" when it is gone."""
        self._known.pop(_hash(secret), None)
        if record:
            self._remember(_hash(secret), record)

    async def _fetch(self, hashed: str) -> _Known | None:
        data = await execute(self._store, Get(KEYS, hashed, index=SECRETS))
        return None if data is None else self._remember(hashed, data)

    def _remember(self, hashed: str, data: bytes) -> _Known:
        known = self._known[hashed] = _know(data, hashed)
        if len(self._known) > MAX_KNOWN:
            _, gone = self._known.popitem(last=False)
            self._confirmed_at.pop(gone.key.subject.key_id, None)
        return known

    async def create(self, spec: KeySpec) -> tuple[KeyRecord, str]:
        """Makes a key; its secret is never to be had again. 409 when the name is taken."""
        secret = SECRET_PREFIX + secrets.token_urlsafe(32)
        record = KeyRecord(
            id="key_" + secrets.token_hex(12),
            prefix=secret[:SHOWN_PREFIX],
            secrets=(SecretHash(sha256=_hash(secret)),),
            created_at=int(self._clock()),
            **_fields(spec),
        )
        for _ in range(WRITE_ATTEMPTS):
            holder = await self._holder_of(spec.name)
            changes = (
                Write(NAMES, record.name, record.id.encode(), expected=holder),
                Write(KEYS, record.id, record.encode(), expected=None),
                Write(SECRETS, _hash(secret), record.id.encode(), expected=None),
            )
            if await execute(self._store, CompareAndSet(changes)) is None:
                return record, secret
        raise _name_taken(spec.name)

    async def _holder_of(self, name: str) -> bytes | None:
        """What stands under a name that is free to take: nothing, or a key past its life."""
        holder = await execute(self._store, Get(NAMES, name))
        if holder is not None and await self._is_live(holder.decode()):
            raise _name_taken(name)
        return holder

    async def _is_live(self, key_id: str) -> bool:
        data = await execute(self._store, Get(KEYS, key_id))
        return data is not None and self._lives(KeyRecord.decode(data))

    async def list_keys(self) -> Sequence[KeyRecord]:
        """All keys, revoked ones among them, oldest first."""
        found = await execute(self._store, ReadRecords(KEYS))
        return sorted(map(KeyRecord.decode, found.values()), key=lambda r: (r.created_at, r.name))

    async def change(self, key_id: str, fields: Mapping[str, Any]) -> KeyRecord:
        """Merges `fields` into a live key; `null` lifts a field or one limit. 404, 409, 400."""
        return await self._update(key_id, lambda record: _merged(record, fields))

    async def revoke(self, key_id: str) -> KeyRecord:
        """Ends a key; its name is free again. 404 when there is no live key of that id."""
        now = int(self._clock())
        return await self._update(key_id, lambda r: r.model_copy(update={"revoked_at": now}))

    async def _update(self, key_id: str, change: Callable[[KeyRecord], KeyRecord]) -> KeyRecord:
        for _ in range(WRITE_ATTEMPTS):
            data = await execute(self._store, Get(KEYS, key_id))
            old = KeyRecord.decode(data) if data is not None else None
            if old is None or old.revoked_at is not None:
                raise GatewayError(
                    f"No live key has the id '{key_id}'.",
                    status=404,
                    type="invalid_request_error",
                    code="key_not_found",
                )
            new = change(old)
            changes = [Write(KEYS, key_id, new.encode(), expected=data)]
            changes += await self._name_changes(old, new)
            if await execute(self._store, CompareAndSet(tuple(changes))) is None:
                return new
        raise GatewayError("The key is being changed by somebody else; try again.", status=409)

    async def _name_changes(self, old: KeyRecord, new: KeyRecord) -> list[Write]:
        """Names follow live keys: an ended or renamed key gives its name up, a live one needs one.

        The name of an expired key may be somebody else's by now; then it cannot come back to life
        under it.
        """
        holder = await execute(self._store, Get(NAMES, old.name))
        is_own, stays = holder == old.id.encode(), new.name == old.name
        changes = []
        if is_own and (new.revoked_at is not None or not stays):
            changes.append(Write(NAMES, old.name, None, expected=holder))
        if self._lives(new) and not (is_own and stays):
            free = await self._holder_of(new.name)
            changes.append(Write(NAMES, new.name, new.id.encode(), expected=free))
        return changes

    def _lives(self, record: KeyRecord) -> bool:
        has_expired = record.expires_at is not None and record.expires_at <= self._clock()
        return record.revoked_at is None and not has_expired


def _know(data: bytes, hashed: str) -> _Known:
    """A key's record as the secret of that hash sees it."""
    record = KeyRecord.decode(data)
    opens = [s for s in record.secrets if hmac.compare_digest(s.sha256, hashed)]
    ends = [record.expires_at, *(s.expires_at for s in opens[:1])]
    is_over = not opens or record.revoked_at is not None
    return _Known(
        Key(
            subject=LimitSubject(
                key_id=record.id,
                key_name=record.name,
                team=record.team,
                limits={name: _in_units(name, value) for name, value in record.limits.items()},
                record=data,
            ),
            models=None if record.models is None else frozenset(record.models),
            validation=record.validation,
            scope=record.scope,
            reuse=Reuse.parse(record.reuse or "always"),
            allow_no_cache=record.allow_no_cache is not False,
            expires_at=record.expires_at,
        ),
        ends_at=0.0 if is_over else min((at for at in ends if at is not None), default=math.inf),
    )


def _name_taken(name: str) -> GatewayError:
    return GatewayError(
        f"A live key is already named '{name}'.",
        status=409,
        type="invalid_request_error",
        param="name",
        code="name_taken",
    )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()

"""Keys: authentication and administration.

A secret is `gk-` and 256 random bits; the store only has its SHA-256. A key's record is one JSON
document (`access.key_records`) in the space `keys` under the key's id. The space `secrets` has the
id by the secret's hash, `names` the id by the name of an active key. A worker keeps the records
that it has seen. Every admission compares them with the store's, so a change or a revocation
takes effect from the next request on.
"""

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
    PREFIX_CHARACTERS,
    KeyRecord,
    KeySpec,
    Scope,
    SecretHash,
    Validation,
)
from gateway.errors import INVALID_REQUEST, ErrorCode, GatewayError, IncorrectKey, StoreUnavailable
from gateway.images import LimitSubject, Reuse
from gateway.store.batch import execute
from gateway.store.commands import CompareAndSet, Get, ReadRecords, Write
from gateway.store.protocol import Store
from gateway.stored import read_stored

KEYS: Final = "keys"
SECRETS: Final = "secrets"
NAMES: Final = "names"

SECRET_PREFIX: Final = "gk-"  # noqa: S105 - what every secret starts with
MAX_KNOWN: Final = 10_000
"""Keys that one worker keeps in memory."""
TRUST_SECONDS: Final = 3600.0
"""How long a key is trusted while the store is unavailable, see
`docs/reference/cache.md#store-unavailable`."""
WRITE_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class Key:
    """An active key."""

    subject: LimitSubject
    models: frozenset[str] | None
    """The models that it may use; None for all."""
    validation: Validation | None
    """None for the gateway's setting."""
    scope: Scope | None
    """None for the gateway's setting."""
    reuse: Reuse
    allow_no_cache: bool
    """Whether its requests may refuse cached images with `no-cache` or `max-age`."""
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class _KnownKey:
    """A secret's key as this worker has last read it."""

    key: Key
    ends_at: float
    """Unix seconds from which on the secret is refused; in the past for a revoked key."""


class Keys:
    """Authenticates, makes and changes keys."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._known: OrderedDict[str, _KnownKey] = OrderedDict()  # by secret hash
        self._confirmed_at: dict[str, float] = {}  # by key id

    # ── authentication ──────────────────────────────────────────────────────────────────────

    def find_known(self, secret: str) -> Key | None:
        """The key of a secret that this worker has in memory and that is active."""
        known = self._known.get(hash_secret(secret))
        return known.key if known is not None and known.ends_at > self._clock() else None

    async def authenticate(self, secret: str) -> Key:
        """The key of a secret, from memory if this worker has seen it before.

        Raises `IncorrectKey` if it is unknown, revoked or expired.
        """
        secret_hash = hash_secret(secret)
        known = self._known.get(secret_hash)
        # An expired key may have been given a later expiry in the store.
        if known is None or known.ends_at <= self._clock():
            known = await self._read(secret_hash)
        if known is None or known.ends_at <= self._clock():
            raise IncorrectKey(secret)
        return known.key

    async def confirm(self, secret: str) -> Key:
        """`authenticate` by the store, for a request that is not admitted.

        While the store is unavailable, the key is trusted as this worker knows it.
        """
        secret_hash = hash_secret(secret)
        with suppress(StoreUnavailable):
            if await self._read(secret_hash) is None:
                # Otherwise `authenticate` would find the key in memory.
                self._known.pop(secret_hash, None)
        return await self.authenticate(secret)

    def mark_confirmed(self, key: Key) -> None:
        """An admission has just found that this worker knows the key as the store has it."""
        self._confirmed_at[key.subject.key_id] = self._clock()

    def is_trusted_without_store(self, key: Key) -> bool:
        """Whether the key was confirmed within the last hour."""
        confirmed_at = self._confirmed_at.get(key.subject.key_id, 0.0)
        return confirmed_at > self._clock() - TRUST_SECONDS

    def update(self, secret: str, record: bytes) -> None:
        """Replaces a key by the newer record that an admission found; b"" if there is none."""
        secret_hash = hash_secret(secret)
        self._known.pop(secret_hash, None)
        if record:
            self._remember(secret_hash, record)

    async def _read(self, secret_hash: str) -> _KnownKey | None:
        data = await execute(self._store, Get(KEYS, secret_hash, index=SECRETS))
        return None if data is None else self._remember(secret_hash, data)

    def _remember_unknown(self, record: KeyRecord, data: bytes) -> None:
        for secret in record.secrets:
            if secret.sha256 not in self._known and len(self._known) < MAX_KNOWN:
                self._remember(secret.sha256, data)

    def _remember(self, secret_hash: str, data: bytes) -> _KnownKey | None:
        """The key of a record; None if the record is unreadable, and the key therefore unknown."""
        known = read_stored("key", data, lambda data: _known_key(data, secret_hash))
        if known is None:
            self._known.pop(secret_hash, None)
            return None
        self._known[secret_hash] = known
        if len(self._known) > MAX_KNOWN:
            _, oldest = self._known.popitem(last=False)
            self._confirmed_at.pop(oldest.key.subject.key_id, None)
        return known

    # ── administration ──────────────────────────────────────────────────────────────────────

    async def create(self, spec: KeySpec) -> tuple[KeyRecord, str]:
        """Makes a key; its secret cannot be read again. Raises `GatewayError` 409 for its name."""
        secret = SECRET_PREFIX + secrets.token_urlsafe(32)
        record = KeyRecord(
            id="key_" + secrets.token_hex(12),
            prefix=secret[:PREFIX_CHARACTERS],
            secrets=(SecretHash(sha256=hash_secret(secret)),),
            created_at=int(self._clock()),
            **spec.record_fields(),
        )
        # If two requests take the same name at once, the compare-and-set of one of them fails.
        for _ in range(WRITE_ATTEMPTS):
            # Nothing runs when a key expires, so it has the name until another key takes it.
            inactive_owner = await self._inactive_owner(spec.name)
            changes = (
                Write(NAMES, record.name, record.id.encode(), expected=inactive_owner),
                Write(KEYS, record.id, record.encode(), expected=None),
                Write(SECRETS, hash_secret(secret), record.id.encode(), expected=None),
            )
            if await execute(self._store, CompareAndSet(changes)) is None:
                return record, secret
        raise _name_taken(spec.name)

    async def list_keys(self) -> Sequence[KeyRecord]:
        """All keys, including revoked and expired ones, oldest first.

        This worker knows the active ones from now on, as far as it has room.
        """
        found = await execute(self._store, ReadRecords(KEYS))
        readable = (_decode(data) for data in found.values())
        records = sorted(
            (record for record in readable if record is not None),
            key=lambda r: (r.created_at, r.name),
        )
        for record in records:
            if record.id in found and record.is_active(self._clock()):
                self._remember_unknown(record, found[record.id])
        return records

    async def change(self, key_id: str, changes: Mapping[str, Any]) -> KeyRecord:
        """Merges `changes` into a key that is not revoked; None removes a field or one limit.

        Raises `InvalidRequest`, or `GatewayError` 404 or 409.
        """
        return await self._update(key_id, lambda record: record.merge(changes))

    async def revoke(self, key_id: str) -> KeyRecord:
        """Revokes a key and frees its name. Raises `GatewayError` 404 or 409."""
        now = int(self._clock())
        return await self._update(key_id, lambda r: r.model_copy(update={"revoked_at": now}))

    async def _update(self, key_id: str, change: Callable[[KeyRecord], KeyRecord]) -> KeyRecord:
        # If the key is changed at the same time, the compare-and-set fails, and the change is
        # applied to the newer record.
        for _ in range(WRITE_ATTEMPTS):
            data = await execute(self._store, Get(KEYS, key_id))
            old = _decode(data)
            if old is None or old.revoked_at is not None:
                raise GatewayError(
                    f"No active key has the id '{key_id}'.",
                    type=INVALID_REQUEST,
                    code=ErrorCode.KEY_NOT_FOUND,
                )
            new = change(old)
            changes = [Write(KEYS, key_id, new.encode(), expected=data)]
            changes += await self._name_changes(old, new)
            if await execute(self._store, CompareAndSet(tuple(changes))) is None:
                return new
        raise GatewayError("Another request is changing this key. Try again.", status=409)

    async def _name_changes(self, old: KeyRecord, new: KeyRecord) -> list[Write]:
        """The writes that keep the names those of active keys."""
        owner = await execute(self._store, Get(NAMES, old.name))
        is_own, is_same = owner == old.id.encode(), new.name == old.name
        changes = []
        if is_own and (new.revoked_at is not None or not is_same):
            changes.append(Write(NAMES, old.name, None, expected=owner))
        # An expired key that becomes active again needs its name, which may be another key's now.
        if new.is_active(self._clock()) and not (is_own and is_same):
            inactive_owner = await self._inactive_owner(new.name)
            changes.append(Write(NAMES, new.name, new.id.encode(), expected=inactive_owner))
        return changes

    async def _inactive_owner(self, name: str) -> bytes | None:
        """The id of an inactive key that still has a name. Raises 409 if an active key has it."""
        owner = await execute(self._store, Get(NAMES, name))
        if owner is None:
            return None
        data = await execute(self._store, Get(KEYS, owner.decode()))
        record = _decode(data)
        if record is not None and record.is_active(self._clock()):
            raise _name_taken(name)
        return owner


def hash_secret(secret: str) -> str:
    """The SHA-256 of a secret, hex: all that is stored of it."""
    # A fast hash is enough, because a secret has 256 random bits. A header with bytes that are not
    # UTF-8 arrives with lone surrogates, which only `surrogatepass` encodes.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _decode(data: bytes | None) -> KeyRecord | None:
    """The record; None if there is none, or if it is unreadable."""
    return None if data is None else read_stored("key", data, KeyRecord.decode)


def _known_key(data: bytes, secret_hash: str) -> _KnownKey:
    record = KeyRecord.decode(data)
    matching = [s for s in record.secrets if hmac.compare_digest(s.sha256, secret_hash)]
    ends = [record.expires_at, *(s.expires_at for s in matching[:1])]
    ends_at = min((at for at in ends if at is not None), default=math.inf)
    return _KnownKey(
        Key(
            subject=LimitSubject(
                key_id=record.id,
                key_name=record.name,
                team=record.team,
                limits=record.limits_in_units(),
                record=data,
            ),
            models=None if record.models is None else frozenset(record.models),
            validation=record.validation,
            scope=record.scope,
            reuse=Reuse.parse(record.reuse or "always"),
            allow_no_cache=record.allow_no_cache is not False,
            expires_at=record.expires_at,
        ),
        ends_at=ends_at if matching and record.revoked_at is None else 0.0,
    )


def _name_taken(name: str) -> GatewayError:
    return GatewayError(
        f"An active key is already named '{name}'.",
        type=INVALID_REQUEST,
        param="name",
        code=ErrorCode.NAME_TAKEN,
    )

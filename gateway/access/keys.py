"""Keys: authentication and administration.

A secret is `gk-` and 256 random bits; the store only has its SHA-256. A key's record is one JSON
document (`access.key_records`) in the space `keys` under the key's id. The space `secrets` has the
id by the secret's hash, `names` the id by the name of an active key. A worker keeps the records
that it has seen. Every admission compares them with the store's, so a change or a revocation
takes effect from the next request on. What holds for a key besides its record is `access.subjects`.

A key that `access.yaml` declares has no record: it is known from the file.

A revoked key moves to the space `revoked_keys`, where it is listed for some time. There may be
thousands of keys: they are read in pages, and decoded in a thread.
"""

from __future__ import annotations

import asyncio
import heapq
import hmac
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeVar

from gateway.access.access_file import AccessFile
from gateway.access.audit import Actor, AuditEvent, audit_write, changed_fields
from gateway.access.key_records import (
    PREFIX_CHARACTERS,
    KeyRecord,
    KeySpec,
    Parallel,
    Scope,
    SecretHash,
    Validation,
)
from gateway.access.key_spaces import (
    KEYS,
    NAMES,
    REVOKED,
    REVOKED_SECONDS,
    SECRETS,
    Credential,
    KeyName,
    decode_key,
    decode_key_cached,
    hash_secret,
    key_name,
    read_named_key,
    revoked_name,
    secret_changes,
    valid_credentials,
    with_ended_secrets,
)
from gateway.access.key_uses import KeyUses
from gateway.access.subjects import ACCESS, GENERATION, ResolvedKey, StoredSubjects, Subjects
from gateway.errors import (
    INVALID_REQUEST,
    ErrorCode,
    GatewayError,
    IncorrectKey,
    StoreUnavailable,
    shorten_name,
)
from gateway.images import Expected, LimitSubject, Principal, Reuse
from gateway.store.batch import Batch, execute
from gateway.store.commands import CompareAndSet, Get, Write
from gateway.store.pages import scan_records
from gateway.store.protocol import Store
from gateway.stored import read_stored

T = TypeVar("T")

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

    principal: Principal
    models: frozenset[str] | None
    """The models that it may use; None for all."""
    validation: Validation | None
    """None for the gateway's setting."""
    scope: Scope | None
    """None for the gateway's setting."""
    reuse: Reuse
    allow_no_cache: bool
    """Whether its requests may refuse cached images with `no-cache` or `max-age`."""
    parallel: Parallel
    expires_at: float | None
    hits_report_usage: bool = True
    """Whether answers show the usage of images that cost this key nothing; else zeros."""
    user_header: str | None = None
    """The header that names the user in the ledger if the body does not."""
    declared_version: int = 0
    """Of the `access.yaml` that it was made of."""


@dataclass(frozen=True, slots=True)
class _KnownKey:
    """A secret's key as this worker has last read it."""

    record: KeyRecord
    data: bytes
    """The record's bytes; b"" for a declared key."""
    stored: StoredSubjects
    declared: AccessFile
    """The file that it was made of."""
    key: Key
    ends_at: float
    """Unix seconds from which on the secret is refused; in the past for a revoked key."""
    fresh_until: float
    """Unix seconds until which the limits hold."""


class _Confirmed(NamedTuple):
    """What an admission has last found to be as the store has it."""

    at: float
    """Unix seconds."""
    expected: tuple[Expected, ...]


class Keys:
    """Authenticates, makes and changes keys."""

    def __init__(
        self,
        store: Store,
        *,
        subjects: Subjects | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._subjects = subjects or Subjects(store, clock=clock)
        self._clock = clock
        self.uses = KeyUses(store, clock=clock)
        self._known: OrderedDict[str, _KnownKey] = OrderedDict()  # by secret hash
        self._confirmed: dict[str, _Confirmed] = {}  # by key id

    # ── authentication ──────────────────────────────────────────────────────────────────────

    def find_known(self, credential: Credential) -> Key | None:
        """The key of a secret that this worker has in memory and that is active."""
        known = self._use(credential.secret_hash)
        return known.key if known is not None and known.ends_at > self._clock() else None

    async def authenticate(self, credential: Credential) -> Key:
        """The key of a secret, from memory if this worker has seen it before.

        Raises `IncorrectKey` if it is unknown, revoked or expired.
        """
        secret_hash = credential.secret_hash
        known = self._use(secret_hash)
        # An expired key may have been given a later expiry in the store.
        if known is None or known.ends_at <= self._clock():
            known = await self._read(secret_hash)
        if known is None or known.ends_at <= self._clock():
            raise IncorrectKey(credential.shown)
        return known.key

    async def confirm(self, credential: Credential) -> Key:
        """`authenticate` by the store, for a request that is not admitted.

        While the store is unavailable, the key is trusted as this worker knows it.
        """
        secret_hash = credential.secret_hash
        with suppress(StoreUnavailable):
            known = self._use(secret_hash)
            if known is not None and known.record.declared_in is not None:
                await self._refresh(secret_hash, known)
            elif await self._read(secret_hash) is None:
                # Otherwise `authenticate` would find the key in memory.
                self._forget(secret_hash)
        key = await self.authenticate(credential)
        self.uses.mark(key.principal.key_id)
        return key

    async def confirm_by_id(
        self, key_id: str, accepts: Callable[[Credential], bool] = lambda _: True
    ) -> tuple[Key, Credential] | None:
        """An active key and its newest valid secret that `accepts` takes; None without one.

        While the store is unavailable, the key is trusted as this worker knows it. It does not
        count as used: an admin only looks at it.
        """
        record, data, generation = await self._read_by_id(key_id)
        now = self._clock()
        found = filter(accepts, [] if record is None else valid_credentials(record, now))
        if (credential := next(found, None)) is None:
            return None
        secret_hash = credential.secret_hash
        known = self._use(secret_hash)
        if generation is not None:
            with suppress(StoreUnavailable):
                known = await self._refresh(secret_hash, known, data=data, generation=generation)
        if known is None or known.ends_at <= now:
            return None
        return known.key, credential

    async def _read_by_id(self, key_id: str) -> tuple[KeyRecord | None, bytes | None, bytes | None]:
        """The record, its bytes unless it is declared, and the generation of the limits.

        While the store is unavailable, the record is the known one, and there is no generation.
        """
        declared = self._subjects.declared().ids.get(key_id)
        batch = Batch(self._store)
        found = batch.add(Get(KEYS, key_id))
        generation = batch.add(Get(ACCESS, GENERATION))
        try:
            await batch.execute()
        except StoreUnavailable:
            known = (known.record for known in self._known.values() if known.record.id == key_id)
            return declared or next(known, None), None, None
        if declared is not None:
            return declared, None, generation.value or b""
        return decode_key(found.value), found.value, generation.value or b""

    def mark_confirmed(self, key: Key) -> None:
        """An admission has just found that this worker knows the key as the store has it."""
        principal = key.principal
        self._confirmed[principal.key_id] = _Confirmed(self._clock(), principal.expected)
        self.uses.mark(key.principal.key_id)

    def is_trusted_without_store(self, key: Key) -> bool:
        """Whether the key was confirmed within the last hour, as it is now.

        Another secret of the key, or a changed declaration, may be known without the limits of its
        team and of everyone.
        """
        confirmed = self._confirmed.get(key.principal.key_id)
        if confirmed is None or confirmed.expected != key.principal.expected:
            return False
        return confirmed.at > self._clock() - TRUST_SECONDS

    async def update(
        self, credential: Credential, principal: Principal, changed: Sequence[bytes]
    ) -> None:
        """Replaces a key by what an admission found to be newer; b"" for a record that was removed.

        Raises `StoreUnavailable`.
        """
        found = {
            (expected.space, expected.name): value
            for expected, value in zip(principal.expected, changed, strict=True)
        }
        secret_hash = credential.secret_hash
        known = self._use(secret_hash)
        data = found.get((KEYS, principal.key_id))
        if data == b"":
            self._forget(secret_hash)
        elif known is not None:
            # Until its new limits are read, it is not trusted while the store is unavailable.
            self._confirmed.pop(principal.key_id, None)
            await self._refresh(secret_hash, known, data=data, generation=found[ACCESS, GENERATION])

    async def _read(self, secret_hash: str) -> _KnownKey | None:
        batch = Batch(self._store)
        found = batch.add(Get(KEYS, secret_hash, index=SECRETS))
        generation = batch.add(Get(ACCESS, GENERATION))
        await batch.execute()
        if found.value is None:
            return None
        known = self._known.get(secret_hash)
        return await self._refresh(
            secret_hash, known, data=found.value, generation=generation.value or b""
        )

    async def _refresh(
        self,
        secret_hash: str,
        known: _KnownKey | None,
        *,
        data: bytes | None = None,
        generation: bytes | None = None,
    ) -> _KnownKey | None:
        """Remembers a key with the record `data` (None: the known one) and its limits as they are.

        They are read unless the known ones are of this generation. None if the record is
        unreadable, and the key therefore unknown. Raises `StoreUnavailable`.
        """
        if data and (known is None or known.data != data):
            record = decode_key(data)
        else:
            data, record = (known.data, known.record) if known is not None else (b"", None)
        if record is None:
            self._forget(secret_hash)
            return None
        is_same = (
            known is not None
            and known.stored.generation == generation
            and known.record.team == record.team
        )
        if known is not None and is_same and known.record is record:
            return known
        stored = known.stored if known and is_same else await self._subjects.read(record)
        made = self._try_make(secret_hash, record, data, stored)
        if made is None:
            self._forget(secret_hash)
            return None
        return self._remember(secret_hash, made)

    def _use(self, secret_hash: str) -> _KnownKey | None:
        """The key in memory, which counts as used last: the least recently used is dropped."""
        known, declared = self._known.get(secret_hash), self._subjects.declared()
        record = declared.secrets.get(secret_hash)
        if record is not None and (known is None or known.record is not record):
            # The first admission reads the limits: no generation is that of the store.
            is_same = known is not None and known.record.team == record.team
            stored = known.stored if known and is_same else StoredSubjects()
            return self._remember(secret_hash, self._make(secret_hash, record, b"", stored))
        if known is None:
            return None
        if record is None and known.record.declared_in is not None:
            self._forget(secret_hash)  # it was removed from the file
            return None
        if known.declared is not declared or known.fresh_until <= self._clock():
            made = self._make(secret_hash, known.record, known.data, known.stored)
            return self._remember(secret_hash, made)
        self._known.move_to_end(secret_hash)
        return known

    def _remember(self, secret_hash: str, known: _KnownKey) -> _KnownKey:
        self._known[secret_hash] = known
        self._known.move_to_end(secret_hash)
        if len(self._known) > MAX_KNOWN:
            self._forget(next(iter(self._known)))
        return known

    def _try_make(
        self, secret_hash: str, record: KeyRecord, data: bytes, stored: StoredSubjects
    ) -> _KnownKey | None:
        """As `_make`; None if a field of the stored record is unreadable."""
        return read_stored("key", data, lambda data: self._make(secret_hash, record, data, stored))

    def _make(
        self, secret_hash: str, record: KeyRecord, data: bytes, stored: StoredSubjects
    ) -> _KnownKey:
        declared, resolved = self._subjects.declared(), self._subjects.resolve(record, stored)
        matching = [s for s in record.secrets if hmac.compare_digest(s.sha256, secret_hash)]
        ends = [record.expires_at, *(s.expires_at for s in matching[:1])]
        ends_at = min((at for at in ends if at is not None), default=math.inf)
        # A declared key has no record that an admission could compare.
        own = () if record.declared_in is not None else (Expected(KEYS, record.id, data),)
        key = Key(
            principal=Principal(
                key_id=record.id,
                key_name=record.name,
                team=record.team,
                subjects=resolved.subjects,
                expected=(*own, Expected(ACCESS, GENERATION, stored.generation)),
                labels=resolved.labels,
                priority=record.priority or 1,
            ),
            models=resolved.models,
            validation=record.validation,
            scope=resolved.scope,
            reuse=Reuse.parse(record.reuse or "always"),
            allow_no_cache=record.allow_no_cache is not False,
            parallel=record.parallel or "share",
            expires_at=record.expires_at,
            hits_report_usage=record.hits_report_usage is not False,
            user_header=record.user_header,
            declared_version=declared.version,
        )
        return _KnownKey(
            record,
            data,
            stored,
            declared,
            key,
            ends_at=ends_at if matching and record.revoked_at is None else 0.0,
            fresh_until=resolved.fresh_until,
        )

    def _forget(self, secret_hash: str) -> None:
        known = self._known.pop(secret_hash, None)
        if known is not None:
            self._confirmed.pop(known.key.principal.key_id, None)

    async def learn(self, most: int) -> list[KeyName]:
        """The oldest keys that are not revoked, at most `most`, oldest first.

        This worker knows the active ones from now on, as far as it has room. Raises
        `StoreUnavailable`.
        """
        declared = islice(self._subjects.declared().keys.values(), most)
        oldest = await asyncio.to_thread(lambda: [key_name(record) for record in declared])
        async for page in scan_records(self._store, KEYS):
            found, unknown = await asyncio.to_thread(self._read_page, page)
            oldest = heapq.nsmallest(most, oldest + found, key=itemgetter(0, 1))
            for secret_hash, known in unknown:
                if secret_hash not in self._known and len(self._known) < MAX_KNOWN:
                    self._known[secret_hash] = known
        # A key that changed while the pages were read may be on two of them.
        return list({key.key_id: key for key in oldest}.values())

    async def newest_revoked(self, most: int) -> list[KeyName]:
        """The keys that were revoked last, of those still listed. Raises `StoreUnavailable`."""
        newest: dict[str, KeyName] = {}

        def add(page: Mapping[str, bytes]) -> dict[str, KeyName]:
            for name, data in page.items():
                if (named := read_stored("key", data, read_named_key)) is not None:
                    newest[name] = named.key
            # The names of their records are in the order of revocation.
            return {name: newest[name] for name in heapq.nlargest(most, newest)}

        async for page in scan_records(self._store, REVOKED):
            newest = await asyncio.to_thread(add, page)
        return list(newest.values())

    async def resolve(self, keys: Sequence[KeyName]) -> tuple[LimitSubject, list[ResolvedKey]]:
        """Everyone, and what holds for each key now, without unreadable ones.

        Raises `StoreUnavailable`.
        """
        stored = await self._subjects.read_all()

        def resolve() -> list[ResolvedKey]:
            records = filter(None, (decode_key_cached(key.record) for key in keys))
            return [self._subjects.resolve(record, stored.of_key(record)) for record in records]

        # In a thread: decoding records takes some time, even if it is done once for each.
        return self._subjects.everyone_subject(stored), await asyncio.to_thread(resolve)

    def _read_page(
        self, page: Mapping[str, bytes]
    ) -> tuple[list[KeyName], list[tuple[str, _KnownKey]]]:
        """Each key that is not revoked, and the active ones not known yet."""
        names: list[KeyName] = []
        unknown: list[tuple[str, _KnownKey]] = []
        now = self._clock()
        for data in page.values():
            # Not as a `KeyRecord`, which takes ten times as long: mostly all keys are known.
            named = read_stored("key", data, read_named_key)
            if named is None or named.revoked_at is not None:
                continue
            names.append(named.key)
            has_ended = (named.expires_at or math.inf) <= now
            for secret_hash in named.secret_hashes:
                has_room = len(self._known) + len(unknown) < MAX_KNOWN
                if has_room and not has_ended and secret_hash not in self._known:
                    record = decode_key(data)
                    if record is not None:
                        made = self._try_make(secret_hash, record, data, StoredSubjects())
                        unknown += [(secret_hash, made)] if made is not None else []
        return names, unknown

    # ── administration ──────────────────────────────────────────────────────────────────────

    async def create(self, spec: KeySpec, *, actor: Actor) -> tuple[KeyRecord, str]:
        """Makes a key; its secret cannot be read again. Raises `GatewayError` 409 for its name."""
        secret = _new_secret()
        self._refuse_declared_name(spec.name)
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
                self._audit(actor, "key.create", None, record),
            )
            if await execute(self._store, CompareAndSet(changes)) is None:
                return record, secret
        raise _name_taken(spec.name)

    async def ids_and_teams(self) -> list[tuple[str, str | None]]:
        """Id and team of every key, revoked ones too. Raises `StoreUnavailable`."""
        found = {key.id: key.team for key in self._subjects.declared().keys.values()}
        for space in (KEYS, REVOKED):
            async for page in scan_records(self._store, space):
                for data in page.values():
                    if (named := read_stored("key", data, read_named_key)) is not None:
                        found[named.key.key_id] = named.key.team
                await asyncio.sleep(0)
        return list(found.items())

    async def list_keys(self) -> Sequence[KeyRecord]:
        """All keys, also expired ones and those revoked in the last 90 days, oldest first.

        Those that a file declares come before them.
        """
        return await self.map_keys(lambda record: record)

    async def map_keys(self, convert: Callable[[KeyRecord], T]) -> list[T]:
        """As `list_keys`, each converted in a thread, where thousands delay no request."""
        rows: dict[str, tuple[int, str, T]] = {}

        def add(records: Iterable[KeyRecord]) -> None:
            for record in records:
                rows[record.id] = (record.created_at, record.name, convert(record))

        def read(page: Mapping[str, bytes]) -> None:
            add(filter(None, map(decode_key, page.values())))

        await asyncio.to_thread(add, self._subjects.declared().keys.values())
        # The revoked ones last: one that is revoked meanwhile is then on a page of either space.
        for space in (KEYS, REVOKED):
            async for page in scan_records(self._store, space):
                await asyncio.to_thread(read, page)
        by_age = itemgetter(0, 1)
        ordered = await asyncio.to_thread(lambda: sorted(rows.values(), key=by_age))
        return [converted for _, _, converted in ordered]

    async def find(self, key_id: str) -> KeyRecord:
        """One key of the list, also an expired or revoked one. Raises `GatewayError` 404."""
        if (declared := self._subjects.declared().ids.get(key_id)) is not None:
            return declared
        record = decode_key(await execute(self._store, Get(KEYS, key_id)))
        if record is not None:
            return record
        async for page in scan_records(self._store, REVOKED):
            for name, data in page.items():
                if name.endswith(key_id) and (record := decode_key(data)) and record.id == key_id:
                    return record
        raise _not_found(key_id)

    async def forget_revoked(self) -> int:
        """Deletes the keys that were revoked long ago; returns how many."""
        before, deleted = revoked_name(self._clock() - REVOKED_SECONDS, ""), 0
        async for page in scan_records(self._store, REVOKED):
            ended = {name: data for name, data in page.items() if name < before}
            for name, data in ended.items():
                write = Write(REVOKED, name, None, expected=data)
                deleted += await execute(self._store, CompareAndSet((write,))) is None
        return deleted

    async def change(self, key_id: str, changes: Mapping[str, Any], *, actor: Actor) -> KeyRecord:
        """Merges `changes` into a key that is not revoked; None removes a field or one limit.

        Raises `InvalidRequest`, or `GatewayError` 404 or 409.
        """
        merge = partial(KeyRecord.merge, changes=changes, clock=self._clock)
        return await self._update(key_id, merge, action="key.change", actor=actor)

    async def rotate(
        self, key_id: str, *, overlap_seconds: int = 0, actor: Actor
    ) -> tuple[KeyRecord, str]:
        """Gives a key a new secret; the former ones work for `overlap_seconds`, if at all.

        Raises `InvalidRequest` if too many would work at once, or `GatewayError` 404 or 409.
        """
        secret, now = _new_secret(), self._clock()
        rotate = partial(
            KeyRecord.rotate,
            secret=SecretHash(sha256=hash_secret(secret)),
            prefix=secret[:PREFIX_CHARACTERS],
            now=now,
            overlap_seconds=overlap_seconds,
        )
        record = await self._update(key_id, rotate, action="key.rotate", actor=actor)
        return record, secret

    async def revoke(self, key_id: str, *, actor: Actor) -> KeyRecord:
        """Revokes a key and frees its name. Raises `GatewayError` 404 or 409.

        Its secrets are unknown from now on; its record is listed for `REVOKED_SECONDS`.
        """
        revoked = {"revoked_at": int(self._clock())}
        return await self._update(
            key_id, lambda r: r.model_copy(update=revoked), action="key.revoke", actor=actor
        )

    async def forget_ended_secrets(self) -> int:
        """Deletes the secrets whose overlap has ended; returns how many."""
        now, deleted = self._clock(), 0
        async for page in scan_records(self._store, KEYS):
            for key_id, data in await asyncio.to_thread(with_ended_secrets, page, now):
                old = KeyRecord.decode(data)
                new = old.without_ended_secrets(now)
                changes = (
                    Write(KEYS, key_id, new.encode(), expected=data),
                    *secret_changes(old, new),
                )
                if await execute(self._store, CompareAndSet(changes)) is None:
                    deleted += len(old.secrets) - len(new.secrets)
        return deleted

    async def _update(
        self,
        key_id: str,
        change: Callable[[KeyRecord], KeyRecord],
        *,
        action: str,
        actor: Actor,
    ) -> KeyRecord:
        declared = self._subjects.declared()
        if (found := declared.ids.get(key_id)) is not None:
            raise declared.refuse(f"key '{found.name}'")
        # If the key is changed at the same time, the compare-and-set fails, and the change is
        # applied to the newer record.
        for _ in range(WRITE_ATTEMPTS):
            data = await execute(self._store, Get(KEYS, key_id))
            old = decode_key(data)
            if old is None or old.revoked_at is not None:
                raise _not_found(key_id)
            new = change(old).without_ended_secrets(self._clock())
            if new == old:
                return old
            if new.name != old.name:
                self._refuse_declared_name(new.name)
            changes = [
                *_record_changes(key_id, new, data=data),
                *secret_changes(old, new if new.revoked_at is None else None),
                *await self._name_changes(old, new),
                self._audit(actor, action, old, new),
            ]
            if await execute(self._store, CompareAndSet(tuple(changes))) is None:
                return new
        raise GatewayError("Another request is changing this key. Try again.", status=409)

    def _audit(self, actor: Actor, action: str, old: KeyRecord | None, new: KeyRecord) -> Write:
        if old is None:
            before, after = None, new.public()
        elif new.revoked_at is not None:
            before, after = old.public(), None
        else:
            before, after = changed_fields(old.public(), new.public())
            before, after = {"id": old.id, **before}, {"id": old.id, **after}
        name = (old or new).name
        return audit_write(
            AuditEvent(actor, action, f"key:{name}", before, after, time=self._clock())
        )

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

    def _refuse_declared_name(self, name: str) -> None:
        declared = self._subjects.declared()
        if name in declared.keys:
            raise declared.refuse(f"key '{name}'")

    async def _inactive_owner(self, name: str) -> bytes | None:
        """The id of an inactive key that still has a name. Raises 409 if an active key has it."""
        owner = await execute(self._store, Get(NAMES, name))
        if owner is None:
            return None
        data = await execute(self._store, Get(KEYS, owner.decode()))
        record = decode_key(data)
        if record is not None and record.is_active(self._clock()):
            raise _name_taken(name)
        return owner


def _new_secret() -> str:
    return SECRET_PREFIX + secrets.token_urlsafe(32)


def _record_changes(key_id: str, new: KeyRecord, *, data: bytes | None) -> tuple[Write, ...]:
    """The writes that replace a key's record, or move it to the revoked ones."""
    if new.revoked_at is None:
        return (Write(KEYS, key_id, new.encode(), expected=data),)
    return (
        Write(KEYS, key_id, None, expected=data),
        Write(REVOKED, revoked_name(new.revoked_at, key_id), new.encode(), expected=None),
    )


def _not_found(key_id: str) -> GatewayError:
    return GatewayError(
        f"No active key has the id '{shorten_name(key_id)}'.",
        type=INVALID_REQUEST,
        code=ErrorCode.KEY_NOT_FOUND,
    )


def _name_taken(name: str) -> GatewayError:
    return GatewayError(
        f"An active key is already named '{name}'.",
        type=INVALID_REQUEST,
        param="name",
        code=ErrorCode.NAME_TAKEN,
    )

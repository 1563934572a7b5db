"""Backups of keys, teams, limits and the audit, as lines of JSON.

The first line says what the file is, each other one has a record of the store as it was, and the
last one has their number and hash, so that a file that was cut is noticed. Records are kept byte
for byte, so those of a newer gateway lose nothing. Secrets are in it only as hashes, and signing
keys only encrypted (`sealed`). Counters, images and the ledger are not in it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from gateway.access.audit import SPACE, AuditEvent, audit_spaces
from gateway.access.key_records import KeyRecord
from gateway.access.key_spaces import KEYS, NAMES, REVOKED, SECRETS, decode_key
from gateway.access.signing import META, decode_keys, encode_keys
from gateway.access.signing import RECORD as SIGNING_KEYS
from gateway.access.subjects import ACCESS, EVERYONE, GENERATION, RAISES, TEAMS
from gateway.store.batch import Batch, execute
from gateway.store.commands import CompareAndSet, Get, Write
from gateway.store.pages import scan_records
from gateway.store.protocol import Store
from gateway.stored import UNREADABLE

FORMAT: Final = "image-gateway-backup"
VERSION: Final = 1
MAX_LINE_BYTES: Final = 16 << 20
"""Of a record: more than a request's body can make it."""

MIN_PASSPHRASE: Final = 16
"""Characters, as of a token."""

SPACES: Final = (KEYS, REVOKED, TEAMS, ACCESS, RAISES)
"""Those of a backup, besides the months of the audit. Keys come before revoked ones: a key that is
revoked meanwhile is then in one of them. Names and hashes of secrets follow from the keys."""

BATCH_WRITES: Final = 200
WRITE_ATTEMPTS: Final = 10

_AUDIT_SPACE: Final = re.compile(rf"{SPACE}\d{{4}}-\d{{2}}")

Place = tuple[str, str]
"""The space and the name of a record."""


class BadBackup(Exception):
    """The file is no complete backup. The message says why."""


class RestoreRefused(Exception):
    """The store has keys, teams or limits of its own, or is being changed."""


@dataclass(slots=True)
class Contents:
    """A backup that was read and checked. Events of the audit are only counted."""

    created_at: float
    records: dict[Place, bytes] = field(default_factory=dict)
    signing_keys: Mapping[str, Any] | None = None
    """Sealed; `context` opens them."""
    context: bytes = b""
    counts: dict[str, int] = field(default_factory=dict)


# ── writing ─────────────────────────────────────────────────────────────────────────────────


async def write_backup(
    store: Store,
    *,
    now: float,
    seal: Callable[[bytes, bytes], Mapping[str, Any]] | None,
    unreadable: list[Place],
) -> AsyncIterator[bytes]:
    """The lines of a backup. `seal` encrypts the signing keys for a context; None: without them.

    Damaged records are left out and added to `unreadable`. Raises `StoreUnavailable`.
    """
    digest, count = hashlib.sha256(), 0
    identity = secrets.token_hex(16)
    head = {"format": FORMAT, "version": VERSION, "id": identity, "created_at": now}
    line = _line(head)
    digest.update(line)
    yield line
    async for place, value in _records(store, now):
        try:
            _check(*place, value)
            space, name = place
            line = _line({"space": space, "name": name, "value": value.decode()})
        except UNREADABLE:
            unreadable.append(place)
            continue
        digest.update(line)
        count += 1
        yield line
    keys = await execute(store, Get(META, SIGNING_KEYS)) if seal is not None else None
    if seal is not None and keys is not None:
        line = _line({"signing_keys": seal(keys, identity.encode())})
        digest.update(line)
        count += 1
        yield line
    yield _line({"end": True, "records": count, "sha256": digest.hexdigest()})


async def _records(store: Store, now: float) -> AsyncIterator[tuple[Place, bytes]]:
    for space in (*SPACES, *audit_spaces(0.0, now + 86_400)):
        async for page in scan_records(store, space):
            for name, value in page.items():
                if (space, name) != (ACCESS, GENERATION):
                    yield (space, name), value


def _line(content: Mapping[str, Any]) -> bytes:
    return orjson.dumps(content) + b"\n"


# ── reading ─────────────────────────────────────────────────────────────────────────────────


def read_contents(lines: Iterable[bytes]) -> Contents:
    """Reads and checks a whole backup. Raises `BadBackup`, which names the line."""
    digest, contents, count = hashlib.sha256(), None, 0
    numbered = enumerate(lines, start=1)
    for number, line in numbered:
        content = _parse(line, number)
        if contents is None:
            contents = _read_head(content)
        elif "end" in content:
            if (content.get("records"), content.get("sha256")) != (count, digest.hexdigest()):
                raise BadBackup("the file was changed: its hash is another one")
            # The hash says nothing about it, and `audit_records` reads the whole file.
            if (after := next(numbered, None)) is not None:
                raise BadBackup(f"line {after[0]} is after its end")
            return contents
        else:
            _add(contents, content, number)
            count += 1
        digest.update(line)
    raise BadBackup("it is empty" if contents is None else "its end is missing")


def audit_records(lines: Iterable[bytes]) -> Iterable[tuple[Place, bytes]]:
    """The events of the audit in a backup that was checked."""
    for number, line in enumerate(lines, start=1):
        content = _parse(line, number)
        if str(content.get("space", "")).startswith(SPACE):
            yield (content["space"], content["name"]), content["value"].encode()


def _parse(line: bytes, number: int) -> dict[str, Any]:
    try:
        content = orjson.loads(line)
    except ValueError:
        content = None
    if len(line) > MAX_LINE_BYTES or not line.endswith(b"\n") or not isinstance(content, dict):
        raise BadBackup(f"line {number} is none of a backup")
    return content


def _read_head(content: Mapping[str, Any]) -> Contents:
    if content.get("format") != FORMAT:
        raise BadBackup("it is no backup of this gateway")
    if content.get("version") != VERSION:
        raise BadBackup(
            f"it has version {content.get('version')}, and this gateway reads version {VERSION}"
        )
    try:
        return Contents(float(content["created_at"]), context=str(content["id"]).encode())
    except UNREADABLE:
        raise BadBackup("line 1 is none of a backup") from None


def _add(contents: Contents, content: Mapping[str, Any], number: int) -> None:
    if isinstance(sealed := content.get("signing_keys"), dict):
        contents.signing_keys = sealed
        return
    try:
        space, name = str(content["space"]), str(content["name"])
        value = content["value"].encode()
        _check(space, name, value)
    except UNREADABLE:
        raise BadBackup(f"the record in line {number} is unreadable") from None
    kind = SPACE if space.startswith(SPACE) else space
    contents.counts[kind] = contents.counts.get(kind, 0) + 1
    if kind != SPACE:
        contents.records[space, name] = value


def _check(space: str, name: str, value: bytes) -> None:
    """Raises one of `UNREADABLE` for a record that no gateway has written."""
    if space in (KEYS, REVOKED):
        record = KeyRecord.decode(value)
        if space == KEYS and record.id != name:
            raise ValueError
    elif _AUDIT_SPACE.fullmatch(space):
        AuditEvent.decode(value)
    elif space == RAISES:
        if not isinstance(orjson.loads(value), list):
            raise ValueError
    elif space == TEAMS or (space, name) == (ACCESS, EVERYONE):
        if not isinstance(orjson.loads(value), dict):
            raise ValueError
    else:
        raise ValueError


# ── restoring ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore has done."""

    keys: int
    teams: int
    removed_keys: int
    """Keys of the store that are not in the backup."""
    still_revoked: int
    """Keys of the backup that the store knows as revoked: they stay so."""

    def public(self) -> dict[str, int]:
        """The numbers for the audit."""
        return {
            "keys": self.keys,
            "teams": self.teams,
            "removed_keys": self.removed_keys,
            "still_revoked": self.still_revoked,
        }


async def restore(store: Store, contents: Contents, *, now: float, replace: bool) -> Restored:
    """Makes keys, teams and limits those of the backup, in steps that can be repeated.

    Without `replace` the store must have none. Raises `RestoreRefused`, `StoreUnavailable`.
    """
    present = {space: await _read_space(store, space) for space in (KEYS, TEAMS, ACCESS, RAISES)}
    present[ACCESS].pop(GENERATION, None)
    if not replace:
        _refuse_occupied(present)
    revoked = await _read_space(store, REVOKED)
    wanted, still_revoked = _wanted(contents, revoked.values(), now=now)
    await _write_all(store, wanted)
    removed = 0
    # Names and secrets last: until then they lead to keys without a record, which are unknown.
    for space in (KEYS, TEAMS, ACCESS, RAISES, NAMES, SECRETS):
        kept = {name for found, name in wanted if found == space}
        surplus = [name for name in await _read_space(store, space) if name not in kept]
        surplus = [name for name in surplus if (space, name) != (ACCESS, GENERATION)]
        await _write_all(store, {(space, name): None for name in surplus})
        removed += len(surplus) if space == KEYS else 0
    # Workers that have resolved limits of keys read them again.
    await _write_all(store, {(ACCESS, GENERATION): secrets.token_hex(8).encode()})
    keys = sum(space == KEYS for space, _ in wanted)
    teams = sum(space == TEAMS for space, _ in wanted)
    return Restored(keys, teams, removed_keys=removed, still_revoked=still_revoked)


async def restore_audit(store: Store, records: Iterable[tuple[Place, bytes]]) -> None:
    """Adds the events of a backup to those of the store."""
    batch: dict[Place, bytes | None] = {}
    for place, value in records:
        batch[place] = value
        if len(batch) == BATCH_WRITES:
            await _write_all(store, batch)
            batch = {}
    await _write_all(store, batch)


async def restore_signing_keys(store: Store, record: bytes) -> int:
    """Adds signing keys to those of the store; returns how many are new there."""
    added = decode_keys(record)
    for _ in range(WRITE_ATTEMPTS):
        old = await execute(store, Get(META, SIGNING_KEYS))
        present = decode_keys(old) if old is not None else []
        known = {key.kid for key in present}
        new = [key for key in added if key.kid not in known]
        # Newest first: the newest signs, and all of them verify.
        keys = sorted([*present, *new], key=lambda key: key.created_at, reverse=True)
        write = Write(META, SIGNING_KEYS, encode_keys(keys), expected=old)
        if await execute(store, CompareAndSet((write,))) is None:
            return len(new)
    raise RestoreRefused("The signing keys are being changed. Run the command again.")


def _refuse_occupied(present: Mapping[str, Mapping[str, bytes]]) -> None:
    counts = {"keys": len(present[KEYS]), "teams": len(present[TEAMS])}
    limits = len(present[ACCESS]) + len(present[RAISES])
    found = [f"{count} {kind}" for kind, count in counts.items() if count]
    found += ["limits"] if limits else []
    if found:
        raise RestoreRefused(
            f"The store has {', '.join(found)} already. With --replace they are replaced by those "
            "of the backup, and keys that it does not have stop working."
        )


def _wanted(
    contents: Contents, revoked_here: Iterable[bytes], *, now: float
) -> tuple[dict[Place, bytes | None], int]:
    """The records that the store is to have, and how many keys stay revoked."""
    revoked_ids = _ids(revoked_here)
    in_backup = _ids(value for (space, _), value in contents.records.items() if space == REVOKED)
    wanted: dict[Place, bytes | None] = {}
    live: list[KeyRecord] = []
    still_revoked = 0
    for (space, name), value in contents.records.items():
        if space != KEYS:
            wanted[space, name] = value
            continue
        if name in revoked_ids or name in in_backup:
            still_revoked += name in revoked_ids
            continue
        wanted[KEYS, name] = value
        live.append(KeyRecord.decode(value))
    # Of several keys of one name the active one has it, or else the newest.
    for record in sorted(live, key=lambda r: (r.is_active(now), r.created_at)):
        wanted[NAMES, record.name] = record.id.encode()
        for secret in record.secrets:
            wanted[SECRETS, secret.sha256] = record.id.encode()
    return wanted, still_revoked


def _ids(records: Iterable[bytes]) -> frozenset[str]:
    decoded = map(decode_key, records)
    return frozenset(record.id for record in decoded if record is not None)


async def _read_space(store: Store, space: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    async for page in scan_records(store, space):
        found |= page
    return found


async def _write_all(store: Store, wanted: Mapping[Place, bytes | None]) -> None:
    """Sets records, or deletes those that are None, in steps of some hundred."""
    places = list(wanted)
    for start in range(0, len(places), BATCH_WRITES):
        part = {place: wanted[place] for place in places[start : start + BATCH_WRITES]}
        await _write_part(store, part)


async def _write_part(store: Store, part: Mapping[Place, bytes | None]) -> None:
    for _ in range(WRITE_ATTEMPTS):
        batch = Batch(store)
        present = {place: batch.add(Get(*place)) for place in part}
        await batch.execute()
        changes = tuple(
            Write(*place, value, expected=present[place].value)
            for place, value in part.items()
            if present[place].value != value
        )
        if not changes or await execute(store, CompareAndSet(changes)) is None:
            return
    raise RestoreRefused("Keys are being changed meanwhile. Run the command again with --replace.")

"""Where keys are in the store: their spaces, the indexes by secret and name, and partial decoding.

`access.keys` authenticates and changes keys with these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import field
from functools import lru_cache
from typing import Final, NamedTuple

import orjson

from gateway.access.key_records import KeyRecord
from gateway.frozen import frozen
from gateway.store.commands import Write
from gateway.stored import read_stored

KEYS: Final = "keys"
SECRETS: Final = "secrets"
NAMES: Final = "names"
REVOKED: Final = "revoked_keys"
"""Records by the time of their revocation and the key's id."""
REVOKED_SECONDS: Final = 90 * 86_400
"""How long a revoked key is listed. Records of the ledger have its name for longer."""

MIN_SHOWN: Final = 16
"""Characters of a secret of which a message shows a part."""


class KeyName(NamedTuple):
    """A key as metrics show it."""

    created_at: int
    name: str
    key_id: str
    team: str | None
    record: bytes = b""
    """Its record's bytes, also those that a declared key would have."""
    expires_at: float | None = None


def key_name(record: KeyRecord) -> KeyName:
    """A key by its record."""
    ends = record.expires_at
    return KeyName(record.created_at, record.name, record.id, record.team, record.encode(), ends)


def hash_secret(secret: str) -> str:
    """The SHA-256 of a secret, hex: all that is stored of it."""
    # A fast hash is enough, because a secret has 256 random bits. A header with bytes that are not
    # UTF-8 arrives with lone surrogates, which only `surrogatepass` encodes.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


@frozen
class Credential:
    """What authenticates a request: a secret of a key, by its hash."""

    secret_hash: str
    shown: str = field(compare=False)
    """What an error message shows of the secret."""

    @staticmethod
    def of(secret: str) -> Credential:
        """Shows the first 6 and the last 4 characters if that hides the others."""
        shown = f"{secret[:6]}***{secret[-4:]}" if len(secret) >= MIN_SHOWN else "***"
        return Credential(hash_secret(secret), shown)


def valid_credentials(record: KeyRecord, now: float) -> list[Credential]:
    """The secrets with which a key can be used now, the newest first."""
    if not record.is_active(now):
        return []
    secrets = record.without_ended_secrets(now).secrets
    return [Credential(secret.sha256, f"{record.prefix}***") for secret in secrets]


def revoked_name(at: float, key_id: str) -> str:
    """The name of a revoked key's record: names are in the order of revocation."""
    return f"{int(at):012}-{key_id}"


class NamedKey(NamedTuple):
    """What listing needs of a key's record, read without the cost of a `KeyRecord`."""

    key: KeyName
    revoked_at: float | None
    expires_at: float | None
    secret_hashes: list[str]


def read_named_key(data: bytes) -> NamedKey:
    """Reads a record's bytes. Raises one of `stored.UNREADABLE`."""
    fields = orjson.loads(data)
    ends, names = fields.get("expires_at"), (fields["name"], fields["id"], fields.get("team"))
    return NamedKey(
        KeyName(fields["created_at"], *names, data, ends),
        fields.get("revoked_at"),
        ends,
        [secret["sha256"] for secret in fields["secrets"]],
    )


def decode_key(data: bytes | None) -> KeyRecord | None:
    """The record; None if there is none, or if it is unreadable."""
    return None if data is None else read_stored("key", data, KeyRecord.decode)


@lru_cache(maxsize=2048)
def decode_key_cached(data: bytes) -> KeyRecord | None:
    """As `decode_key`, for records that are read again and again."""
    return decode_key(data)


def secret_changes(old: KeyRecord, new: KeyRecord | None) -> list[Write]:
    """The writes that make the index of secrets that of `new`; None for a revoked key."""
    own_id = old.id.encode()
    former = {secret.sha256 for secret in old.secrets}
    present = {secret.sha256 for secret in new.secrets} if new is not None else set()
    return [
        *(Write(SECRETS, name, None, expected=own_id) for name in sorted(former - present)),
        *(Write(SECRETS, name, own_id, expected=None) for name in sorted(present - former)),
    ]


def with_ended_secrets(page: Mapping[str, bytes], now: float) -> list[tuple[str, bytes]]:
    """The readable records that have a secret whose overlap has ended."""
    return [
        (key_id, data)
        for key_id, data in page.items()
        # Few keys have one: the others are not decoded.
        if data.count(b'"sha256"') > 1
        and (record := decode_key(data)) is not None
        and record.without_ended_secrets(now) is not record
    ]

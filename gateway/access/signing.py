"""Signed links: a path that needs no key until it expires, see `docs/reference/cache.md#links`.

`SigningKeys` and `expiry` are pure: the form of a link, and its verification. `Signing` is what a
worker signs and verifies with. Its keys come from the settings or, if those have none, from one
record of the store. Which path leads to which image is `cache.image_index`.
"""

from __future__ import annotations

import base64
import hmac
import math
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import orjson
from pydantic import SecretStr

from gateway.access.audit import Actor, AuditEvent, audit_write
from gateway.errors import (
    INVALID_REQUEST,
    ErrorCode,
    GatewayError,
    InvalidRequest,
    StoreUnavailable,
)
from gateway.images import decode_fields
from gateway.store.batch import execute
from gateway.store.commands import CompareAndSet, Get, Write
from gateway.store.protocol import Store
from gateway.tasks import SingleFlight

META: Final = "meta"
RECORD: Final = "signing_keys"

EXPIRY_STEPS: Final = 24
"""Expiries are rounded up to a 24th of a link's lifetime. Repeated answers show the same link."""

FRESH_SECONDS: Final = 60.0
"""How long a worker signs with keys that it has read. Another worker may have replaced them."""
RETRY_SECONDS: Final = 1.0
"""Links with unknown key ids make a worker read the store no more often than this."""
NEW_KEY_SECONDS: Final = 5.0
"""How long a new key of the store only verifies: workers that read the store less than
`RETRY_SECONDS` ago would refuse its first links. The rest is for clocks that differ."""
MARGIN_SECONDS: Final = 2 * FRESH_SECONDS
"""How long a replaced key outlasts its last link: for workers that have not read the new one yet,
and for clocks that differ."""

KID_BYTES: Final = 6
SECRET_BYTES: Final = 32
WRITE_ATTEMPTS: Final = 5

_FOLDER: Final = r"(?P<folder>(?:/[!-\"$->@-~]*)?)"
"""Empty, or visible ASCII without `?` and `#`."""
_NAME: Final = r"(?P<name>[!-\"$-.0->@-~]+)"
"""The same without `/`."""
_PATH: Final = re.compile(f"{_FOLDER}/{_NAME}")
# A key id has no `.` and a name no `/`, so a link can be taken apart in one way only.
_LINK: Final = re.compile(
    rf"{_FOLDER}/(?P<kid>[A-Za-z0-9_-]{{1,32}})\.(?P<expiry>[0-9]{{1,12}})"
    rf"\.[A-Za-z0-9_-]{{43}}/{_NAME}"
)


# ── links, pure ─────────────────────────────────────────────────────────────────────────────


def expiry(now: float, url_ttl_seconds: float) -> int:
    """The Unix second at which a link made at `now` expires: at least `url_ttl_seconds` later.

    Rounded up to a multiple of a 24th of `url_ttl_seconds`, in whole seconds.
    """
    step = max(1, round(url_ttl_seconds / EXPIRY_STEPS))
    return -(-math.ceil(now + url_ttl_seconds) // step) * step


class SigningKeys:
    """Secrets with their key ids (`kid`): the first signs unless another is named, all verify."""

    def __init__(self, keys: Sequence[tuple[str, bytes]]) -> None:
        self._first_kid = keys[0][0]
        self._secrets = dict(keys)

    def __contains__(self, kid: str) -> bool:
        return kid in self._secrets

    def sign(self, path: str, *, expires_at: int, kid: str | None = None) -> str:
        """The link to `path` (visible ASCII, no query) that expires at a Unix second.

        Key id, expiry and signature are a folder before the name: clients cut queries, and take a
        name from the end of a link.
        """
        found = _PATH.fullmatch(path)
        if found is None:
            raise ValueError(f"cannot sign {path!r}")
        return self._link(found, expires_at, kid=kid or self._first_kid)

    def verify(self, link: str, *, now: float) -> int:
        """When a link expires, in Unix seconds. Raises `GatewayError` 403 if it is not valid."""
        found = _parse(link)
        if found["kid"] not in self._secrets:
            raise _invalid()
        expires_at = int(found["expiry"])
        # The whole link is compared, not only its signature: each link has one spelling, and
        # nothing can be added to it.
        signed = self._link(found, expires_at, kid=found["kid"])
        if not hmac.compare_digest(signed, link):
            raise _invalid()
        # After the signature: the response to a forged link does not reveal whether it would have
        # expired.
        if expires_at <= now:
            raise _expired()
        return expires_at

    def _link(self, path: re.Match[str], expires_at: int, *, kid: str) -> str:
        start, name = f"{path['folder']}/{kid}.{expires_at}", path["name"]
        mac = hmac.digest(self._secrets[kid], f"{start}/{name}".encode(), "sha256")
        return f"{start}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}/{name}"


def _parse(link: str) -> re.Match[str]:
    """The parts of a link, which is then all ASCII. Raises `GatewayError` 403."""
    found = _LINK.fullmatch(link)
    if found is None:
        raise _invalid()
    return found


def _invalid() -> GatewayError:
    return GatewayError(
        "This link is not valid. Ask for the image again to get a new one.",
        type=INVALID_REQUEST,
        code=ErrorCode.LINK_INVALID,
    )


def _expired() -> GatewayError:
    return GatewayError(
        "This link has expired. Ask for the image again to get a new one.",
        type=INVALID_REQUEST,
        code=ErrorCode.LINK_EXPIRED,
    )


# ── the record in the store, pure ───────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class StoredKey:
    """One key of the record. It signs until the next key is created, and a moment longer."""

    kid: str
    secret: str
    """Hex."""
    created_at: float = 0.0
    """Unix seconds."""


def make_key(now: float, random_bytes: Callable[[int], bytes]) -> StoredKey:
    """A new key."""
    return StoredKey(random_bytes(KID_BYTES).hex(), random_bytes(SECRET_BYTES).hex(), now)


def signing_kid(keys: Sequence[StoredKey], *, now: float) -> str:
    """The key that signs at `now`: the newest that is not brand-new, by clocks that may differ."""
    known = (key.kid for key in keys if abs(now - key.created_at) >= NEW_KEY_SECONDS)
    return next(known, keys[-1].kid)


def rotate_in(
    new: StoredKey, keys: Sequence[StoredKey], *, url_ttl_seconds: float
) -> list[StoredKey]:
    """The keys, newest first, after `new` replaced the first of them.

    A key is dropped when the last link that it signed has expired.
    """
    # `expiry` rounds up by one step at most.
    max_lifetime = url_ttl_seconds * (1 + 1 / EXPIRY_STEPS) + MARGIN_SECONDS
    # Each key signed until the next newer one was created.
    replaced_at = [new.created_at, *(key.created_at for key in keys)]
    needed = (
        key
        for key, replaced in zip(keys, replaced_at, strict=False)
        if replaced + max_lifetime > new.created_at
    )
    return [new, *needed]


def encode_keys(keys: Sequence[StoredKey]) -> bytes:
    """The record's bytes."""
    return orjson.dumps([asdict(key) for key in keys])


def decode_keys(record: bytes) -> list[StoredKey]:
    """The inverse of `encode_keys`."""
    return [decode_fields(StoredKey, key) for key in orjson.loads(record)]


# ── a worker's keys ─────────────────────────────────────────────────────────────────────────


class Signing:
    """Signs links that expire after `url_ttl_seconds`, and verifies them.

    `keys` are those of the settings (`kid`, secret); None for those of the store.
    """

    def __init__(
        self,
        store: Store,
        *,
        keys: Sequence[tuple[str, SecretStr]] | None,
        url_ttl_seconds: float,
        clock: Callable[[], float],
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._store = store
        self._url_ttl_seconds = url_ttl_seconds
        self._clock = clock
        self._random_bytes = random_bytes
        self._is_configured = keys is not None
        self._keys: SigningKeys | None = None
        self._stored: Sequence[StoredKey] = ()
        if keys is not None:
            self._keys = SigningKeys([(kid, s.get_secret_value().encode()) for kid, s in keys])
        self._read_at = -math.inf
        self._store_reads: SingleFlight[str, SigningKeys] = SingleFlight()

    async def sign(self, path: str) -> str:
        """The link to `path`. Raises `StoreUnavailable` if the keys were never read."""
        keys = await self._keys_to_sign()
        now = self._clock()
        kid = signing_kid(self._stored, now=now) if self._stored else None
        return keys.sign(path, expires_at=expiry(now, self._url_ttl_seconds), kid=kid)

    async def verify(self, link: str) -> int:
        """When a link, its path as received, expires, in Unix seconds.

        Raises `GatewayError` 403 if it is not valid, `StoreUnavailable` if that cannot be decided.
        """
        kid = _parse(link)["kid"]
        keys = self._keys or await self._read()
        if kid not in keys and self._is_older_than(RETRY_SECONDS):
            keys = await self._read()  # another worker may have made a new one
        return keys.verify(link, now=self._clock())

    async def rotate(self, *, actor: Actor) -> str:
        """Makes a new key, which signs in a moment; its id. Older links stay valid.

        Raises `InvalidRequest` (409) for keys of the settings, or `StoreUnavailable`.
        """
        if self._is_configured:
            raise InvalidRequest(
                "The signing keys are in the configuration (GATEWAY_SIGNING_KEYS): add a new one "
                "there, in front of the others.",
                code=ErrorCode.SIGNING_KEYS_CONFIGURED,
            )
        # If another worker rotates at the same time, the compare-and-set fails, and this one
        # rotates the newer keys.
        for _ in range(WRITE_ATTEMPTS):
            old = await self._record()
            new = make_key(self._clock(), self._random_bytes)
            former = decode_keys(old)
            keys = rotate_in(new, former, url_ttl_seconds=self._url_ttl_seconds)
            change = Write(META, RECORD, encode_keys(keys), expected=old)
            event = AuditEvent(
                actor,
                "signing_key.rotate",
                "signing-keys",
                before={"kids": [key.kid for key in former]},
                after={"kids": [key.kid for key in keys]},
                time=self._clock(),
            )
            if await execute(self._store, CompareAndSet((change, audit_write(event)))) is None:
                self._use(keys)
                return new.kid
        raise GatewayError("The signing keys are being changed; try again.", status=503)

    async def _keys_to_sign(self) -> SigningKeys:
        if self._keys is not None and not self._is_older_than(FRESH_SECONDS):
            return self._keys
        try:
            return await self._read()
        except StoreUnavailable:
            # While the store is unavailable, no worker can replace a key, so older ones will do.
            if self._keys is None:
                raise
            return self._keys

    def _is_older_than(self, seconds: float) -> bool:
        # A clock that was set back makes the keys look newer than now: then they count as old too.
        return not self._is_configured and not 0 <= self._clock() - self._read_at < seconds

    async def _read(self) -> SigningKeys:
        """The keys as the store has them now; concurrent calls share one read."""
        return await self._store_reads.run(RECORD, self._read_store, name="read signing keys")

    async def _read_store(self) -> SigningKeys:
        return self._use(decode_keys(await self._record()))

    def _use(self, keys: Sequence[StoredKey]) -> SigningKeys:
        self._keys = SigningKeys([(key.kid, bytes.fromhex(key.secret)) for key in keys])
        self._stored = keys
        self._read_at = self._clock()
        return self._keys

    async def _record(self) -> bytes:
        """The record; the first worker that needs it makes it."""
        if (found := await execute(self._store, Get(META, RECORD))) is not None:
            return found
        first = encode_keys([make_key(self._clock(), self._random_bytes)])
        await execute(self._store, CompareAndSet((Write(META, RECORD, first, expected=None),)))
        # Another worker may have been first, so the keys are those that are stored now.
        stored = await execute(self._store, Get(META, RECORD))
        if stored is None:
            raise StoreUnavailable
        return stored

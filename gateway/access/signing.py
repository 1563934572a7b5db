"""Signed links: a path that opens itself, without a key, until it expires (CONTRACT §7).

`SigningKeys` and `expiry` are pure: what a link looks like, and whether one is ours. `Signing` is
what a worker signs and verifies with; its keys come from the settings or, where those name none,
from one record of the store, which the first who needs it makes. Which path leads to which
image is not known here.
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

from gateway.errors import INVALID_REQUEST, GatewayError, InvalidRequest, StoreUnavailable
from gateway.images import decode_fields
from gateway.store.batch import execute
from gateway.store.commands import CompareAndSet, Get, Write
from gateway.store.protocol import Store
from gateway.tasks import SingleFlight

META: Final = "meta"
RECORD: Final = "signing_keys"

EXPIRY_STEPS: Final = 24
"""Expiries lie on a grid of a 24th of a link's life: repeated answers show the same link."""

FRESH_SECONDS: Final = 60.0
"""How long a worker may sign on with a key that another one has replaced."""
RETRY_SECONDS: Final = 1.0
"""How often, at most, links with unknown keys make a worker read the store."""
MARGIN_SECONDS: Final = 2 * FRESH_SECONDS
"""What a replaced key is kept for beyond the life of its last link: stale workers, clocks."""

KID_BYTES: Final = 6
SECRET_BYTES: Final = 32
WRITE_ATTEMPTS: Final = 5

_PATH: Final = re.compile(r"/[!-\"$->@-~]*")
"""Visible ASCII that neither begins a query nor a fragment."""
_LINK: Final = re.compile(
    rf"(?P<path>{_PATH.pattern})\?exp=(?P<exp>[0-9]{{1,12}})"
    r"&kid=(?P<kid>[A-Za-z0-9_-]{1,32})&sig=[A-Za-z0-9_-]{43}"
)


# ── pure: what a link looks like ────────────────────────────────────────────────────────────


def expiry(now: float, url_ttl_seconds: float) -> int:
    """The Unix second at which a link given at `now` expires: at least `url_ttl_seconds` later.

    Rounded up to a multiple of a 24th of that life, in whole seconds.
    """
    step = max(1, round(url_ttl_seconds / EXPIRY_STEPS))
    return -(-math.ceil(now + url_ttl_seconds) // step) * step


class SigningKeys:
    """Secrets by their key id (`kid`): the first signs, all verify."""

    def __init__(self, keys: Sequence[tuple[str, bytes]]) -> None:
        self._signer = keys[0][0]
        self._secrets = dict(keys)

    def __contains__(self, kid: str) -> bool:
        return kid in self._secrets

    def sign(self, path: str, *, expires_at: int) -> str:
        """The link to `path` (visible ASCII, no query) that expires at a Unix second."""
        if _PATH.fullmatch(path) is None:
            raise ValueError(f"cannot sign {path!r}")
        return self._write(path, expires_at, kid=self._signer)

    def verify(self, link: str, *, now: float) -> int:
        """When a link of ours expires, in Unix seconds.

        Raises `GatewayError` 403. Ours is what reads, character for character, as we would write
        it: so there is one spelling of each link, and nothing can be added to it.
        """
        found = _parse(link)
        if found["kid"] not in self._secrets:
            raise _invalid()
        expires_at = int(found["exp"])
        ours = self._write(found["path"], expires_at, kid=found["kid"])
        if not hmac.compare_digest(ours, link):
            raise _invalid()
        if expires_at <= now:
            raise _expired()
        return expires_at

    def _write(self, path: str, expires_at: int, *, kid: str) -> str:
        unsigned = f"{path}?exp={expires_at}&kid={kid}"
        mac = hmac.digest(self._secrets[kid], unsigned.encode(), "sha256")
        return f"{unsigned}&sig={base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def _parse(link: str) -> re.Match[str]:
    """The parts of what looks like a link of ours, which is then all ASCII."""
    found = _LINK.fullmatch(link)
    if found is None:
        raise _invalid()
    return found


def _invalid() -> GatewayError:
    return GatewayError(
        "This link is not valid. Ask for the image again to get a new one.",
        status=403,
        type=INVALID_REQUEST,
        code="link_invalid",
    )


def _expired() -> GatewayError:
    """Only said of a link that was ours."""
    return GatewayError(
        "This link has expired. Ask for the image again to get a new one.",
        status=403,
        type=INVALID_REQUEST,
        code="link_expired",
    )


# ── pure: the record in the store, newest key first ─────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class StoredKey:
    """One key of the record; it signs from `created` (Unix seconds) until the next was created."""

    kid: str
    secret: str
    """Hex."""
    created: float


def make_key(now: float, random_bytes: Callable[[int], bytes]) -> StoredKey:
    """A new key."""
    return StoredKey(random_bytes(KID_BYTES).hex(), random_bytes(SECRET_BYTES).hex(), now)


def put_in_front(
    fresh: StoredKey, keys: Sequence[StoredKey], *, url_ttl_seconds: float
) -> list[StoredKey]:
    """The keys after `fresh` took over, without those whose last link has died by then."""
    longest = url_ttl_seconds * (1 + 1 / EXPIRY_STEPS) + MARGIN_SECONDS
    ceased = [fresh.created, *(key.created for key in keys)]
    living = (
        key
        for key, ceased_at in zip(keys, ceased, strict=False)
        if ceased_at + longest > fresh.created
    )
    return [fresh, *living]


def encode_keys(keys: Sequence[StoredKey]) -> bytes:
    """The record's bytes."""
    return orjson.dumps([asdict(key) for key in keys])


def decode_keys(record: bytes) -> list[StoredKey]:
    """The inverse of `encode_keys`."""
    return [decode_fields(StoredKey, key) for key in orjson.loads(record)]


# ── what a worker signs and verifies with ───────────────────────────────────────────────────


class Signing:
    """Signs links that live `url_ttl_seconds`, and verifies them.

    `keys` are those of the settings (`kid`, secret); None: those of the store.
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
        self._keys = _configured(keys) if keys is not None else None
        self._read_at = -math.inf
        self._reading: SingleFlight[str, SigningKeys] = SingleFlight()

    async def sign(self, path: str) -> str:
        """The link to `path`. Raises `StoreUnavailable` while the keys were never read."""
        keys = await self._keys_to_sign()
        return keys.sign(path, expires_at=expiry(self._clock(), self._url_ttl_seconds))

    async def verify(self, link: str) -> int:
        """When a link of ours, path and query as received, expires, in Unix seconds.

        Raises `GatewayError` 403 for any other; `StoreUnavailable` when that cannot be told.
        """
        kid = _parse(link)["kid"]
        keys = self._keys or await self._read()
        if kid not in keys and self._is_older_than(RETRY_SECONDS):
            keys = await self._read()  # another worker may have made a new one
        return keys.verify(link, now=self._clock())

    async def rotate(self) -> str:
        """Signs with a new key from now on, and answers its id; links already given live on.

        Raises `InvalidRequest` (409) for keys of the settings, `StoreUnavailable`.
        """
        if self._is_configured:
            raise _keys_are_configured()
        for _ in range(WRITE_ATTEMPTS):
            old = await self._record()
            fresh = make_key(self._clock(), self._random_bytes)
            keys = put_in_front(fresh, decode_keys(old), url_ttl_seconds=self._url_ttl_seconds)
            change = Write(META, RECORD, encode_keys(keys), expected=old)
            if await execute(self._store, CompareAndSet((change,))) is None:
                self._know(keys)
                return fresh.kid
        raise GatewayError("The signing keys are being changed; try again.", status=503)

    async def _keys_to_sign(self) -> SigningKeys:
        """Keys read lately. While the store is away nobody replaces any, and the old ones do."""
        if self._keys is not None and not self._is_older_than(FRESH_SECONDS):
            return self._keys
        try:
            return await self._read()
        except StoreUnavailable:
            if self._keys is None:
                raise
            return self._keys

    def _is_older_than(self, seconds: float) -> bool:
        """Also when the clock was set back."""
        return not self._is_configured and not 0 <= self._clock() - self._read_at < seconds

    async def _read(self) -> SigningKeys:
        """The keys as the store has them now; concurrent calls share one read."""
        return await self._reading.run(RECORD, self._read_store, name="read signing keys")

    async def _read_store(self) -> SigningKeys:
        return self._know(decode_keys(await self._record()))

    def _know(self, keys: Sequence[StoredKey]) -> SigningKeys:
        self._keys = SigningKeys([(key.kid, bytes.fromhex(key.secret)) for key in keys])
        self._read_at = self._clock()
        return self._keys

    async def _record(self) -> bytes:
        """The record; the first who needs it makes it."""
        if (found := await execute(self._store, Get(META, RECORD))) is not None:
            return found
        first = encode_keys([make_key(self._clock(), self._random_bytes)])
        await execute(self._store, CompareAndSet((Write(META, RECORD, first, expected=None),)))
        made = await execute(self._store, Get(META, RECORD))
        if made is None:
            raise StoreUnavailable
        return made


def _configured(keys: Sequence[tuple[str, SecretStr]]) -> SigningKeys:
    return SigningKeys([(kid, secret.get_secret_value().encode()) for kid, secret in keys])


def _keys_are_configured() -> InvalidRequest:
    return InvalidRequest(
        "The signing keys stand in the configuration (GATEWAY_SIGNING_KEYS): put a new one in "
        "front of them there.",
        status=409,
        code="signing_keys_configured",
    )

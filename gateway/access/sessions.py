"""Sessions of the dashboard: `docs/reference/dashboard.md#sessions`.

A session is a signed token, so every worker can read it. It is bound to the admin token or to one
secret of a key, and ends with that. The signing secret is a record of the store. A session that was
signed out is a value of the store until it would have expired.

Cookies are `api.dashboard.cookie`; links that sign in once are `access.sign_in_links`.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final, Literal, TypeAlias

import orjson
from pydantic import SecretStr

from gateway.access.key_spaces import Credential, hash_secret
from gateway.access.sign_in_links import use_sign_in_link
from gateway.access.signing import META
from gateway.errors import INVALID_REQUEST, ErrorCode, GatewayError, StoreUnavailable
from gateway.images import decode_fields
from gateway.store.batch import Batch, execute
from gateway.store.commands import (
    AdvanceCounter,
    CompareAndSet,
    Get,
    GetValue,
    SetValue,
    Write,
)
from gateway.store.protocol import Store
from gateway.tasks import SingleFlight

SESSION_SECONDS: Final = 12 * 3600
RECORD: Final = "session_secret"
ENDED: Final = "ended_sessions"
"""Values by the session's id."""
ENDED_COUNTS: Final = "ended_session_counts"
"""How many of these an admin, or the holder of a key, has made."""
ENDED_BEFORE: Final = "sessions_ended_before"
"""Until when, in Unix seconds, all sessions started that have ended altogether."""
MAX_ENDED: Final = 1000
"""Sign-outs of one key in 12 hours that are stored one by one: a script must not fill the store."""
MAX_REMEMBERED: Final = 10_000
"""Ended sessions that one worker remembers, for while the store is unavailable."""
MAX_TOKEN: Final = 512
"""Characters; a token has about 250."""
REREAD_SECONDS: Final = 1.0
"""Tokens with an unknown signature make a worker read the secret no more often than this."""
SECRET_BYTES: Final = 32

Kind: TypeAlias = Literal["admin", "key"]


@dataclass(frozen=True, slots=True)
class Session:
    """Who is signed in to the dashboard."""

    id: str
    kind: Kind
    binding: str
    """A keyed hash of the admin token, or of the secret's hash."""
    expires_at: int
    """Unix seconds."""
    key_id: str | None = None
    """Of a key's holder."""
    started_at: float = 0.0
    """Unix seconds, with fractions: sessions of one second end one by one."""

    @property
    def owner(self) -> str:
        """Whose sessions are counted together: the key's id, or `admin`."""
        return self.key_id or self.kind


# ── tokens, pure ────────────────────────────────────────────────────────────────────────────


def sign_session(secret: bytes, session: Session) -> str:
    """The session and its signature, as `data.signature`."""
    data = _encode(orjson.dumps(asdict(session)))
    return f"{data}.{_encode(_sign(secret, data))}"


def verify_session(secret: bytes, token: str, *, now: float) -> Session | None:
    """The session of a token; None if the signature is not valid or it has expired."""
    data, _, signature = token.partition(".")
    if len(token) > MAX_TOKEN or not token.isascii():
        return None
    # The signature's text is compared, so that each session has one token.
    if not hmac.compare_digest(_encode(_sign(secret, data)), signature):
        return None
    try:
        fields = orjson.loads(base64.urlsafe_b64decode(data + "=" * (-len(data) % 4)))
        session = decode_fields(Session, fields)
    except (AttributeError, binascii.Error, TypeError, ValueError):
        return None  # a newer gateway on the same store may sign other fields
    return session if session.expires_at > now else None


def _sign(secret: bytes, data: str) -> bytes:
    return hmac.digest(secret, f"session:{data}".encode(), "sha256")


def _bind(secret: bytes, what: str) -> str:
    # Keyed, because a token is not encrypted, and the hash of a weak secret could be guessed from.
    return _encode(hmac.digest(secret, f"binding:{what}".encode(), "sha256")[:16])


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# ── a worker's sessions ─────────────────────────────────────────────────────────────────────


class Sessions:
    """Starts, reads and ends sessions.

    A worker that has read the signing secret reads sessions also while the store is unavailable.
    """

    def __init__(
        self,
        store: Store,
        *,
        admin_token: SecretStr,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._admin = f"admin:{hash_secret(admin_token.get_secret_value())}"
        self._clock = clock
        self._secret: bytes | None = None
        self._read_at = -math.inf
        self._reads: SingleFlight[str, None] = SingleFlight()
        self._ended: OrderedDict[str, None] = OrderedDict()

    async def start_admin(self) -> tuple[Session, str]:
        """A new session of an admin, and its token. Raises `StoreUnavailable`."""
        return await self._start("admin", self._admin, key_id=None)

    async def use_link(self, secret: str) -> bool:
        """Whether the secret of a one-time link signs an admin in, now and never again."""
        await self.load_secret()  # first: a link must not be used up without a session
        return await use_sign_in_link(self._store, secret)

    async def start_key(self, key_id: str, credential: Credential) -> tuple[Session, str]:
        """A new session of a key's holder, and its token. Raises `StoreUnavailable`."""
        return await self._start("key", _key_binding(credential), key_id=key_id)

    async def read(self, token: str) -> Session:
        """The session of a token.

        An admin's is bound to the present admin token. That of a key's holder needs another check:
        `is_bound`, with the key's secret. Raises 401, or `StoreUnavailable`.
        """
        secret = await self.load_secret()
        session = verify_session(secret, token, now=self._clock())
        if session is None and self._clock() - self._read_at > REREAD_SECONDS:
            # Another gateway may have made a new secret, after the store was emptied.
            with suppress(StoreUnavailable):
                await self.refresh()
            session = verify_session(await self.load_secret(), token, now=self._clock())
        if session is None or await self._has_ended(session):
            raise session_required()
        if session.kind == "admin" and not self._is_bound(session, self._admin):
            raise session_required()
        return session

    def is_bound(self, session: Session, credential: Credential) -> bool:
        """Whether this is the secret with which the session was started."""
        return self._is_bound(session, _key_binding(credential))

    async def end(self, session: Session) -> None:
        """Signs out, on every worker. Raises `StoreUnavailable`: then it holds on this one only."""
        self._remember_ended(session.id)
        count = AdvanceCounter(ENDED_COUNTS, session.owner, 1, 2**31, SESSION_SECONDS)
        if await execute(self._store, count) < MAX_ENDED:
            seconds = max(1.0, session.expires_at - self._clock())
            await execute(self._store, SetValue(ENDED, session.id, b"1", seconds))
        else:
            now = str(self._clock()).encode()
            end_all = SetValue(ENDED_BEFORE, session.owner, now, SESSION_SECONDS)
            await execute(self._store, end_all)

    async def refresh(self) -> None:
        """Reads the signing secret, so that this worker has it when the store is not available.

        Raises `StoreUnavailable`.
        """
        await self._reads.run(RECORD, self._read, name="read session secret")

    async def load_secret(self) -> bytes:
        """The signing secret. Raises `StoreUnavailable` if this worker has never read it."""
        if self._secret is None:
            await self.refresh()
        if self._secret is None:
            raise StoreUnavailable
        return self._secret

    async def _start(self, kind: Kind, binding: str, *, key_id: str | None) -> tuple[Session, str]:
        secret, now = await self.load_secret(), self._clock()
        session = Session(
            id=secrets.token_urlsafe(16),
            kind=kind,
            binding=_bind(secret, binding),
            expires_at=int(now) + SESSION_SECONDS,
            key_id=key_id,
            started_at=now,
        )
        return session, sign_session(secret, session)

    def _is_bound(self, session: Session, binding: str) -> bool:
        expected = _bind(self._secret or b"", binding)
        return self._secret is not None and hmac.compare_digest(expected, session.binding)

    async def _has_ended(self, session: Session) -> bool:
        if session.id in self._ended:
            return True
        batch = Batch(self._store)
        ended = batch.add(GetValue(ENDED, session.id))
        ended_before = batch.add(GetValue(ENDED_BEFORE, session.owner))
        try:
            await batch.execute()
        except StoreUnavailable:
            return False  # an outage ends no session
        has_ended = ended.value is not None or (
            ended_before.value is not None and session.started_at <= float(ended_before.value)
        )
        if has_ended:
            self._remember_ended(session.id)
        return has_ended

    def _remember_ended(self, session_id: str) -> None:
        self._ended[session_id] = None
        if len(self._ended) > MAX_REMEMBERED:
            self._ended.popitem(last=False)

    async def _read(self) -> None:
        # The first worker that needs it makes it.
        found = await execute(self._store, Get(META, RECORD))
        if found is None:
            made = secrets.token_hex(SECRET_BYTES).encode()
            await execute(self._store, CompareAndSet((Write(META, RECORD, made, expected=None),)))
            # Another worker may have been first.
            found = await execute(self._store, Get(META, RECORD))
        if not found:
            raise StoreUnavailable
        self._secret, self._read_at = found, self._clock()


def _key_binding(credential: Credential) -> str:
    return f"key:{credential.secret_hash}"


def session_required() -> GatewayError:
    """The 401 of a request without a valid session."""
    return GatewayError(
        "You are not signed in, or your session has ended. Sign in at /dashboard.",
        type=INVALID_REQUEST,
        code=ErrorCode.SESSION_REQUIRED,
    )

"""Sends the entries of the outbox to their webhooks.

One worker at a time sends to a webhook. An attempt is written into the entry before it is made, so
an entry is tried again by another worker if this one dies, and it may then arrive twice: receivers
know an event by its `webhook-id`. Requests are guarded like the fetching of links (`net.guard`),
follow no redirect, and read little of the answer. See `docs/reference/webhooks.md#delivery`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
import ssl
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
import structlog
from aiohttp.abc import AbstractResolver
from pydantic import BaseModel, ConfigDict, Field, field_validator
from yarl import URL

from gateway import __version__
from gateway.events import Webhook
from gateway.net.guard import AddressPolicy, AllowList, LinkBlocked, parse_allow_list, parse_link
from gateway.net.guarded_sockets import AddressBlocked, socket_factory
from gateway.net.tls import create_tls
from gateway.store.protocol import Store
from gateway.store.turns import end_turn, take_turn
from gateway.webhooks.outbox import (
    KEEP_SECONDS,
    Entry,
    Outbox,
    log_dropped,
    webhook_id,
    webhooks_by_id,
)

SEND_EVERY_SECONDS: Final = 1.0
TURN_SECONDS: Final = 30.0
"""How long the other workers wait for one that took a webhook's turn and does not finish."""
SENDING_SECONDS: Final = 15.0
"""How long one turn starts new attempts."""
MAX_ANSWER_BYTES: Final = 64 * 1024
"""Read of an answer. The rest is cut off with its connection."""
ANSWER_SECONDS: Final = 1.0
"""How long the body of an answer is waited for."""
BACK_OFF_SECONDS: Final = (5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
"""Pauses after failed attempts; the last one repeats until the entry is a day old."""
MAX_REST_SECONDS: Final = 60.0
"""How long a webhook that failed gets no other event, at most."""
GONE: Final = 410
REMOVED_SECONDS: Final = 600.0
"""How long entries of an unknown webhook are kept: workers reload `access.yaml` one by one."""
SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what every secret starts with

_MENTION: Final = re.compile(r"(?<!\w)@|@(?=(?:all|channel|everyone|here|online)\b)", re.IGNORECASE)
"""What chats that take Slack's format read as a mention, also in plain text. No mail address."""

log = structlog.get_logger(__name__)


class SenderSettings(BaseModel):
    """The addresses that webhooks may have, and the time of one attempt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow: tuple[str, ...] = ()
    """Hosts, `host:port`, addresses and networks, also private ones and over plain http."""
    timeout_seconds: float = Field(default=10.0, gt=0)
    ca_file: Path | None = None
    more_ca_files: tuple[Path, ...] = ()
    """Certificate authorities in PEM that are trusted in addition to the system's."""

    @field_validator("allow")
    @classmethod
    def _is_valid(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parse_allow_list(value)
        return value

    @property
    def allow_list(self) -> AllowList:
        """The hosts and networks that are allowed beside public addresses over https."""
        return parse_allow_list(self.allow)


class AttemptFailed(Exception):
    """A webhook did not accept an event. The message says why, and has no part of the URL."""

    def __init__(self, reason: str, *, is_final: bool = False) -> None:
        super().__init__(reason)
        self.reason: Final = reason
        self.is_final: Final = is_final
        """The receiver wants no more attempts."""


@asynccontextmanager
async def open_http(
    settings: SenderSettings, *, resolver: AbstractResolver | None = None
) -> AsyncIterator[GuardedHttp]:
    """The HTTP client of a worker. Raises `OSError` for a bad `ca_file`."""
    tls = await asyncio.to_thread(
        create_tls, settings.ca_file, *settings.more_ca_files
    )  # reads files
    async with AsyncExitStack() as stack:
        sessions = {}
        # A session for each policy, because a pooled connection is reused without a check.
        for policy in AddressPolicy:
            session = _open_session(settings, policy, tls=tls, resolver=resolver)
            sessions[policy] = await stack.enter_async_context(session)
        yield GuardedHttp(sessions, settings)


class GuardedHttp:
    """Posts to addresses that are allowed."""

    def __init__(
        self, sessions: Mapping[AddressPolicy, aiohttp.ClientSession], settings: SenderSettings
    ) -> None:
        self._sessions = sessions
        self._settings = settings
        self._allow_list = settings.allow_list

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Posts JSON. Raises `AttemptFailed` for any answer but 2xx, and if there is none."""
        try:
            link = parse_link(url)
            session = self._sessions[self._allow_list.policy_for(link)]
            async with asyncio.timeout(self._settings.timeout_seconds):
                await _post(session, URL(link.url, encoded=True), body, headers)
        except LinkBlocked as blocked:
            raise AttemptFailed(f"blocked: {blocked.reason}") from None
        except TimeoutError:
            raise AttemptFailed("timeout") from None
        except (aiohttp.ClientError, OSError) as error:
            # Not its text, which may have the URL.
            raise AttemptFailed(_reason_of(error)) from None


async def _post(
    session: aiohttp.ClientSession, url: URL, body: bytes, headers: Mapping[str, str]
) -> None:
    # A redirect is not followed: it could lead the body, which names people and their spending, to
    # any host.
    async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
        if not 200 <= response.status < 300:
            status = response.status
            raise AttemptFailed(f"status {status}", is_final=status == GONE)
        # It was accepted, however its answer ends.
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                await _drain(response)


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Reads the answer, so that its receiver need not see a connection that is cut off."""
    read = 0
    async for chunk in response.content.iter_any():
        read += len(chunk)
        if read > MAX_ANSWER_BYTES:
            return


def _reason_of(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(
        error.os_error, AddressBlocked
    ):
        return "blocked: address"
    return type(error).__name__


def _open_session(
    settings: SenderSettings,
    policy: AddressPolicy,
    *,
    tls: ssl.SSLContext | bool,
    resolver: AbstractResolver | None,
) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            force_close=True,  # events are rare
            resolver=resolver,
            use_dns_cache=False,
            socket_factory=socket_factory(settings.allow_list, policy),
            ssl=tls,
        ),
        # A small compressed body could expand without end, and nothing of it is used.
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),  # `post` has its own
        trust_env=False,
    )


# ── requests ────────────────────────────────────────────────────────────────────────────────


def body_of(entry: Entry, webhook: Webhook) -> bytes:
    """The JSON of a request."""
    if webhook.format == "slack":
        return orjson.dumps({"text": _escape(entry.text)})
    return orjson.dumps(
        {
            "id": entry.event_id,
            "object": "event",
            "type": entry.kind,
            "created_at": int(entry.created_at),
            "data": {**entry.data, "text": entry.text},
        }
    )


def _escape(text: str) -> str:
    """Text in which a chat finds no mention and no link: names come from clients."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MENTION.sub("@\u200b", escaped)


def headers_of(event_id: str, body: bytes, webhook: Webhook, *, now: float) -> dict[str, str]:
    """The headers of a request, signed if the webhook has a secret.

    As https://www.standardwebhooks.com says, and as OpenAI's SDKs verify.
    """
    timestamp = str(int(now))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"image-gateway/{__version__}",
        "webhook-id": event_id,
        "webhook-timestamp": timestamp,
    }
    if webhook.secret is not None:
        signed = b"%b.%b.%b" % (event_id.encode(), timestamp.encode(), body)
        digest = hmac.new(_secret_bytes(webhook.secret), signed, hashlib.sha256).digest()
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers


def _secret_bytes(secret: str) -> bytes:
    if secret.startswith(SECRET_PREFIX):
        return base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    return secret.encode()


# ── sending ─────────────────────────────────────────────────────────────────────────────────


class Sender:
    """Empties the outbox."""

    def __init__(
        self,
        store: Store,
        outbox: Outbox,
        webhooks: Callable[[], Sequence[Webhook]],
        http: GuardedHttp,
        *,
        worker: str,
        timeout_seconds: float = 10.0,
        clock: Callable[[], float] = time.time,
        observer: Callable[[str], None] = lambda outcome: None,
    ) -> None:
        self._store = store
        self._outbox = outbox
        self._webhooks = webhooks
        self._http = http
        self._worker = worker
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._observer = observer

    async def send(self) -> None:
        """Sends what is due to the webhooks whose turns are free. Raises `StoreUnavailable`."""
        declared = self._webhooks()
        if not declared:
            return
        # Also by the name that a webhook had before another one had its URL.
        webhooks = {webhook_id(webhook): webhook for webhook in reversed(declared)}
        webhooks |= webhooks_by_id(declared)
        due = self._due(await self._outbox.read())
        stops_at = time.monotonic() + SENDING_SECONDS
        # The webhooks at once, so that one that hangs does not delay the others.
        try:
            async with asyncio.TaskGroup() as group:
                for name, entries in due.items():
                    group.create_task(self._take_turn(name, webhooks.get(name), entries, stops_at))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    def _due(self, entries: Sequence[Entry]) -> Mapping[str, list[Entry]]:
        """The entries to send now by webhook, without webhooks that failed a moment ago."""
        now = self._clock()
        resting = {entry.webhook for entry in entries if now < _rest_end(entry)}
        found: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            # The first attempt is due at once, also if the clock has stepped back since.
            is_due = not entry.attempts or entry.due_at <= now
            if is_due and entry.webhook not in resting:
                found[entry.webhook].append(entry)
        return found

    async def _take_turn(
        self, name: str, webhook: Webhook | None, entries: Sequence[Entry], stops_at: float
    ) -> None:
        # A turn of its own: while it hangs, other workers send to the other webhooks.
        turn = f"webhook:{name}"
        if not await take_turn(self._store, turn, self._worker, seconds=TURN_SECONDS):
            return
        try:
            await self._send_to(webhook, entries, stops_at)
        finally:
            await end_turn(self._store, turn, self._worker, after_seconds=0.1)

    async def _send_to(
        self, webhook: Webhook | None, entries: Sequence[Entry], stops_at: float
    ) -> None:
        """Sends to one webhook, oldest first, until it fails."""
        for entry in entries:
            age = self._clock() - entry.created_at
            if age > KEEP_SECONDS:
                await self._drop(entry, "a_day_old")
            elif webhook is None:
                if age > REMOVED_SECONDS:
                    await self._drop(entry, "webhook_removed")
            elif time.monotonic() > stops_at or not await self._try(webhook, entry):
                return

    async def _try(self, webhook: Webhook, entry: Entry) -> bool:
        """One attempt. False: the webhook did not accept it."""
        pause = _pause_after(entry.attempts + 1)
        # The next attempt is not due before this one has ended.
        due_at = self._clock() + max(pause, 2 * self._timeout_seconds)
        taken = await self._outbox.take(entry, due_at=due_at)
        if taken is None:
            return True  # another worker sends it
        body = body_of(entry, webhook)
        headers = headers_of(entry.event_id, body, webhook, now=self._clock())
        try:
            await self._http.post(webhook.url, body, headers)
        except AttemptFailed as failed:
            await self._fail(taken, failed, pause)
            return False
        self._observer("delivered")
        log.info("webhook_delivered", **_about(taken))
        await self._outbox.remove(taken)
        return True

    async def _fail(self, entry: Entry, failed: AttemptFailed, pause: float) -> None:
        self._observer("failed")
        log.warning("webhook_failed", reason=failed.reason, **_about(entry))
        if failed.is_final:
            await self._drop(entry, "gone")
            return
        await self._outbox.put_back(entry, due_at=self._clock() + pause)

    async def _drop(self, entry: Entry, reason: str) -> None:
        self._observer("dropped")
        log_dropped(entry, reason)
        await self._outbox.remove(entry)


def _pause_after(attempts: int) -> float:
    return BACK_OFF_SECONDS[min(attempts, len(BACK_OFF_SECONDS)) - 1]


def _rest_end(entry: Entry) -> float:
    """Until when its webhook rests, because of its last attempt, in Unix seconds."""
    if not entry.attempts:
        return 0.0
    pause = _pause_after(entry.attempts)
    return entry.due_at - pause + min(pause, MAX_REST_SECONDS)


def _about(entry: Entry) -> dict[str, Any]:
    return {
        "webhook": entry.webhook,
        "event_id": entry.event_id,
        "kind": entry.kind,
        "attempts": entry.attempts,
    }

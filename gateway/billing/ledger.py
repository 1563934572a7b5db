"""The ledger: one record for every authenticated request, and for every purchase exactly one.

A record is a JSON object. The record of a purchase travels inside its settlement, so that
counters and ledger can never disagree; records without a cost are gathered here and written in
batches, and only those of the last moment can be lost when a process is killed.
"""

from __future__ import annotations

import hmac
import secrets
from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

import orjson
import structlog

from gateway.errors import StoreUnavailable
from gateway.images import Account, Usage
from gateway.store.batch import ask
from gateway.store.commands import Append, Change, Get, Put, ReadLedger
from gateway.store.protocol import Store

Outcome = Literal["hit", "bought", "partial", "collapsed", "refused", "failed"]

WRITE_EVERY_SECONDS: Final = 0.5
MOST_WAITING: Final = 100_000
"""Records kept in memory while the store is away; beyond it the oldest go, and are counted."""
BATCH_RECORDS: Final = 500

META: Final = "meta"
HMAC_KEY: Final = "prompt_hmac_key"

log = structlog.get_logger(__name__)


class Record(NamedTuple):
    """One line of the ledger. `id` is the request's, or the purchase's where something was bought.

    Money in micro-dollars, time in Unix seconds. `saved_micros` is what pictures that were not
    bought had cost when they were.

    A tuple, because every request makes three of them: so many fields of a frozen dataclass take
    longer to fill than the request takes to be validated.
    """

    id: str
    request_id: str
    time: float
    key: str
    key_id: str
    team: str | None = None
    user: str | None = None
    model: str | None = None
    size: str | None = None
    quality: str | None = None
    n: int | None = None
    outcome: Outcome = "refused"
    flags: tuple[str, ...] = ()
    error: str | None = None
    status: int = 200
    images: int = 0
    tokens: Mapping[str, int] = MappingProxyType({})
    cost_micros: int = 0
    saved_micros: int = 0
    latency_ms: int = 0
    upstream_request_id: str | None = None
    prompt_hmac: str | None = None
    fingerprint: str | None = None
    corrects: str | None = None
    """The record whose presumed charge this one corrects by the difference."""

    def encode(self) -> bytes:
        """JSON without what is absent."""
        return orjson.dumps(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Its JSON object, without what is absent; `record_from_dict` reads it."""
        said = zip(self._fields, self, strict=True)
        return {name: value for name, value in said if value or isinstance(value, _PLAIN)}

    @staticmethod
    def decode(data: bytes) -> Record:
        """The inverse of `encode`."""
        return record_from_dict(orjson.loads(data))

    def but(self, **changes: Any) -> Record:
        """The same record with some fields changed."""
        return self._replace(**changes)


_PLAIN: Final = (int, float, str)
"""What is there also when it is 0 or empty."""


def record_from_dict(data: Mapping[str, Any]) -> Record:
    """A record from its JSON object."""
    return Record(**{**data, "flags": tuple(data.get("flags", ()))})


def draft(account: Account, *, request_id: str, time: float) -> Record:
    """A record with what is known as soon as the key is."""
    return Record(
        id=request_id,
        request_id=request_id,
        time=time,
        key=account.key_name,
        key_id=account.key_id,
        team=account.team,
    )


def tokens_by_kind(usage: Usage | None) -> Mapping[str, int]:
    """Tokens as the ledger and the metrics name them, kinds without any left out."""
    if usage is None:
        return {}
    kinds = {
        "text_in": usage.text_in,
        "image_in": usage.image_in,
        "image_out": usage.image_out,
        "text_out": usage.text_out,
    }
    return {kind: count for kind, count in kinds.items() if count}


class Ledger:
    """Writes records that carry no cost, and reads all of them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[bytes] = deque(maxlen=MOST_WAITING)
        self._unanswered: Append | None = None
        self._hmac_key = b""

    def note(self, record: Record) -> None:
        """Adds a record without a cost; it is written within a second."""
        if len(self._waiting) == MOST_WAITING:
            log.error("ledger_record_dropped", reason="the store has been away for too long")
        self._waiting.append(record.encode())

    async def write(self) -> None:
        """Writes what is waiting; what the store did not take waits on.

        An append that was not answered may have happened, so it is repeated under its own id
        before anything new.
        """
        while self._unanswered is not None or self._waiting:
            if self._unanswered is None:
                count = min(BATCH_RECORDS, len(self._waiting))
                self._unanswered = Append(tuple(self._waiting.popleft() for _ in range(count)))
            append = self._unanswered
            await ask(self._store, append)
            if self._unanswered is append:
                self._unanswered = None

    async def read(self, *, after: str = "", limit: int = 1000) -> list[tuple[str, Record]]:
        """Up to `limit` records after the position `after`, oldest first, with positions."""
        found = await ask(self._store, ReadLedger(after, limit))
        return [(position, Record.decode(data)) for position, data in found]

    async def prompt_hmac(self, prompt: str) -> str:
        """What stands for a prompt in the ledger: equal prompts show, their words do not."""
        if not self._hmac_key:
            self._hmac_key = await _shared_secret(self._store)
        return hmac.digest(self._hmac_key, prompt.encode(), "sha256").hex()[:32]


async def _shared_secret(store: Store) -> bytes:
    """The store's own key for prompt HMACs; the first who needs it makes it."""
    if (found := await ask(store, Get(META, HMAC_KEY))) is not None:
        return found
    await ask(store, Put((Change(META, HMAC_KEY, secrets.token_bytes(32), expect=None),)))
    made = await ask(store, Get(META, HMAC_KEY))
    if made is None:
        raise StoreUnavailable
    return made

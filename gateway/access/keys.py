"""Virtual keys: who may ask, for which models, within which limits.

A secret is `gk-` and 256 random bits; the store sees only its SHA-256. A key's record is one JSON
document in the space `keys` under the key's id; `secrets` leads from a secret's hash to the id,
`names` from a live key's name to the id. A worker keeps the records it has seen; every admission
compares them with the store's, so that a change or a revocation holds from the next request on.
"""

from __future__ import annotations

import difflib
import hashlib
import hmac
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gateway.errors import GatewayError, IncorrectKey, InvalidRequest, StoreUnavailable
from gateway.images import LIMITS, Account, Reuse
from gateway.store.verbs import Change, Get, Put, Scan, Store, ask

KEYS: Final = "keys"
SECRETS: Final = "secrets"
NAMES: Final = "names"

SECRET_PREFIX: Final = "gk-"  # noqa: S105 - what every secret starts with
SHOWN_PREFIX: Final = 6
MOST_KNOWN: Final = 10_000
"""Records that one worker keeps in memory."""
TRUST_SECONDS: Final = 3600.0
"""How long a key is trusted while the store is away (CONTRACT §6, *Store down*)."""
WRITE_ATTEMPTS: Final = 5

MICROS: Final = 1_000_000
MOST: Final = 2**52
"""The largest limit, in its unit or in micro-dollars: exact in every store."""
MOST_A_MINUTE: Final = 10**8
"""The largest bucket: its level in 1/60,000,000 of a request must be exact too."""
MOST_SECONDS: Final = 253_402_300_799
"""The last Unix second of the year 9999: what calendars can show."""
MAX_ECHO: Final = 200
"""Characters of a caller's own text that an error message repeats."""


Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w.@+:/ -]+$")]
"""Of a key or a team: it stands in logs, labels and tables, so nothing in it can break those."""

Validation: TypeAlias = Literal["strict", "lenient"]
Scope: TypeAlias = Literal["global", "team", "key"]
"""Whose pictures answer a key's questions, and whom its own answer (CONTRACT §6 *Scope*)."""
"""What becomes of parameters that the API reference does not allow (CONTRACT §5)."""


class Hashed(BaseModel):
    """One secret that opens a key; `expires_at` is set on one that is being rotated out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    expires_at: float | None = None


class KeyRecord(BaseModel):
    """What the store holds of a key. Times are Unix seconds, `limits` as they were given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    name: str
    prefix: str
    secrets: tuple[Hashed, ...]
    team: str | None = None
    models: tuple[str, ...] | None = None
    limits: Mapping[str, Decimal] = Field(default_factory=dict)
    validation: Validation | None = None
    scope: Scope | None = None
    reuse: str | None = None
    allow_no_cache: bool | None = None
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None

    def encode(self) -> bytes:
        """The record's bytes in the store."""
        return self.model_dump_json(exclude_none=True).encode()

    @staticmethod
    def decode(data: bytes) -> KeyRecord:
        """The inverse of `encode`."""
        return KeyRecord.model_validate_json(data)

    def public(self) -> dict[str, Any]:
        """What the admin API and the command line show: everything but the hashes."""
        shown = self.model_dump(exclude={"secrets"}, exclude_none=True)
        shown["limits"] = {name: _plain(value) for name, value in self.limits.items()}
        return shown


def _plain(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


class KeySpec(BaseModel):
    """What may be said of a key when it is made or changed (`POST`, `PATCH /admin/keys`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Name
    team: Name | None = None
    models: Annotated[list[str], Field(min_length=1)] | None = None
    limits: Mapping[str, Any] | None = None
    validation: Validation | None = None
    scope: Scope | None = None
    reuse: str | None = None
    allow_no_cache: bool | None = None
    expires_at: Annotated[int, Field(gt=0, le=MOST_SECONDS)] | None = None

    @field_validator("limits", mode="after")
    @classmethod
    def _known_limits(cls, limits: Mapping[str, Any] | None) -> Mapping[str, Decimal] | None:
        if limits is None:
            return None
        return {n: _limit_value(n, v) for n, v in limits.items() if v is not None}

    @field_validator("reuse", mode="after")
    @classmethod
    def _known_reuse(cls, reuse: str | None) -> str | None:
        if reuse is None:
            return None
        try:
            Reuse.parse(reuse)
        except ValueError as fault:
            raise ValueError(f"Invalid 'reuse': {fault}.") from None
        return reuse


def _limit_value(name: str, value: object) -> Decimal:
    if name not in LIMITS:
        near = difflib.get_close_matches(name, LIMITS, n=1, cutoff=0.0)
        raise ValueError(f"Unknown limit '{name[:MAX_ECHO]}'. Did you mean '{near[0]}'?")
    scale = MICROS if LIMITS[name].unit == "micros" else 1
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    number = Decimal(str(value)) if is_number else Decimal("nan")
    most = MOST_A_MINUTE if LIMITS[name].period == "minute" else MOST // scale
    if number.is_finite() and number > most:
        raise ValueError(f"Limit '{name}' is too large: {value!r}.")
    if not number.is_finite() or number < 0 or number * scale % 1:
        kind = "an amount in US dollars" if scale > 1 else "a whole number"
        shown = repr(value)[:MAX_ECHO]
        raise ValueError(f"Limit '{name}' must be {kind}, 0 or more, not {shown}.")
    return number


@dataclass(frozen=True, slots=True)
class Key:
    """A key that may be used right now."""

    account: Account
    models: frozenset[str] | None
    """The models that it may use; None for all."""
    validation: Validation | None
    """None for what the gateway is set to."""
    scope: Scope | None
    """None for what the gateway is set to."""
    reuse: Reuse
    allow_no_cache: bool
    """Whether its requests may ask for other pictures than those that there are."""
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

    def was_confirmed(self, key: Key) -> None:
        """The store has just said that this key is what we think it is."""
        self._confirmed_at[key.account.key_id] = self._clock()

    def may_go_on_alone(self, key: Key) -> bool:
        """Whether its word holds while the store is away: it was confirmed within the hour."""
        confirmed_at = self._confirmed_at.get(key.account.key_id, 0.0)
        return confirmed_at > self._clock() - TRUST_SECONDS

    def learn(self, secret: str, record: bytes) -> None:
        """Takes note of a record that an admission found to be newer; b"" when it is gone."""
        self._known.pop(_hash(secret), None)
        if record:
            self._remember(_hash(secret), record)

    async def _fetch(self, hashed: str) -> _Known | None:
        data = await ask(self._store, Get(KEYS, hashed, through=SECRETS))
        return None if data is None else self._remember(hashed, data)

    def _remember(self, hashed: str, data: bytes) -> _Known:
        known = self._known[hashed] = _know(data, hashed)
        if len(self._known) > MOST_KNOWN:
            _, gone = self._known.popitem(last=False)
            self._confirmed_at.pop(gone.key.account.key_id, None)
        return known

    async def create(self, spec: KeySpec) -> tuple[KeyRecord, str]:
        """Makes a key; its secret is never to be had again. 409 when the name is taken."""
        secret = SECRET_PREFIX + secrets.token_urlsafe(32)
        record = KeyRecord(
            id="key_" + secrets.token_hex(12),
            prefix=secret[:SHOWN_PREFIX],
            secrets=(Hashed(sha256=_hash(secret)),),
            created_at=int(self._clock()),
            **_fields(spec),
        )
        for _ in range(WRITE_ATTEMPTS):
            holder = await self._holder_of(spec.name)
            changes = (
                Change(NAMES, record.name, record.id.encode(), expect=holder),
                Change(KEYS, record.id, record.encode(), expect=None),
                Change(SECRETS, _hash(secret), record.id.encode(), expect=None),
            )
            if await ask(self._store, Put(changes)) is None:
                return record, secret
        raise _name_taken(spec.name)

    async def _holder_of(self, name: str) -> bytes | None:
        """What stands under a name that is free to take: nothing, or a key past its life."""
        holder = await ask(self._store, Get(NAMES, name))
        if holder is not None and await self._is_live(holder.decode()):
            raise _name_taken(name)
        return holder

    async def _is_live(self, key_id: str) -> bool:
        data = await ask(self._store, Get(KEYS, key_id))
        return data is not None and self._lives(KeyRecord.decode(data))

    async def everyone(self) -> Sequence[KeyRecord]:
        """All keys, revoked ones among them, oldest first."""
        found = await ask(self._store, Scan(KEYS))
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
            data = await ask(self._store, Get(KEYS, key_id))
            old = KeyRecord.decode(data) if data is not None else None
            if old is None or old.revoked_at is not None:
                raise GatewayError(
                    f"No live key has the id '{key_id}'.",
                    status=404,
                    type="invalid_request_error",
                    code="key_not_found",
                )
            new = change(old)
            changes = [Change(KEYS, key_id, new.encode(), expect=data)]
            changes += await self._name_changes(old, new)
            if await ask(self._store, Put(tuple(changes))) is None:
                return new
        raise GatewayError("The key is being changed by somebody else; try again.", status=409)

    async def _name_changes(self, old: KeyRecord, new: KeyRecord) -> list[Change]:
        """Names follow live keys: an ended or renamed key gives its name up, a live one needs one.

        The name of an expired key may be somebody else's by now; then it cannot come back to life
        under it.
        """
        holder = await ask(self._store, Get(NAMES, old.name))
        is_own, stays = holder == old.id.encode(), new.name == old.name
        changes = []
        if is_own and (new.revoked_at is not None or not stays):
            changes.append(Change(NAMES, old.name, None, expect=holder))
        if self._lives(new) and not (is_own and stays):
            free = await self._holder_of(new.name)
            changes.append(Change(NAMES, new.name, new.id.encode(), expect=free))
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
            account=Account(
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


def parse_spec(data: Mapping[str, Any]) -> KeySpec:
    """A key's description from outside; a 400 that names the field and the nearest valid one."""
    for name in data:
        if name not in KeySpec.model_fields:
            near = difflib.get_close_matches(name, KeySpec.model_fields, n=1, cutoff=0.0)
            raise InvalidRequest(
                f"Unknown parameter: '{name[:MAX_ECHO]}'. Did you mean '{near[0]}'?",
                param=name[:MAX_ECHO],
                code="unknown_parameter",
            )
    try:
        return KeySpec.model_validate(data)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        param = ".".join(str(part) for part in first["loc"][:1])
        said = first["msg"].removeprefix("Value error, ")
        raise InvalidRequest(
            said if first["type"] == "value_error" else f"Invalid '{param}': {said}.",
            param=param,
            code="invalid_value",
        ) from None


def _merged(record: KeyRecord, fields: Mapping[str, Any]) -> KeyRecord:
    """A record with fields merged in, checked as a whole like a new one."""
    limits = fields.get("limits", {})
    if isinstance(limits, Mapping):
        fields = {**fields, "limits": {**record.limits, **limits}}
    if fields.get("limits") is None:
        fields = {**fields, "limits": {}}
    kept = record.model_dump(include=set(KeySpec.model_fields) - {"limits"})
    kept["models"] = list(record.models) if record.models is not None else None
    spec = parse_spec({**kept, **fields})
    return record.model_copy(update={**_fields(spec)})


def _fields(spec: KeySpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "team": spec.team,
        "models": tuple(spec.models) if spec.models is not None else None,
        "limits": dict(spec.limits or {}),
        "validation": spec.validation,
        "scope": spec.scope,
        "reuse": spec.reuse,
        "allow_no_cache": spec.allow_no_cache,
        "expires_at": spec.expires_at,
    }


def _in_units(name: str, value: Decimal) -> int:
    return int(value * MICROS) if LIMITS[name].unit == "micros" else int(value)


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

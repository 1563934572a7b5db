"""What the store holds of a key, and what may be said of one."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gateway.errors import InvalidRequest
from gateway.images import Reuse
from gateway.limits import LIMITS
from gateway.values import nearest

SHOWN_PREFIX: Final = 6

MICROS: Final = 1_000_000
MOST: Final = 2**52
"""The largest limit, in its unit or in micro-dollars: exact in every store."""
MAX_A_MINUTE: Final = 10**8
"""The largest bucket: its level in 1/60,000,000 of a request must be exact too."""
MAX_SECONDS: Final = 253_402_300_799
"""The last Unix second of the year 9999: what calendars can show."""
MAX_ECHO: Final = 200
"""Characters of a caller's own text that an error message repeats."""


Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w.@+:/ -]+$")]
"""Of a key or a team: it stands in logs, labels and tables, so nothing in it can break those."""

Validation: TypeAlias = Literal["strict", "lenient"]
Scope: TypeAlias = Literal["global", "team", "key"]
"""Whose images answer a key's questions, and whom its own answer (CONTRACT §6 *Scope*)."""
"""What becomes of parameters that the API reference does not allow (CONTRACT §5)."""


class SecretHash(BaseModel):
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
    secrets: tuple[SecretHash, ...]
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
    expires_at: Annotated[int, Field(gt=0, le=MAX_SECONDS)] | None = None

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
        near = nearest(name, LIMITS)
        raise ValueError(f"Unknown limit '{name[:MAX_ECHO]}'. Did you mean '{near}'?")
    scale = MICROS if LIMITS[name].unit == "usd_micros" else 1
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    number = Decimal(str(value)) if is_number else Decimal("nan")
    most = MAX_A_MINUTE if LIMITS[name].period == "minute" else MOST // scale
    if number.is_finite() and number > most:
        raise ValueError(f"Limit '{name}' is too large: {value!r}.")
    if not number.is_finite() or number < 0 or number * scale % 1:
        kind = "an amount in US dollars" if scale > 1 else "a whole number"
        shown = repr(value)[:MAX_ECHO]
        raise ValueError(f"Limit '{name}' must be {kind}, 0 or more, not {shown}.")
    return number


def parse_spec(data: Mapping[str, Any]) -> KeySpec:
    """A key's description from outside; a 400 that names the field and the nearest valid one."""
    for name in data:
        if name not in KeySpec.model_fields:
            near = nearest(name, KeySpec.model_fields)
            raise InvalidRequest(
                f"Unknown parameter: '{name[:MAX_ECHO]}'. Did you mean '{near}'?",
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
    return int(value * MICROS) if LIMITS[name].unit == "usd_micros" else int(value)

"""Key records, as the store has them and as an administrator sets them.

A record may have fields of a newer gateway on the same store. They are kept and not shown. Making,
changing and authenticating keys is `access.keys`.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
)

from gateway.access.labels import parse_labels
from gateway.access.limit_values import (
    LimitOptions,
    LimitValue,
    limit_rules,
    limit_values,
    parse_limits,
    record_limits,
    shown_limits,
    whole_changes,
)
from gateway.access.specs import parse_model
from gateway.access.user_header import parse_user_header
from gateway.errors import MAX_ECHO, ErrorCode, InvalidRequest
from gateway.images import MAX_PRIORITY, LimitRule, Reuse
from gateway.values import DURATION, parse_duration

PREFIX_CHARACTERS: Final = 6
"""How much of a secret its record shows."""

MAX_SECRETS: Final = 5
"""Secrets of one key that are valid at once: the current one and those that it replaces."""
MAX_OVERLAP_SECONDS: Final = 90 * 86_400

MAX_SECONDS: Final = 253_402_300_799
"""The last Unix second of the year 9999, the last that calendars can show."""

MIN_WRITTEN_SECONDS: Final = 10**9
"""The first Unix second that may be written as text, in 2001: a smaller number is a duration whose
unit is missing."""

Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w.@+:/ -]+$")]
"""Of a key or a team. No character that would break a log line, a label or a table."""


def _check_team(name: str) -> str:
    if name in (".", ".."):
        raise ValueError(f"Invalid team '{name}': no URL can have it as a part of its path.")
    return name


TeamName = Annotated[Name, AfterValidator(_check_team)]

Validation: TypeAlias = Literal["strict", "lenient"]
"""See `docs/reference/images-api.md#lenient-validation`."""

Scope: TypeAlias = Literal["global", "team", "key"]
"""Which keys share a key's cached images, see `docs/reference/cache.md#scope`."""

Parallel: TypeAlias = Literal["share", "vary"]
"""What identical requests of one key at once get: the same images, or the next ones. See
`docs/reference/cache.md#identical-requests-at-once`."""


def parse_expiry(value: object, *, now: float) -> object:
    """The Unix second of an expiry that is written as a text; another value as it is.

    Raises `ValueError` with what was expected.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    duration = DURATION.fullmatch(text)
    if duration is not None and duration[2]:
        with suppress(ValueError):  # for none, as in 0d
            # Rounded up, so that the shortest one is not over at once.
            return math.ceil(now + parse_duration(text))
    elif re.fullmatch(r"[0-9]{1,12}", text) and int(text) >= MIN_WRITTEN_SECONDS:
        return int(text)
    raise ValueError(
        "expected Unix seconds such as 1798761600, or a duration with its unit such as 12h or 30d, "
        f"but got {value[:MAX_ECHO]!r}"
    )


def parse_overlap(value: object) -> int:
    """Whole seconds from `24h`, a number of seconds, or 0. Raises `InvalidRequest`."""
    try:
        # Rounded up, so that the shortest one is not over at once.
        seconds = (
            0 if value in (0, "0") and value is not False else math.ceil(parse_duration(value))
        )
    except ValueError as error:
        shown = repr(value)[:MAX_ECHO]
        problem = f"expected 0, or {error}, but got {shown}"
    else:
        if seconds <= MAX_OVERLAP_SECONDS:
            return seconds
        problem = (
            f"expected at most {MAX_OVERLAP_SECONDS // 86_400}d, but got {repr(value)[:MAX_ECHO]}"
        )
    raise InvalidRequest(
        f"Invalid 'overlap': {problem}.", param="overlap", code=ErrorCode.INVALID_VALUE
    )


class SecretHash(BaseModel):
    """A secret that authenticates a key; `expires_at` is set on one that is being rotated out."""

    model_config = ConfigDict(frozen=True, extra="allow")

    sha256: str
    expires_at: float | None = None


class KeyRecord(BaseModel):
    """A key in the store. Times are Unix seconds; limits are in dollars where they are money."""

    model_config = ConfigDict(frozen=True, extra="allow")

    id: str
    name: str
    prefix: str
    secrets: tuple[SecretHash, ...]
    team: str | None = None
    models: tuple[str, ...] | None = None
    limits: Mapping[str, Decimal] = Field(default_factory=dict)
    limit_options: Mapping[str, LimitOptions] | None = None
    validation: Validation | None = None
    scope: Scope | None = None
    reuse: str | None = None
    parallel: Parallel | None = None
    hits_report_usage: bool | None = None
    allow_no_cache: bool | None = None
    user_header: str | None = None
    labels: Mapping[str, str] | None = None
    priority: int | None = None
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    declared_in: str | None = None
    """The name of the file that declares it. Then it is not in the store."""

    def encode(self) -> bytes:
        """The record's bytes in the store."""
        return self.model_dump_json(exclude_none=True).encode()

    @staticmethod
    def decode(data: bytes) -> KeyRecord:
        """The inverse of `encode`."""
        return KeyRecord.model_validate_json(data)

    def is_active(self, now: float) -> bool:
        """Whether the key is neither revoked nor expired."""
        has_expired = self.expires_at is not None and self.expires_at <= now
        return self.revoked_at is None and not has_expired

    def rotate(
        self, secret: SecretHash, prefix: str, *, now: float, overlap_seconds: int
    ) -> KeyRecord:
        """The record with a new secret. The former ones end after the overlap, if not before.

        Raises `InvalidRequest` if too many would be valid at once.
        """
        ends_at = math.ceil(now) + overlap_seconds
        former = tuple(
            replaced.model_copy(update={"expires_at": min(replaced.expires_at or ends_at, ends_at)})
            for replaced in self.without_ended_secrets(now).secrets
            if overlap_seconds
        )
        if len(former) >= MAX_SECRETS:
            raise InvalidRequest(
                f"Key '{self.name}' has {len(former)} secrets that are still valid, and more than "
                f"{MAX_SECRETS} at once are not possible. Without an overlap (0) the new secret "
                "replaces all of them.",
                param="overlap",
                code=ErrorCode.INVALID_VALUE,
            )
        return self.model_copy(update={"secrets": (secret, *former), "prefix": prefix})

    def without_ended_secrets(self, now: float) -> KeyRecord:
        """The same record if no overlap has ended."""
        valid = tuple(s for s in self.secrets if s.expires_at is None or s.expires_at > now)
        return self if valid == self.secrets else self.model_copy(update={"secrets": valid})

    @property
    def limit_values(self) -> dict[str, LimitValue]:
        """The limits; a newer gateway's are left out."""
        return limit_values(self.limits, self.limit_options)

    def limit_rules(self, raised: Mapping[str, Decimal] | None = None) -> dict[str, LimitRule]:
        """The rules that requests are counted by, with what is added to each limit."""
        return limit_rules(self.limit_values, raised)

    def public(self) -> dict[str, Any]:
        """The record for the admin API and the command line, without secret hashes."""
        fields = set(KeyRecord.model_fields) - {"secrets", "limit_options"}
        shown = self.model_dump(include=fields, exclude_none=True)
        if ends := [int(s.expires_at) for s in self.secrets if s.expires_at is not None]:
            shown["former_secrets_expire_at"] = ends
        if self.declared_in is not None:
            del shown["created_at"]  # a file does not say
        return shown | {"limits": shown_limits(self)}

    def merge(
        self, changes: Mapping[str, Any], *, clock: Callable[[], float] = time.time
    ) -> KeyRecord:
        """The record with `changes`, checked as a whole like a new one. Raises `InvalidRequest`.

        None removes a field, one of the limits, or one of the labels.
        """
        whole, unknown = whole_changes(self, changes)
        fields = self.model_dump(include=set(KeySpec.model_fields) - {"limits"})
        # `KeySpec` is strict: it takes the list of a JSON body, not the tuple of a record.
        fields["models"] = list(self.models) if self.models is not None else None
        spec = parse_spec({**fields, **whole}, clock=clock)
        update = spec.record_fields()
        return self.model_copy(update={**update, "limits": {**unknown, **update["limits"]}})


class KeySpec(BaseModel):
    """The fields of a key that an administrator sets (`POST`, `PATCH /admin/keys`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Name
    team: TeamName | None = None
    models: Annotated[list[str], Field(min_length=1)] | None = None
    limits: Mapping[str, Any] | None = None
    validation: Validation | None = None
    scope: Scope | None = None
    reuse: str | None = None
    parallel: Parallel | None = None
    hits_report_usage: bool | None = None
    allow_no_cache: bool | None = None
    user_header: str | None = None
    labels: Mapping[str, Any] | None = None
    priority: Annotated[int, Field(ge=1, le=MAX_PRIORITY)] | None = None
    expires_at: Annotated[int, Field(gt=0, le=MAX_SECONDS)] | None = None

    @field_validator("limits", mode="after")
    @classmethod
    def _parse_limits(cls, limits: Mapping[str, Any] | None) -> Mapping[str, LimitValue] | None:
        return None if limits is None else parse_limits(limits)

    @field_validator("reuse", mode="after")
    @classmethod
    def _check_reuse(cls, reuse: str | None) -> str | None:
        if reuse is None:
            return None
        try:
            Reuse.parse(reuse)
        except ValueError as error:
            raise ValueError(f"Invalid 'reuse': {error}.") from None
        return reuse

    @field_validator("user_header", mode="after")
    @classmethod
    def _check_user_header(cls, name: str | None) -> str | None:
        return None if name is None else parse_user_header(name)

    @field_validator("labels", mode="after")
    @classmethod
    def _parse_labels(cls, labels: Mapping[str, Any] | None) -> Mapping[str, str] | None:
        return None if labels is None else parse_labels(labels)

    def record_fields(self) -> dict[str, Any]:
        """The fields of a `KeyRecord` that follow from this."""
        return {
            "name": self.name,
            "team": self.team,
            "models": tuple(self.models) if self.models is not None else None,
            **record_limits(self.limits or {}),
            "validation": self.validation,
            "scope": self.scope,
            "reuse": self.reuse,
            "parallel": self.parallel,
            "hits_report_usage": self.hits_report_usage,
            "allow_no_cache": self.allow_no_cache,
            "user_header": self.user_header,
            "labels": dict(self.labels) if self.labels else None,
            "priority": self.priority,
            "expires_at": self.expires_at,
        }


def parse_spec(data: Mapping[str, Any], *, clock: Callable[[], float] = time.time) -> KeySpec:
    """Checks the fields of a new key. Raises `InvalidRequest`, which names the field.

    `expires_at` may be a text too: a duration counts from now.
    """
    if "expires_at" in data:
        try:
            data = {**data, "expires_at": parse_expiry(data["expires_at"], now=clock())}
        except ValueError as error:
            raise InvalidRequest(
                f"Invalid 'expires_at': {error}.",
                param="expires_at",
                code=ErrorCode.INVALID_VALUE,
            ) from None
    return parse_model(KeySpec, data)

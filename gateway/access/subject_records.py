"""Records of teams and of everyone, as the store has them and as an administrator sets them."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from gateway.access.key_records import Scope, TeamName
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
from gateway.images import LimitRule


class SubjectRecord(BaseModel):
    """A team, or everyone, whose name is empty and which only has limits."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = ""
    limits: Mapping[str, Decimal] = Field(default_factory=dict)
    limit_options: Mapping[str, LimitOptions] | None = None
    models: tuple[str, ...] | None = None
    """Those that its keys may use; None for all."""
    scope: Scope | None = None
    """The default of its keys."""
    labels: Mapping[str, str] | None = None
    """In the records of its keys' requests, besides the keys' own."""
    created_at: int | None = None
    """Unix seconds; None if it was never stored."""

    def encode(self) -> bytes:
        """The record's bytes in the store."""
        return self.model_dump_json(exclude_none=True).encode()

    @staticmethod
    def decode(data: bytes) -> SubjectRecord:
        """The inverse of `encode`."""
        return SubjectRecord.model_validate_json(data)

    @property
    def limit_values(self) -> dict[str, LimitValue]:
        """The limits; a newer gateway's are left out."""
        return limit_values(self.limits, self.limit_options)

    def limit_rules(self, raised: Mapping[str, Decimal] | None = None) -> dict[str, LimitRule]:
        """The rules that requests are counted by, with what is added to each limit."""
        return limit_rules(self.limit_values, raised)

    def public(self) -> dict[str, Any]:
        """The record for the admin API and the command line."""
        fields = {"name", "models", "scope", "labels", "created_at"}
        shown = self.model_dump(include=fields, exclude_none=True)
        return shown | {"limits": shown_limits(self)}

    def merge(self, changes: Mapping[str, Any]) -> SubjectRecord:
        """The record with `changes`, checked as a whole like a new one. Raises `InvalidRequest`.

        None removes a field, one of the limits, or one of the labels.
        """
        whole, unknown = whole_changes(self, changes)
        fields = {
            # `TeamSpec` is strict: it takes the list of a JSON body, not the tuple of a record.
            "models": list(self.models) if self.models is not None else None,
            "scope": self.scope,
            "labels": self.labels,
        }
        update = parse_model(TeamSpec, {**fields, **whole}).record_fields()
        return self.model_copy(update={**update, "limits": {**unknown, **update["limits"]}})


class TeamSpec(BaseModel):
    """The fields of a team that an administrator sets, besides its name."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    limits: Mapping[str, Any] | None = None
    models: Annotated[list[str], Field(min_length=1)] | None = None
    scope: Scope | None = None
    labels: Mapping[str, Any] | None = None

    @field_validator("limits", mode="after")
    @classmethod
    def _parse_limits(cls, limits: Mapping[str, Any] | None) -> Mapping[str, LimitValue] | None:
        return None if limits is None else parse_limits(limits)

    @field_validator("labels", mode="after")
    @classmethod
    def _parse_labels(cls, labels: Mapping[str, Any] | None) -> Mapping[str, str] | None:
        return None if labels is None else parse_labels(labels)

    def record_fields(self) -> dict[str, Any]:
        """The fields of a `SubjectRecord` that follow from this."""
        return {
            **record_limits(self.limits or {}),
            "models": tuple(self.models) if self.models is not None else None,
            "scope": self.scope,
            "labels": dict(self.labels) if self.labels else None,
        }


class NewTeam(TeamSpec):
    """The fields of a new team."""

    name: TeamName


class EveryoneSpec(BaseModel):
    """The fields of everyone."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    limits: Mapping[str, Any] | None = None

    @field_validator("limits", mode="after")
    @classmethod
    def _parse_limits(cls, limits: Mapping[str, Any] | None) -> Mapping[str, LimitValue] | None:
        return None if limits is None else parse_limits(limits)

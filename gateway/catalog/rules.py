"""Combinations of parameters that a row refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, model_validator

from gateway.catalog.rows import Name, Row, require


class RuleCondition(Row):
    """A condition on a parameter's value: exactly one of these."""

    equals: str | int | float | bool | None = None
    not_equals: str | int | float | bool | None = None
    """Also holds for an omitted parameter without a default."""
    above: int | float | None = None
    below: int | float | None = None
    given: bool | None = None
    """Whether the request has a parameter that has no default."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        names = ", ".join(type(self).model_fields)
        require(len(self.model_fields_set) == 1, f"needs one of {names}")
        return self

    def holds(self, value: object) -> bool:
        """Whether the condition holds for a value, which may be the parameter's default.

        None is an omitted parameter without a default.
        """
        if self.given is not None:
            return (value is not None) == self.given
        if self.equals is not None:
            return value == self.equals
        if self.not_equals is not None:
            return value != self.not_equals
        if not isinstance(value, int | float):
            return False
        if self.above is not None:
            return value > self.above
        return self.below is not None and value < self.below


class RuleError(Row):
    """The error body of a rule, see `docs/reference/images-api.md#combinations`."""

    message: Name
    type: Name = "invalid_request_error"
    param: Name | None = None
    code: Name | None = None


class Rule(Row):
    """A combination that is refused: every condition holds."""

    when: Annotated[Mapping[Name, RuleCondition], Field(min_length=1)]
    error: RuleError

"""Combinations of parameters that a row refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, model_validator

from gateway.catalog.rows import Name, Row, require


class RuleCondition(Row):
    """A condition on a parameter's value: exactly one of the three."""

    equals: str | int | bool | None = None
    above: int | None = None
    below: int | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        require(len(self.model_fields_set) == 1, "needs one of equals, above, below")
        return self

    def holds(self, value: object) -> bool:
        """Whether the condition holds for a value, which may be the parameter's default."""
        if self.equals is not None:
            return value == self.equals
        if not isinstance(value, int):
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

"""The types of parameters that a row can have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, PositiveInt, model_validator

from gateway.catalog.rows import Name, Row, Size, require


class ChoiceSpec(Row):
    """One of `values`. `means` maps another spelling of a value to that value."""

    type: Literal["choice"]
    # Not strict: YAML has lists, which a strict tuple refuses.
    values: Annotated[tuple[Name, ...], Field(min_length=1, strict=False)]
    default: Name
    means: Mapping[Name, Name] = Field(default_factory=dict)
    lenient: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    """Other models' values that clients send unasked: lenient mode reads them as `default`."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        require(len(set(self.values)) == len(self.values), "a value is listed twice")
        for value in (self.default, *self.means, *self.means.values()):
            require(value in self.values, f"'{value}' is not among the values")
        for value in (self.default, *self.means.values()):
            require(value not in self.means, f"'{value}' itself means something else")
        for value in self.lenient:
            require(value not in self.values, f"lenient: '{value}' is among the values")
        return self

    @property
    def distinct_values(self) -> tuple[str, ...]:
        """The values without other spellings."""
        return tuple(value for value in self.values if value not in self.means)


class SizeSpec(Row):
    """One of `values`, or any size within the bounds: `docs/reference/images-api.md#free-sizes`."""

    type: Literal["size"]
    values: Annotated[tuple[Name, ...], Field(strict=False)]
    default: Name
    example: Size
    """A valid size, for error messages."""
    divisor: PositiveInt
    max_edge: PositiveInt
    min_pixels: PositiveInt
    max_pixels: PositiveInt
    max_ratio: PositiveInt
    """Of the longer edge to the shorter one."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        require(self.default in self.values, f"'{self.default}' is not among the values")
        require(self.min_pixels <= self.max_pixels, "min_pixels is above max_pixels")
        return self


class Only(Row):
    """The only integer that a model accepts within its range, and the refusal of others."""

    value: int
    message: Name


class IntegerSpec(Row):
    """An integer from `min` to `max`."""

    type: Literal["integer"]
    min: int
    max: int
    default: int
    only: Only | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        require(self.min <= self.default <= self.max, "default is outside min…max")
        fits = self.only is None or self.only.value == self.default
        require(fits, "the only value must be the default")
        return self


class BooleanSpec(Row):
    """`true` or `false`."""

    type: Literal["boolean"]
    default: bool


class TextSpec(Row):
    """Any string. It has no default."""

    type: Literal["string"]
    default: None = None


ParameterSpec: TypeAlias = Annotated[
    ChoiceSpec | SizeSpec | IntegerSpec | BooleanSpec | TextSpec, Field(discriminator="type")
]

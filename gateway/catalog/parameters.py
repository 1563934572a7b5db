"""The types of parameters that a row can have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, PositiveInt, model_validator

from gateway.catalog.rows import SIZE, Name, Row, Size, require


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

    def fault_of(self, size: str) -> str | None:
        """The fault of a free size, worded as in `docs/reference/images-api.md#sizes-by-rule`."""
        matched = SIZE.fullmatch(size)
        if matched is None:
            return f"Expected WIDTHxHEIGHT, for example '{self.example}'."
        shorter, longer = sorted(int(edge) for edge in matched.groups())
        pixels = shorter * longer
        if shorter % self.divisor or longer % self.divisor:
            return f"Width and height must both be divisible by {self.divisor}."
        if longer > self.max_edge:
            return f"The longest edge must be less than or equal to {self.max_edge}."
        if pixels < self.min_pixels:
            return "Requested resolution is below the current minimum pixel budget."
        if pixels > self.max_pixels:
            return "Requested resolution exceeds the current pixel budget."
        # Last, because its wording was never observed at the service. The others are exact.
        if longer > self.max_ratio * shorter:
            return f"The aspect ratio must be between 1:{self.max_ratio} and {self.max_ratio}:1."
        return None


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

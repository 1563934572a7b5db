"""The types of parameters that a row can have.

Of a parameter with a `default`, that value is neither part of the cache key nor forwarded. Without
a default only an omitted parameter is: whatever a client writes counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Final, Literal, Self, TypeAlias, get_args

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    WithJsonSchema,
    model_validator,
)

from gateway.catalog.rows import SIZE, Name, Row, Size, require

_MAX_NUMBER: Final = 2**53
"""Up to here JSON readers agree on every integer."""

_NUMBER: Final = r"-?[0-9]{1,16}(\.[0-9]{1,15})?"


def canonical_number(value: float) -> int | float:
    """The one spelling of a number: 1 for 1.0 and 1e0, 0 for -0.0."""
    return int(value) if value % 1 == 0 else value


def exact_fraction(value: float) -> Fraction:
    """A number by its shortest notation: 0.1 is a tenth, and not the nearest binary fraction.

    A fraction, because the arithmetic of decimals fails beyond its digits.
    """
    return Fraction(repr(value))


def _read_number(value: object) -> int | float:
    if isinstance(value, str) and re.fullmatch(_NUMBER, value):
        value = float(value)  # from the environment
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Infinity and NaN are not within the bounds either.
    if is_number and -_MAX_NUMBER <= value <= _MAX_NUMBER:  # type: ignore[operator]
        return canonical_number(value)  # type: ignore[arg-type]
    raise ValueError("write a number from -2^53 to 2^53, like 7.5")


Number: TypeAlias = Annotated[
    int | float,
    BeforeValidator(_read_number),
    WithJsonSchema(
        {"anyOf": [{"type": "number"}, {"type": "string", "pattern": rf"^{_NUMBER}$|\$\{{"}]}
    ),
]
"""In its canonical spelling."""


class ChoiceSpec(Row):
    """One of `values`. `means` maps another spelling of a value to that value."""

    type: Literal["choice"]
    # Not strict: YAML has lists, which a strict tuple refuses.
    values: Annotated[tuple[Name, ...], Field(min_length=1, strict=False)]
    default: Name | None = None
    means: Mapping[Name, Name] = Field(default_factory=dict)
    lenient: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    """Other models' values that clients send unasked: lenient mode reads them as `default`."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        require(len(set(self.values)) == len(self.values), "a value is listed twice")
        default = () if self.default is None else (self.default,)
        for value in (*default, *self.means, *self.means.values()):
            require(value in self.values, f"'{value}' is not among the values")
        for value in (*default, *self.means.values()):
            require(value not in self.means, f"'{value}' itself means something else")
        require(not self.lenient or bool(default), "lenient: there is no default to read them as")
        for value in self.lenient:
            require(value not in self.values, f"lenient: '{value}' is among the values")
        return self

    @property
    def distinct_values(self) -> tuple[str, ...]:
        """The values without other spellings."""
        return tuple(value for value in self.values if value not in self.means)


class SheetLayout(Row):
    """How many columns and rows of frames a sheet has, of images with up to `frames` frames."""

    frames: PositiveInt
    columns: PositiveInt
    rows: PositiveInt

    @model_validator(mode="after")
    def _has_room(self) -> Self:
        require(self.frames <= self.columns * self.rows, "the sheet has fewer cells than frames")
        return self


class FrameSheet(Row):
    """Formats whose frames are made as one image, a sheet, to which the bounds of sizes apply.

    The size of a request is that of a frame.
    """

    formats: Annotated[tuple[Name, ...], Field(min_length=1, strict=False)]
    """Of `output_format`."""
    frames: Name
    """The parameter that says how many frames there are."""
    layouts: Annotated[tuple[SheetLayout, ...], Field(min_length=1, strict=False)]

    @model_validator(mode="after")
    def _grows(self) -> Self:
        counts = [layout.frames for layout in self.layouts]
        require(counts == sorted(set(counts)), "layouts: not in the order of their frames")
        return self

    def layout_of(self, frames: int) -> SheetLayout:
        """The layout for so many frames; the last one for more than it holds."""
        fitting = (layout for layout in self.layouts if frames <= layout.frames)
        return next(fitting, self.layouts[-1])


class SizeSpec(Row):
    """One of `values`, or any size within the bounds: `docs/reference/images-api.md#free-sizes`."""

    type: Literal["size"]
    values: Annotated[tuple[Name, ...], Field(strict=False)]
    default: Name | None = None
    example: Size
    """A valid size, for error messages."""
    divisor: PositiveInt
    max_edge: PositiveInt
    min_pixels: PositiveInt
    max_pixels: PositiveInt
    max_ratio: PositiveInt
    """Of the longer edge to the shorter one."""
    sheet: FrameSheet | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        fits = self.default is None or self.default in self.values
        require(fits, f"'{self.default}' is not among the values")
        require(self.min_pixels <= self.max_pixels, "min_pixels is above max_pixels")
        return self

    def fault_of(self, size: str) -> str | None:
        """The fault of a free size, worded as in `docs/reference/images-api.md#sizes-by-rule`."""
        matched = SIZE.fullmatch(size)
        if matched is None:
            return f"Expected WIDTHxHEIGHT, for example '{self.example}'."
        return self.bounds_fault(*map(int, matched.groups()))

    def bounds_fault(self, width: int, height: int) -> str | None:
        """The same of a width and a height."""
        shorter, longer = sorted((width, height))
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
    default: int | None = None
    only: Only | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        require(self.min <= self.max, "min is above max")
        fits = self.default is None or self.min <= self.default <= self.max
        require(fits, "default is outside min…max")
        fits = self.only is None or self.only.value == self.default
        require(fits, "the only value must be the default")
        return self


class BooleanSpec(Row):
    """`true` or `false`."""

    type: Literal["boolean"]
    default: bool | None = None


class DecimalSpec(Row):
    """A JSON number from `min` to `max`, compared by its value: 1, 1.0 and 1e0 are one."""

    type: Literal["decimal"]
    min: Number
    max: Number
    default: Number | None = None
    step: Number | None = None
    """Only multiples of it are accepted."""
    decimals: NonNegativeInt | None = None
    """How many digits a value may have behind the point."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        require(self.min <= self.max, "min is above max")
        require(self.step is None or self.step > 0, "step must be above 0")
        if self.default is not None:
            require(self.min <= self.default <= self.max, "default is outside min…max")
            require(self.has_step(self.default), f"default is no multiple of {self.step}")
            require(self.has_decimals(self.default), f"default has over {self.decimals} decimals")
        return self

    def has_step(self, value: float) -> bool:
        """Whether the value is a multiple of `step`."""
        return self.step is None or exact_fraction(value) % exact_fraction(self.step) == 0

    def has_decimals(self, value: float) -> bool:
        """Whether the value has no more digits behind the point than allowed."""
        exponent = Decimal(repr(value)).normalize().as_tuple().exponent
        return self.decimals is None or -int(exponent) <= self.decimals


class TextSpec(Row):
    """Any string of up to `max_length` characters. It has no default."""

    type: Literal["string"]
    max_length: PositiveInt | None = None
    default: None = None


class ObjectSpec(Row):
    """A JSON object of `fields`, each a parameter of its own. It has no default."""

    type: Literal["object"]
    fields: Annotated[Mapping[Name, ParameterSpec], Field(min_length=1)]
    required: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    """The fields that must be given."""
    default: None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for name in self.required:
            known = self.fields.get(name)
            require(known is not None, f"required: there is no field '{name}'")
            has_default = known is not None and known.default is not None
            require(not has_default, f"required: '{name}' has a default, so it may be omitted")
        for name, spec in self.fields.items():
            require(not isinstance(spec, SizeSpec), f"fields: '{name}' cannot be of type size")
        return self


_Spec: TypeAlias = (
    ChoiceSpec | SizeSpec | IntegerSpec | BooleanSpec | DecimalSpec | TextSpec | ObjectSpec
)
ParameterSpec: TypeAlias = Annotated[_Spec, Field(discriminator="type")]

PARAMETER_TYPES: Final = tuple(
    get_args(spec.model_fields["type"].annotation)[0] for spec in get_args(_Spec)
)
"""The `type` of each kind of parameter."""

ObjectSpec.model_rebuild()

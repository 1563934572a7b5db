"""A model as data: the rows of `models.yaml`, checked and frozen.

Here is what a row may say and whether it makes sense. What the rows mean for a request is
`request/validation`, what they mean for money `billing/pricing`. Reading the file and filling in
`${NAME}` is `settings`. No model is named in code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from gateway.values import nearest

SIZE: Final = re.compile(r"([1-9][0-9]{0,8})x([1-9][0-9]{0,8})")
"""An image size as it is written, WIDTHxHEIGHT in pixels."""

_FIELD_TYPES: Final = {
    "n": "integer",
    "partial_images": "integer",
    "response_format": "choice",
    "stream": "boolean",
    "user": "string",
}
"""The parameters that are fields of `images.ImageRequest`, and the row type that fits each."""


class CatalogError(ValueError):
    """A model table that cannot be used; the message names file, place and fault."""


def _price(value: object) -> Decimal:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value):
        return Decimal(value)
    raise ValueError('write a price as a string of US dollars, like "0.040"')


Name: TypeAlias = Annotated[str, StringConstraints(min_length=1)]
Size: TypeAlias = Annotated[str, StringConstraints(pattern=f"^{SIZE.pattern}$")]
Price: TypeAlias = Annotated[Decimal, BeforeValidator(_price)]
PriceTable: TypeAlias = Mapping[Size, Annotated[Mapping[Name, Price], Field(min_length=1)]]
"""US dollars per image, by size and quality."""
TokenTable: TypeAlias = Mapping[Size, Annotated[Mapping[Name, PositiveInt], Field(min_length=1)]]
"""Output tokens per image, by size and quality."""


class _Row(BaseModel):
    """Frozen, without coercion, and an unknown key is answered with the nearest valid one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _knows_every_key(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        unknown = next((key for key in data if key not in cls.model_fields), None)
        if unknown is not None:
            raise ValueError(_unknown_key(unknown, cls.model_fields))
        return data


# ── parameters ──────────────────────────────────────────────────────────────────────────────


class ChoiceSpec(_Row):
    """One of `values`; `means` maps a value to the one that it is another spelling of."""

    type: Literal["choice"]
    values: Annotated[tuple[Name, ...], Field(min_length=1, strict=False)]
    default: Name
    means: Mapping[Name, Name] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        _require(len(set(self.values)) == len(self.values), "a value is listed twice")
        for value in (self.default, *self.means, *self.means.values()):
            _require(value in self.values, f"'{value}' is not among the values")
        for value in (self.default, *self.means.values()):
            _require(value not in self.means, f"'{value}' itself means something else")
        return self

    @property
    def distinct_values(self) -> tuple[str, ...]:
        """The values without those that only spell another one."""
        return tuple(value for value in self.values if value not in self.means)


class SizeSpec(_Row):
    """One of `values`, or any WIDTHxHEIGHT within the bounds (WIRE §1.1)."""

    type: Literal["size"]
    values: Annotated[tuple[Name, ...], Field(strict=False)]
    default: Name
    example: Size
    """A good size, for the message that answers a bad one."""
    divisor: PositiveInt
    max_edge: PositiveInt
    min_pixels: PositiveInt
    max_pixels: PositiveInt
    max_ratio: PositiveInt
    """Longer edge to shorter edge, at most."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        _require(self.default in self.values, f"'{self.default}' is not among the values")
        _require(self.min_pixels <= self.max_pixels, "min_pixels is above max_pixels")
        return self


class Only(_Row):
    """The one integer that a model takes although its range is wider, and what it answers."""

    value: int
    message: Name


class IntegerSpec(_Row):
    """An integer from `min` to `max`."""

    type: Literal["integer"]
    min: int
    max: int
    default: int
    only: Only | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        _require(self.min <= self.default <= self.max, "default is outside min…max")
        fits = self.only is None or self.only.value == self.default
        _require(fits, "the only value must be the default")
        return self


class BooleanSpec(_Row):
    """`true` or `false`."""

    type: Literal["boolean"]
    default: bool


class TextSpec(_Row):
    """Any string. It has no default: omitted, it is not there."""

    type: Literal["string"]
    default: None = None


ParameterSpec: TypeAlias = Annotated[
    ChoiceSpec | SizeSpec | IntegerSpec | BooleanSpec | TextSpec, Field(discriminator="type")
]


class Condition(_Row):
    """What a parameter's value must be for a rule to apply: exactly one of the three."""

    equals: str | int | bool | None = None
    above: int | None = None
    below: int | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        _require(len(self.model_fields_set) == 1, "needs one of equals, above, below")
        return self


class RuleError(_Row):
    """The error body of a rule, WIRE §2."""

    message: Name
    type: Name = "invalid_request_error"
    param: Name | None = None
    code: Name | None = None


class Rule(_Row):
    """A combination that is refused: applies when every condition holds."""

    when: Annotated[Mapping[Name, Condition], Field(min_length=1)]
    error: RuleError


# ── billing ─────────────────────────────────────────────────────────────────────────────────


class TokenPrices(_Row):
    """US dollars per million tokens, which is micro-dollars per token."""

    text_in: Price
    image_in: Price
    image_out: Price
    text_out: Price | None = None
    """None: the model has no such tokens; should they appear, they cost what `image_out` does."""


class TokenFormula(_Row):
    """Output tokens of an image of any size (WIRE §5.1)."""

    grid: Annotated[Mapping[Name, PositiveInt], Field(min_length=1)]
    pixels_offset: NonNegativeInt
    pixels_divisor: PositiveInt


class TokenBilling(_Row):
    """Billed from the usage that comes with the images; tables and formula bound it before."""

    by: Literal["tokens"]
    usd_per_million_tokens: TokenPrices
    output_tokens: TokenTable | None = None
    output_tokens_formula: TokenFormula | None = None
    partial_image_tokens: NonNegativeInt
    dearest_size: Size
    """What a size that has no row of its own, `auto`, is reserved as."""
    usd_per_image: PriceTable = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_one_source_of_tokens(self) -> Self:
        sources = (self.output_tokens, self.output_tokens_formula)
        _require(sources.count(None) == 1, "needs one of output_tokens, output_tokens_formula")
        fits = self.output_tokens is None or self.dearest_size in self.output_tokens
        _require(fits, "dearest_size has no row in output_tokens")
        return self


class ImageBilling(_Row):
    """Billed per image, by the size and quality that were asked for."""

    by: Literal["image"]
    usd_per_image: Annotated[PriceTable, Field(min_length=1)]


Billing: TypeAlias = Annotated[TokenBilling | ImageBilling, Field(discriminator="by")]


# ── models ──────────────────────────────────────────────────────────────────────────────────


class SimulatorSpec(_Row):
    """How upstream answers for a model. Only the simulated upstream reads it; all is optional."""

    latency_seconds: Mapping[Name, PositiveFloat] = Field(default_factory=dict)
    """Seconds that one image takes, by quality."""
    revises_prompts: bool = False
    """Whether each image comes with a `revised_prompt`."""
    splits_output_tokens: bool = False
    """Whether `usage` has `output_tokens_details`."""


class Model(_Row):
    """One row of the table."""

    id: Name
    created: NonNegativeInt
    """Unix seconds, as `/v1/models` shows it."""
    owned_by: Name
    shutdown: date | None = None
    """The day from which the paid service refuses it."""
    cache_epoch: NonNegativeInt
    prompt_max_characters: PositiveInt
    parameters: Mapping[Name, ParameterSpec]
    """By name, in the order in which they are checked."""
    rules: Annotated[tuple[Rule, ...], Field(strict=False)] = ()
    billing: Billing
    simulator: SimulatorSpec = Field(default_factory=SimulatorSpec)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for name in ("model", "prompt"):
            _require(name not in self.parameters, f"'{name}' is not a parameter of a row")
        for name, expected in _FIELD_TYPES.items():
            spec = self.parameters.get(name)
            _require(spec is None or spec.type == expected, f"'{name}' must be of type {expected}")
        for name in (name for rule in self.rules for name in rule.when):
            _require(name in self.parameters, f"a rule names '{name}', which is no parameter")
        _check_billing(self)
        quality = self.parameters["quality"]
        values = quality.distinct_values if isinstance(quality, ChoiceSpec) else ()
        for name in self.simulator.latency_seconds:
            nearest = _nearest(name, values)
            _require(name in values, f"latency_seconds: there is no quality '{name}'{nearest}")
        return self


class Catalog(_Row):
    """Every model the gateway knows, in the order of the file, and what stands for an omitted one.

    `harmless` are values at which a parameter changes nothing, so that models without it accept
    them too.
    """

    default_model: Name
    default_gpt_model: Name
    unknown_models: Literal["reject"]
    prices_as_of: date
    harmless: Mapping[Name, bool | int] = Field(default_factory=dict)
    models: Annotated[Mapping[Name, Model], Field(min_length=1)]

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for key in ("default_model", "default_gpt_model"):
            name = getattr(self, key)
            nearest = _nearest(name, self.models)
            _require(name in self.models, f"{key}: there is no row '{name}'{nearest}")
        for name in self.harmless:
            _require(self.knows_parameter(name), f"harmless: no model has the parameter '{name}'")
        return self

    def knows_parameter(self, name: str) -> bool:
        """Whether any model has this parameter."""
        return any(name in model.parameters for model in self.models.values())


def parse_catalog(data: Mapping[str, Any], *, file: str) -> Catalog:
    """The catalog in the mapping that `file` holds.

    Raises `CatalogError` with one line for each fault: file, place, what is wrong.
    """
    if not isinstance(data, Mapping):
        raise CatalogError(f"{file}: must be a mapping")
    try:
        return Catalog.model_validate(_with_ids(data))
    except ValidationError as error:
        lines = [_fault(file, data, fault) for fault in error.errors(include_url=False)]
        raise CatalogError("\n".join(lines)) from None


def _with_ids(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same data where each model's row carries its own key as `id`."""
    rows = data.get("models")
    if not isinstance(rows, Mapping):
        return data
    return {**data, "models": {name: _with_id(name, row) for name, row in rows.items()}}


def _with_id(name: str, row: object) -> object:
    return {**row, "id": name} if isinstance(row, Mapping) else row


def _fault(file: str, data: object, fault: Mapping[str, Any]) -> str:
    place = ".".join(_place(data, fault["loc"]))
    message = str(fault["msg"]).removeprefix("Value error, ")
    return ": ".join(part for part in (file, place, message) if part)


def _place(data: Any, location: Iterable[str | int]) -> list[str]:
    """The keys that lead to a fault, without the row types that pydantic puts between them."""
    keys: list[str] = []
    for key in location:
        if isinstance(data, Mapping) and key in (data.get("type"), data.get("by")):
            continue
        keys.append(str(key))
        data = _inside(data, key)
    return keys


def _inside(data: Any, key: str | int) -> Any:
    if isinstance(data, Mapping):
        return data.get(key)
    return data[key] if isinstance(data, list) and isinstance(key, int) else None


def _check_billing(model: Model) -> None:
    for name in ("size", "quality"):
        _require(name in model.parameters, f"needs the parameter '{name}', by which it is billed")
    billing = model.billing
    if isinstance(billing, ImageBilling):
        _check_table(model, "usd_per_image", billing.usd_per_image)
        return
    if billing.output_tokens is not None:
        _check_table(model, "output_tokens", billing.output_tokens)
    if billing.output_tokens_formula is not None:
        _check_formula(model, billing.output_tokens_formula)
    for row in billing.usd_per_image.values():
        _check_names(model, "quality", "usd_per_image", names=row)


def _check_table(model: Model, table: str, rows: Mapping[str, Mapping[str, object]]) -> None:
    _check_names(model, "size", table, names=rows)
    for row in rows.values():
        _check_names(model, "quality", table, names=row)


def _check_formula(model: Model, formula: TokenFormula) -> None:
    _check_names(model, "quality", "grid", names=formula.grid)
    size = model.parameters["size"]
    values = size.values if isinstance(size, ChoiceSpec | SizeSpec) else ()
    for value in values:
        fits = value == size.default or SIZE.fullmatch(value) is not None
        _require(fits, f"output_tokens_formula cannot be applied to the size '{value}'")


def _check_names(model: Model, parameter: str, table: str, *, names: Iterable[str]) -> None:
    """A table has a row for each value; only a token model's default, `auto`, may go without."""
    spec = model.parameters[parameter]
    if not isinstance(spec, ChoiceSpec):
        raise ValueError(f"{table} needs the parameter '{parameter}' to be of type choice")
    found, values = set(names), set(spec.distinct_values)
    optional = {spec.default} if model.billing.by == "tokens" else set()
    for value in sorted(values - found - optional):
        raise ValueError(f"{table} lacks the {parameter} '{value}'")
    for name in sorted(found - values):
        raise ValueError(f"{table} has the {parameter} '{name}', which the parameter does not know")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _unknown_key(key: object, known: Iterable[str]) -> str:
    return f"unknown key '{key}'{_nearest(str(key), (name for name in known if name != 'id'))}"


def _nearest(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    return f"; the nearest valid one is '{near}'" if near is not None else ""

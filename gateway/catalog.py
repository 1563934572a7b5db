"""Models as data: the rows of `models.yaml`, checked and frozen.

Here is which rows are valid. How they apply to a request is `request.validation`, how they apply to
money is `billing.pricing`. Reading the file is `configuration.files`. No model is named in code.
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
    PrivateAttr,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from gateway.images import IDENTITIES
from gateway.values import nearest

SIZE: Final = re.compile(r"([1-9][0-9]{0,8})x([1-9][0-9]{0,8})")
"""An image size, WIDTHxHEIGHT in pixels."""

_FIELD_TYPES: Final = {
    "n": "integer",
    "partial_images": "integer",
    "response_format": "choice",
    "stream": "boolean",
    **dict.fromkeys(IDENTITIES, "string"),
}
"""The parameters that are fields of `images.ImageRequest`, and the types of their rows."""

ECHOED_PARAMETERS: Final = ("size", "quality", "background", "output_format")
"""Parameters of the request that upstream repeats with their effective values."""

_OTHER_ANSWER_FIELDS: Final = frozenset(
    {
        *("b64_json", "created", "created_at", "data", "error", "partial_image_index"),
        *("revised_prompt", "type", "url", "usage", *ECHOED_PARAMETERS),
    }
)
"""The fields of the images API itself, which `answer_fields` cannot replace."""


class CatalogError(ValueError):
    """An invalid model table. The message names the file, the place and the fault."""


_PRICE: Final = r"[0-9]{1,6}(\.[0-9]{1,6})?"


def _price(value: object) -> Decimal:
    # A number in YAML would be a float, and 0.1 is not exact.
    if isinstance(value, str) and re.fullmatch(_PRICE, value):
        return Decimal(value)
    raise ValueError('write a price as a string of US dollars, like "0.040"')


Name: TypeAlias = Annotated[str, StringConstraints(min_length=1)]
Size: TypeAlias = Annotated[str, StringConstraints(pattern=f"^{SIZE.pattern}$")]
Price: TypeAlias = Annotated[
    Decimal,
    BeforeValidator(_price),
    WithJsonSchema({"type": "string", "pattern": rf"^{_PRICE}$|\$\{{"}),
]
"""In the JSON Schema it may come from the environment."""
PriceTable: TypeAlias = Mapping[Size, Annotated[Mapping[Name, Price], Field(min_length=1)]]
"""US dollars per image, by size and quality."""
TokenTable: TypeAlias = Mapping[Size, Annotated[Mapping[Name, PositiveInt], Field(min_length=1)]]
"""Output tokens per image, by size and quality."""


class _Row(BaseModel):
    """Frozen and without coercion. An unknown key is refused with the nearest valid one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _knows_every_key(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        unknown = next((key for key in data if key not in cls.model_fields), None)
        if unknown is not None:
            names = [name for name in cls.model_fields if name != "id"]
            raise ValueError(f"unknown key '{unknown}'{_did_you_mean(str(unknown), names)}")
        return data


# ── parameters ──────────────────────────────────────────────────────────────────────────────


class ChoiceSpec(_Row):
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
        _require(len(set(self.values)) == len(self.values), "a value is listed twice")
        for value in (self.default, *self.means, *self.means.values()):
            _require(value in self.values, f"'{value}' is not among the values")
        for value in (self.default, *self.means.values()):
            _require(value not in self.means, f"'{value}' itself means something else")
        for value in self.lenient:
            _require(value not in self.values, f"lenient: '{value}' is among the values")
        return self

    @property
    def distinct_values(self) -> tuple[str, ...]:
        """The values without other spellings."""
        return tuple(value for value in self.values if value not in self.means)


class SizeSpec(_Row):
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
        _require(self.default in self.values, f"'{self.default}' is not among the values")
        _require(self.min_pixels <= self.max_pixels, "min_pixels is above max_pixels")
        return self


class Only(_Row):
    """The only integer that a model accepts within its range, and the refusal of others."""

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
    """Any string. It has no default."""

    type: Literal["string"]
    default: None = None


ParameterSpec: TypeAlias = Annotated[
    ChoiceSpec | SizeSpec | IntegerSpec | BooleanSpec | TextSpec, Field(discriminator="type")
]


class RuleCondition(_Row):
    """A condition on a parameter's value: exactly one of the three."""

    equals: str | int | bool | None = None
    above: int | None = None
    below: int | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        _require(len(self.model_fields_set) == 1, "needs one of equals, above, below")
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


class RuleError(_Row):
    """The error body of a rule, see `docs/reference/images-api.md#combinations`."""

    message: Name
    type: Name = "invalid_request_error"
    param: Name | None = None
    code: Name | None = None


class Rule(_Row):
    """A combination that is refused: every condition holds."""

    when: Annotated[Mapping[Name, RuleCondition], Field(min_length=1)]
    error: RuleError


# ── billing ─────────────────────────────────────────────────────────────────────────────────


class TokenPrices(_Row):
    """US dollars per million tokens, which is micro-dollars per token."""

    text_in: Price
    image_in: Price
    image_out: Price
    text_out: Price | None = None
    """None for a model without such tokens. If upstream reports some, they cost `image_out`."""
    cached_text_in: Price | None = None
    """Of input tokens that upstream had in its own cache. None: they cost `text_in`."""
    cached_image_in: Price | None = None
    """The same for `image_in`."""

    @model_validator(mode="after")
    def _cached_is_not_dearer(self) -> Self:
        # An estimate takes all input at the full price, and must be an upper bound.
        for kind in ("text_in", "image_in"):
            cached, full = getattr(self, f"cached_{kind}"), getattr(self, kind)
            _require(cached is None or cached <= full, f"cached_{kind} is dearer than {kind}")
        return self


class TokenFormula(_Row):
    """Output tokens of an image of any size: `docs/reference/images-api.md#output-tokens`."""

    grid: Annotated[Mapping[Name, PositiveInt], Field(min_length=1)]
    pixels_offset: NonNegativeInt
    pixels_divisor: PositiveInt


class TokenBilling(_Row):
    """Billed by the usage of the answer. The tables and the formula are for the estimate."""

    by: Literal["tokens"]
    usd_per_million_tokens: TokenPrices
    output_tokens: TokenTable | None = None
    output_tokens_formula: TokenFormula | None = None
    partial_image_tokens: NonNegativeInt
    dearest_size: Size
    """The size that `auto` is reserved as."""
    usd_per_image: PriceTable = Field(default_factory=dict)
    _prepared: dict[Any, Any] = PrivateAttr(default_factory=dict)

    @property
    def prepared(self) -> dict[Any, Any]:
        """What `billing` has computed of this row. It never changes, so that is done only once."""
        return self._prepared

    @model_validator(mode="after")
    def _has_one_source_of_tokens(self) -> Self:
        sources = (self.output_tokens, self.output_tokens_formula)
        _require(sources.count(None) == 1, "needs one of output_tokens, output_tokens_formula")
        fits = self.output_tokens is None or self.dearest_size in self.output_tokens
        _require(fits, "dearest_size has no row in output_tokens")
        return self


class ImageBilling(_Row):
    """Billed per image, by the size and quality of the request."""

    by: Literal["image"]
    usd_per_image: Annotated[PriceTable, Field(min_length=1)]


Billing: TypeAlias = Annotated[TokenBilling | ImageBilling, Field(discriminator="by")]


class AssumedPrice(_Row):
    """What an image of a model without a price is taken to cost, at the worst."""

    usd_per_image: Price

    @model_validator(mode="after")
    def _is_above_zero(self) -> Self:
        _require(self.usd_per_image > 0, "usd_per_image must be above 0: nothing is bought unpaid")
        return self


def _assumed_price(value: object) -> object:
    if value == "deny" or isinstance(value, Mapping | AssumedPrice):
        return None if value == "deny" else value
    raise ValueError("""write 'deny', or a worst case such as {usd_per_image: "0.70"}""")


# ── models ──────────────────────────────────────────────────────────────────────────────────


class SimulatorSpec(_Row):
    """How upstream answers for a model. Only the simulated upstream reads it."""

    latency_seconds: Mapping[Name, PositiveFloat] = Field(default_factory=dict)
    """Of one image, by quality."""
    revises_prompts: bool = False
    """Each image has a `revised_prompt`."""
    splits_output_tokens: bool = False
    """`usage` has `output_tokens_details`."""


class Model(_Row):
    """One row of the table."""

    id: Name
    created: NonNegativeInt
    """Unix seconds, for `/v1/models`."""
    owned_by: Name
    shutdown: date | None = None
    """The day from which upstream refuses it."""
    cache_epoch: NonNegativeInt
    prompt_max_characters: PositiveInt
    parameters: Mapping[Name, ParameterSpec]
    """By name, in the order in which they are checked."""
    rules: Annotated[tuple[Rule, ...], Field(strict=False)] = ()
    answer_fields: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    """Further fields of an image in upstream's answer that are kept, and shown to every key."""
    billing: Billing | None = None
    """None for a model whose price is not known."""
    simulator: SimulatorSpec = Field(default_factory=SimulatorSpec)
    _assumed_price: AssumedPrice | None = PrivateAttr(default=None)

    @property
    def assumed_usd_per_image(self) -> Decimal | None:
        """Of a model without `billing`, the catalog's `unknown_price`; None if it is `deny`."""
        return None if self._assumed_price is None else self._assumed_price.usd_per_image

    @property
    def is_sold(self) -> bool:
        """Whether images can be bought: its price is known, or one is assumed."""
        return self.billing is not None or self._assumed_price is not None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for name in ("model", "prompt"):
            _require(name not in self.parameters, f"'{name}' is not a parameter of a row")
        for name, expected in _FIELD_TYPES.items():
            spec = self.parameters.get(name)
            _require(spec is None or spec.type == expected, f"'{name}' must be of type {expected}")
        for name in (name for rule in self.rules for name in rule.when):
            _require(name in self.parameters, f"a rule names '{name}', which is no parameter")
        for name in self.answer_fields:
            _require(name not in IDENTITIES, f"answer_fields: '{name}' names the buyer of an image")
            is_free = name not in _OTHER_ANSWER_FIELDS
            _require(is_free, f"answer_fields: '{name}' is a field of the images API already")
        if self.billing is not None:
            _check_billing(self, self.billing)
        quality = self.parameters.get("quality")
        values = quality.distinct_values if isinstance(quality, ChoiceSpec) else ()
        for name in self.simulator.latency_seconds:
            suggestion = _did_you_mean(name, values)
            _require(name in values, f"latency_seconds: there is no quality '{name}'{suggestion}")
        return self


class Catalog(_Row):
    """Every model of the gateway, in the order of the file, and the defaults of an omitted one.

    `harmless` are values that have no effect, so models without the parameter accept them too.
    """

    default_model: Name
    default_gpt_model: Name
    unknown_models: Literal["reject"]
    prices_as_of: date
    unknown_price: Annotated[
        AssumedPrice | None,
        BeforeValidator(_assumed_price, json_schema_input_type=Literal["deny"] | AssumedPrice),
    ] = None
    """For models without `billing`. None, written `deny`: they are refused."""
    harmless: Mapping[Name, bool | int] = Field(default_factory=dict)
    models: Annotated[Mapping[Name, Model], Field(min_length=1)]

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for key in ("default_model", "default_gpt_model"):
            name = getattr(self, key)
            suggestion = _did_you_mean(name, self.models)
            _require(name in self.models, f"{key}: there is no row '{name}'{suggestion}")
        for name in self.harmless:
            _require(self.knows_parameter(name), f"harmless: no model has the parameter '{name}'")
        for model in self.models.values():
            if model.billing is None:
                model._assumed_price = self.unknown_price  # noqa: SLF001 - a row knows no table
        return self

    def knows_parameter(self, name: str) -> bool:
        """Whether any model has this parameter."""
        return any(name in model.parameters for model in self.models.values())


def parse_catalog(data: Mapping[str, Any], *, file: str) -> Catalog:
    """The catalog in `data`, the content of `file`.

    Raises `CatalogError` with one line for each fault: file, place, what is wrong.
    """
    if not isinstance(data, Mapping):
        raise CatalogError(f"{file}: must be a mapping")
    rows = data.get("models")
    if isinstance(rows, Mapping):
        # The id of a model is its key.
        with_ids = {
            name: {**row, "id": name} if isinstance(row, Mapping) else row
            for name, row in rows.items()
        }
        data = {**data, "models": with_ids}
    try:
        return Catalog.model_validate(data)
    except ValidationError as error:
        lines = []
        for fault in error.errors(include_url=False):
            place = ".".join(_key_path(data, fault["loc"]))
            message = fault["msg"].removeprefix("Value error, ")
            lines.append(": ".join(part for part in (file, place, message) if part))
        raise CatalogError("\n".join(lines)) from None


def _key_path(data: Any, location: Iterable[str | int]) -> list[str]:
    """The keys that lead to a fault, without the row types that pydantic puts between them."""
    path: list[str] = []
    for key in location:
        if isinstance(data, Mapping):
            if key in (data.get("type"), data.get("by")):
                continue
            data = data.get(key)
        else:
            data = data[key] if isinstance(data, list) and isinstance(key, int) else None
        path.append(str(key))
    return path


def _check_billing(model: Model, billing: TokenBilling | ImageBilling) -> None:
    for name in ("size", "quality"):
        _require(name in model.parameters, f"needs the parameter '{name}', by which it is billed")
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
    """A table has a row for each value. Only a token model's default, `auto`, needs none."""
    spec = model.parameters[parameter]
    if not isinstance(spec, ChoiceSpec):
        raise ValueError(f"{table} needs the parameter '{parameter}' to be of type choice")
    found, values = set(names), set(spec.distinct_values)
    optional = {spec.default} if isinstance(model.billing, TokenBilling) else set()
    for value in sorted(values - found - optional):
        raise ValueError(f"{table} lacks the {parameter} '{value}'")
    for name in sorted(found - values):
        raise ValueError(f"{table} has the {parameter} '{name}', which the parameter does not know")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    return f"; the nearest valid one is '{near}'" if near is not None else ""

"""A row of the table, and the table: what must fit together in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from typing import Annotated, Final, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    model_validator,
)

from gateway.catalog.billing import (
    AssumedPrice,
    Billing,
    ImageBilling,
    TokenBilling,
    TokenFormula,
    assumed_price,
)
from gateway.catalog.parameters import ChoiceSpec, ParameterSpec, SizeSpec
from gateway.catalog.rows import SIZE, Name, Row, did_you_mean, require
from gateway.catalog.rules import Rule
from gateway.images import IDENTITIES

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


class SimulatorSpec(Row):
    """How upstream answers for a model. Only the simulated upstream reads it."""

    latency_seconds: Mapping[Name, PositiveFloat] = Field(default_factory=dict)
    """Of one image, by quality."""
    revises_prompts: bool = False
    """Each image has a `revised_prompt`."""
    splits_output_tokens: bool = False
    """`usage` has `output_tokens_details`."""


class Model(Row):
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
            require(name not in self.parameters, f"'{name}' is not a parameter of a row")
        for name, expected in _FIELD_TYPES.items():
            spec = self.parameters.get(name)
            require(spec is None or spec.type == expected, f"'{name}' must be of type {expected}")
        for name in (name for rule in self.rules for name in rule.when):
            require(name in self.parameters, f"a rule names '{name}', which is no parameter")
        for name in self.answer_fields:
            require(name not in IDENTITIES, f"answer_fields: '{name}' names the buyer of an image")
            is_free = name not in _OTHER_ANSWER_FIELDS
            require(is_free, f"answer_fields: '{name}' is a field of the images API already")
        if self.billing is not None:
            _check_billing(self, self.billing)
        quality = self.parameters.get("quality")
        values = quality.distinct_values if isinstance(quality, ChoiceSpec) else ()
        for name in self.simulator.latency_seconds:
            suggestion = did_you_mean(name, values)
            require(name in values, f"latency_seconds: there is no quality '{name}'{suggestion}")
        return self


class Catalog(Row):
    """Every model of the gateway, in the order of the file, and the defaults of an omitted one.

    `harmless` are values that have no effect, so models without the parameter accept them too.
    """

    default_model: Name
    default_gpt_model: Name
    unknown_models: Literal["reject"]
    prices_as_of: date
    unknown_price: Annotated[
        AssumedPrice | None,
        BeforeValidator(assumed_price, json_schema_input_type=Literal["deny"] | AssumedPrice),
    ] = None
    """For models without `billing`. None, written `deny`: they are refused."""
    harmless: Mapping[Name, bool | int] = Field(default_factory=dict)
    models: Annotated[Mapping[Name, Model], Field(min_length=1)]

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for key in ("default_model", "default_gpt_model"):
            name = getattr(self, key)
            suggestion = did_you_mean(name, self.models)
            require(name in self.models, f"{key}: there is no row '{name}'{suggestion}")
        for name in self.harmless:
            require(self.knows_parameter(name), f"harmless: no model has the parameter '{name}'")
        for model in self.models.values():
            if model.billing is None:
                model._assumed_price = self.unknown_price  # noqa: SLF001 - a row knows no table
        return self

    def knows_parameter(self, name: str) -> bool:
        """Whether any model has this parameter."""
        return any(name in model.parameters for model in self.models.values())


def _check_billing(model: Model, billing: TokenBilling | ImageBilling) -> None:
    for name in ("size", "quality"):
        require(name in model.parameters, f"needs the parameter '{name}', by which it is billed")
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
        require(fits, f"output_tokens_formula cannot be applied to the size '{value}'")


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

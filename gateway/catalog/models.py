"""A row of the table, and the table: what must fit together in them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    model_validator,
)

from gateway.catalog.aliases import (
    Alias,
    LinkedAlias,
    StandIns,
    check_names,
    link_aliases,
    switched_on,
)
from gateway.catalog.billing import (
    AssumedPrice,
    Billing,
    ImageBilling,
    TextPrices,
    TokenBilling,
    TokenFormula,
    assumed_price,
)
from gateway.catalog.dialects import BUILT_IN_DIALECTS, DialectRow
from gateway.catalog.lifecycle import Retired, is_shut_down
from gateway.catalog.parameters import (
    ChoiceSpec,
    IntegerSpec,
    ObjectSpec,
    ParameterSpec,
    SizeSpec,
)
from gateway.catalog.rows import SIZE, CatalogError, Name, Row, did_you_mean, require
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
        *("revised_prompt", "svg_usage", "type", "url", "usage", *ECHOED_PARAMETERS),
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
    azure_quality: Name = "high"
    """What Azure makes if the quality is omitted."""


class Model(Row):
    """One row of the table."""

    id: Name
    created: NonNegativeInt
    """Unix seconds, for `/v1/models`."""
    owned_by: Name
    shutdown: date | None = None
    """The day from which upstream refuses it, at 00:00 UTC."""
    successor: Name | None = None
    """The model that messages name in its place once it was shut down."""
    retired: Retired | None = None
    """What happens to its requests then. None: the catalog's `retired`."""
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
    service: Name | None = None
    """The row of `dialects` whose service has the model. None: OpenAI's and Azure's."""
    _assumed_price: AssumedPrice | None = PrivateAttr(default=None)
    _image_defaults: Mapping[str, Any] = PrivateAttr(default_factory=dict)
    _text_models: TextModels | None = PrivateAttr(default=None)
    _has_row: bool = PrivateAttr(default=True)

    @property
    def has_row(self) -> bool:
        """False for a model of `Catalog.unknown_model`: its requests are not validated."""
        found: bool = self.private("_has_row")
        return found

    @property
    def image_defaults(self) -> Mapping[str, Any]:
        """The defaults of the parameters that are no fields of `images.ImageRequest`."""
        found: Mapping[str, Any] = self.private("_image_defaults")
        return found

    @property
    def text_models(self) -> TextModels | None:
        """The prices of the text models that write SVG images; None if the row has none."""
        found: TextModels | None = self.private("_text_models")
        return found

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
        self._image_defaults = {
            name: spec.default
            for name, spec in self.parameters.items()
            if name not in _FIELD_TYPES and spec.default is not None
        }
        _check_rules(self)
        _check_sheet(self)
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


@dataclass(frozen=True, slots=True)
class TextModels:
    """The prices of text models, and the worst case of those that are not in the table."""

    prices: Mapping[str, TextPrices]
    unknown: TextPrices

    def price_of(self, name: str) -> TextPrices | None:
        """The price of a model, also of a dated snapshot of one; None if it is not known."""
        return self.prices.get(name) or self.prices.get(_SNAPSHOT.sub("", name))

    def dearest(self) -> TextPrices:
        """The highest prices of all."""
        everything = (*self.prices.values(), self.unknown)
        return TextPrices.model_construct(
            text_in=max(price.text_in for price in everything),
            text_out=max(price.text_out for price in everything),
        )


_SNAPSHOT: Final = re.compile(r"-[0-9]{4}-[0-9]{2}-[0-9]{2}$")


class Catalog(Row):
    """Every model of the gateway, in the order of the file, and the defaults of an omitted one.

    `harmless` are values that have no effect, so models without the parameter accept them too.
    """

    default_model: Name
    default_gpt_model: Name
    unknown_models: Literal["reject", "passthrough"]
    """What happens to a request for a model without a row: `passthrough` forwards it unchecked."""
    retired: Retired = "forward"
    """What happens to requests for models that were shut down."""
    prices_as_of: date
    unknown_price: Annotated[
        AssumedPrice | None,
        BeforeValidator(assumed_price, json_schema_input_type=Literal["deny"] | AssumedPrice),
    ] = None
    """For models without `billing`. None, written `deny`: they are refused."""
    text_models: Mapping[Name, TextPrices] = Field(default_factory=dict)
    """The models that write SVG images, by name."""
    unknown_text_model: TextPrices | None = None
    """The worst case of any other; needed by a row with `svg_max_tokens`."""
    harmless: Mapping[Name, bool | int] = Field(default_factory=dict)
    stand_ins: StandIns = ()
    """The aliases with `stand_in` that are switched on."""
    aliases: Mapping[Name, Alias] = Field(default_factory=dict)
    """Names under which other models are served."""
    dialects: Mapping[Name, DialectRow] = Field(default_factory=dict)
    """Services that speak neither OpenAI's dialect nor Azure's, by name."""
    models: Annotated[Mapping[Name, Model], Field(min_length=1)]
    _linked_aliases: Mapping[str, LinkedAlias] = PrivateAttr(default_factory=dict)
    _fronts: Mapping[str, Model] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        check_names(switched_on(self.aliases, self.stand_ins), self.models)
        self._link()
        for key in ("default_model", "default_gpt_model"):
            name = getattr(self, key)
            suggestion = did_you_mean(name, self.fronts)
            require(name in self.fronts, f"{key}: there is no row '{name}'{suggestion}")
            is_openais = self.model_of(name).service is None
            require(is_openais, f"{key}: '{name}' is the model of a service of its own")
        self._check_successors()
        for name in self.harmless:
            require(self.knows_parameter(name), f"harmless: no model has the parameter '{name}'")
        for name in BUILT_IN_DIALECTS:
            require(
                name not in self.dialects, f"dialects: '{name}' is built in; choose another name"
            )
        for model in self.models.values():
            if model.service is not None and model.service not in self.dialects:
                suggestion = did_you_mean(model.service, self.dialects)
                message = f"models.{model.id}: there is no dialect '{model.service}'{suggestion}"
                raise ValueError(message)
            if model.billing is None:
                model._assumed_price = self.unknown_price  # noqa: SLF001 - a row knows no table
            if isinstance(model.billing, TokenBilling) and model.billing.svg_max_tokens:
                if self.unknown_text_model is None:
                    raise ValueError(f"unknown_text_model: needed by svg_max_tokens of {model.id}")
                prices = TextModels(self.text_models, self.unknown_text_model)
                model._text_models = prices  # noqa: SLF001
        self._link()  # again: the rows of aliases are copies, with their prices
        return self

    def _check_successors(self) -> None:
        for name, model in self.models.items():
            if (successor := model.successor) is not None:
                key, known = f"models.{name}.successor", self.models.keys() - {name}
                suggestion = did_you_mean(successor, known)
                require(successor != name, f"{key}: a model cannot succeed itself")
                require(successor in known, f"{key}: there is no row '{successor}'{suggestion}")

    def _link(self) -> None:
        enabled = switched_on(self.aliases, self.stand_ins)
        self._use(link_aliases(enabled, self.models))

    def _use(self, linked: Mapping[str, LinkedAlias]) -> None:
        self._linked_aliases = linked
        rows = {name: alias.row for name, alias in self._linked_aliases.items()}
        self._fronts = {**self.models, **rows}

    @property
    def linked_aliases(self) -> Mapping[str, LinkedAlias]:
        """The aliases that are switched on."""
        found: Mapping[str, LinkedAlias] = self.private("_linked_aliases")
        return found

    @property
    def fronts(self) -> Mapping[str, Model]:
        """The row that a request is checked against first, by every name that it may ask for."""
        found: Mapping[str, Model] = self.private("_fronts")
        return found

    @property
    def names(self) -> Collection[str]:
        """Every model and alias, also those that are switched off: what a key may be allowed."""
        return {**self.models, **self.aliases}.keys()

    def model_of(self, name: str) -> Model:
        """The model that serves a name of `fronts`: itself, or that of an alias."""
        return self.models[self._end_of(name)]

    def _end_of(self, name: str) -> str:
        aliases = self.linked_aliases
        while name in aliases:
            name = aliases[name].target
        return name

    def retirement(self, model: Model, today: date) -> Retired | None:
        """What happens to requests for a model that was shut down; None before."""
        if not is_shut_down(model.shutdown, today):
            return None
        return model.retired or self.retired

    def with_shutdowns(self, shutdowns: Mapping[str, date | None]) -> Catalog:
        """The same models, some of them with another shutdown date, or without one."""
        models = {
            name: model.model_copy(update={"shutdown": shutdowns.get(name, model.shutdown)})
            for name, model in self.models.items()
        }
        return self.with_models(models)

    def with_models(self, models: Mapping[str, Model]) -> Catalog:
        """The catalog with other rows, without the aliases that they do not serve any more.

        The others keep their own rows, also if these are not among `models`.
        """
        changed = self.model_copy(update={"models": models})
        linked = self._linked_aliases.items()
        served = {name: alias for name, alias in linked if self._end_of(name) in models}
        changed._use(served)  # noqa: SLF001 - its own class
        return changed

    @property
    def served_defaults(self) -> tuple[str, ...]:
        """`default_model` and `default_gpt_model`, without those that no account has."""
        defaults = dict.fromkeys((self.default_model, self.default_gpt_model))
        return tuple(name for name in defaults if name in self._fronts)

    @property
    def may_have_others(self) -> bool:
        """Whether models without a row can be requested."""
        return self.unknown_models == "passthrough"

    def may_exist(self, name: str) -> bool:
        """Whether a key may be allowed the model: it has a row, or needs none."""
        return name in self.names or self.may_have_others

    def unknown_model(self, name: str) -> Model:
        """A model that has no row, under `unknown_models: passthrough`: without parameters.

        Its price is `unknown_price`.
        """
        model = _UNKNOWN.model_copy(update={"id": name})
        model._has_row = False  # noqa: SLF001 - no row of the file can say so
        model._assumed_price = self.unknown_price  # noqa: SLF001 - a row knows no table
        return model

    def check_dialects(self, named: Iterable[str]) -> None:
        """Raises `CatalogError` for a name that is neither built in nor a row of `dialects`."""
        known = (*BUILT_IN_DIALECTS, *self.dialects)
        for name in named:
            if name not in known:
                raise CatalogError(
                    f"gateway.yaml: dialect: there is no dialect '{name}'"
                    f"{did_you_mean(name, known)}. Use one of {', '.join(known)}, or add a row to "
                    "dialects in models.yaml"
                )

    def knows_parameter(self, name: str) -> bool:
        """Whether any model has this parameter."""
        return any(name in model.parameters for model in self.models.values())


def _check_billing(model: Model, billing: TokenBilling | ImageBilling) -> None:
    if isinstance(billing, ImageBilling):
        _check_prices(model, billing)
        return
    for name in ("size", "quality"):
        require(name in model.parameters, f"needs the parameter '{name}', by which it is billed")
    if billing.output_tokens is not None:
        _check_table(model, "output_tokens", billing.output_tokens)
    if billing.output_tokens_formula is not None:
        _check_formula(model, billing.output_tokens_formula)
    for row in billing.usd_per_image.values():
        _check_names(model, "quality", "usd_per_image", names=row)
    _check_svg(model, billing)


def _check_prices(model: Model, billing: ImageBilling) -> None:
    for name in billing.priced_by:
        spec = model.parameters.get(name)
        require(spec is not None, f"needs the parameter '{name}', by which it is billed")
        has_default = spec is not None and spec.default is not None
        require(has_default, f"'{name}', by which it is billed, needs a default")
    for name, table in billing.levels():
        _check_names(model, name, "usd_per_image", names=table)


def _check_svg(model: Model, billing: TokenBilling) -> None:
    formats = model.parameters.get("output_format")
    makes_svg = isinstance(formats, ChoiceSpec) and "svg" in formats.values
    bounds = billing.svg_max_tokens
    if bounds is None:
        require(not makes_svg, "needs svg_max_tokens, the bound of what an SVG image costs")
        return
    require(makes_svg, "svg_max_tokens is of no use: output_format has no 'svg'")
    svg = model.parameters.get("svg")
    reasoning = svg.fields.get("reasoning") if isinstance(svg, ObjectSpec) else None
    effort = reasoning.fields.get("effort") if isinstance(reasoning, ObjectSpec) else None
    if not isinstance(effort, ChoiceSpec):
        raise ValueError("svg_max_tokens needs the parameter svg with the choice reasoning.effort")
    for value in effort.distinct_values:
        require(value in bounds, f"svg_max_tokens lacks the effort '{value}'")
    for value in bounds:
        known = value in effort.distinct_values
        require(known, f"svg_max_tokens has the effort '{value}', which svg does not know")


def _check_sheet(model: Model) -> None:
    size, formats = model.parameters.get("size"), model.parameters.get("output_format")
    if not isinstance(size, SizeSpec) or size.sheet is None:
        return
    known = formats.values if isinstance(formats, ChoiceSpec) else ()
    for name in size.sheet.formats:
        require(name in known, f"sheet: output_format has no '{name}'")
    frames = model.parameters.get(size.sheet.frames)
    if not isinstance(frames, IntegerSpec) or frames.default is None:
        raise ValueError(f"sheet: '{size.sheet.frames}' must be an integer with a default")
    require(frames.max <= size.sheet.layouts[-1].frames, "sheet: no layout has room for all frames")


def _check_rules(model: Model) -> None:
    for rule in model.rules:
        for name, condition in rule.when.items():
            spec = model.parameters.get(name)
            require(spec is not None, f"a rule names '{name}', which is no parameter")
            has_default = spec is not None and spec.default is not None
            fits = condition.given is None or not has_default
            require(fits, f"a rule asks whether '{name}' is given, which has a default")


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


_UNKNOWN: Final = Model(
    id="unknown",
    created=0,
    owned_by="unknown",
    cache_epoch=0,
    prompt_max_characters=1,
    parameters={},
)
"""Of `Catalog.unknown_model`. At the end, because a row is checked when it is made."""

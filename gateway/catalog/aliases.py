"""Aliases: names under which another model is served, so that a team's old code goes on working.

A request for an alias is checked twice. The alias's own row is the row of `models` with its name,
else the row of the model that serves it: what a client of that name may send. Then its values are
mapped, and checked by the model that serves it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from gateway.catalog.parameters import ChoiceSpec, ParameterSpec, SizeSpec
from gateway.catalog.rows import Name, Row, did_you_mean, require
from gateway.images import IDENTITIES, ImageRequest

DROP: Final = "drop"

BY_REHOSTING: Final = "url by rehosting"
"""The gateway makes the links: the model that serves the alias has no `response_format`."""

_RESPONSE_FORMAT: Final = ChoiceSpec(type="choice", values=("url", "b64_json"), default="b64_json")
"""Of an alias with `BY_REHOSTING` whose row has no `response_format`."""

_OWN_FIELDS: Final = frozenset({"n", "stream", "partial_images", "response_format", *IDENTITIES})
"""Parameters that are fields of `ImageRequest`."""


def _mapping(value: object) -> object:
    if value == DROP:
        return None
    if isinstance(value, Mapping) and value:
        return value
    raise ValueError("write 'drop', or values with what becomes of them, such as {hd: high}")


def _stand_ins(value: object) -> object:
    if value in ("none", "all"):
        return () if value == "none" else "all"
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise ValueError("write 'none', 'all', or names of aliases such as [dall-e-3]")


StandIns: TypeAlias = Annotated[
    Literal["all"] | tuple[Name, ...],
    BeforeValidator(_stand_ins, json_schema_input_type=Literal["none", "all"] | list[Name]),
]
"""The aliases with `stand_in` that are switched on; `()` is written `none`."""

Mapped: TypeAlias = Annotated[
    Mapping[Name, Name] | None,
    BeforeValidator(_mapping, json_schema_input_type=Literal["drop"] | Mapping[Name, Name]),
]
"""None, written `drop`: the parameter is checked, and left out."""


class Alias(Row):
    """A row of `aliases`."""

    model: Name
    """The model that serves it, or another alias."""
    stand_in: bool = False
    """It is on only if the catalog's `stand_ins` names it. If not, only its keys are checked."""
    map: Mapping[Name, Mapped] = Field(default_factory=dict)
    """By parameter. Values that are not in it stay as they are."""
    response_format: Literal["url by rehosting"] | None = None
    """`url` and `b64_json` are served by the gateway itself."""
    replaces: bool = False
    """It takes the place of a row of `models` that has no shutdown date."""


@dataclass(frozen=True, slots=True)
class LinkedAlias:
    """An alias that is switched on, with its row."""

    name: str
    target: str
    """The model, or the alias, that serves it."""
    row: Any
    """The `Model` that its requests are checked against first; its id is the alias's name."""
    map: Mapping[str, Mapping[str, str] | None]

    def body_for(self, request: ImageRequest) -> dict[str, object]:
        """The JSON object that the target is asked with: every effective value, mapped.

        Without the parameters that name a client, and `response_format`.
        """
        # With the defaults of its own row: those of the target may differ.
        values: dict[str, object] = {
            name: request.parameters.get(name, spec.default)
            for name, spec in self.row.parameters.items()
            if name not in _OWN_FIELDS
        }
        if "n" in self.row.parameters:
            values["n"] = request.n
        if request.stream:
            values |= {"stream": True, "partial_images": request.partial_images}
        kept = {
            name: self._mapped(name, value)
            for name, value in values.items()
            if value is not None and self.map.get(name, {}) is not None
        }
        return {"model": self.target, "prompt": request.prompt, **kept}

    def _mapped(self, name: str, value: object) -> object:
        of_parameter = self.map.get(name) or {}
        return of_parameter.get(value, value) if isinstance(value, str) else value


# ── checking ────────────────────────────────────────────────────────────────────────────────


def switched_on(aliases: Mapping[str, Alias], stand_ins: StandIns) -> Mapping[str, Alias]:
    """The aliases that are switched on. Raises `ValueError` for a stand-in that does not exist."""
    known = [name for name, alias in aliases.items() if alias.stand_in]
    named = known if stand_ins == "all" else stand_ins
    for name in named:
        require(
            name in known,
            f"stand_ins: there is no alias '{name}' with 'stand_in: true'"
            f"{did_you_mean(name, known)}",
        )
    return {name: alias for name, alias in aliases.items() if not alias.stand_in or name in named}


def link_aliases(
    enabled: Mapping[str, Alias], models: Mapping[str, Any]
) -> Mapping[str, LinkedAlias]:
    """The aliases with their rows. Raises `ValueError`, which names the key and the fix."""
    for name, alias in enabled.items():
        known = {*enabled, *models} - {name}
        require(
            alias.model != name,
            f"aliases.{name}.model: an alias cannot be served by itself; name another model",
        )
        require(
            alias.model in known,
            f"aliases.{name}.model: there is no model '{alias.model}'"
            f"{did_you_mean(alias.model, known)}",
        )
    linked: dict[str, LinkedAlias] = {}
    for name in enabled:
        for hop in reversed(list(_path(name, enabled))):
            if hop not in linked:
                linked[hop] = _link(hop, enabled[hop], linked, models)
    return linked


def check_names(aliases: Mapping[str, Alias], models: Mapping[str, Any]) -> None:
    """Checks that no alias takes the place of a living model by accident. Raises `ValueError`."""
    for name, alias in aliases.items():
        is_living = name in models and models[name].shutdown is None
        require(
            alias.replaces or not is_living,
            f"aliases.{name}: models has a row of this name too, which has no shutdown date. Give "
            "the alias another name, or add 'replaces: true' if it is to take the model's place",
        )
        require(
            name in models or not alias.replaces,
            f"aliases.{name}.replaces: models has no row '{name}'; remove this key",
        )


def _path(name: str, aliases: Mapping[str, Alias]) -> Iterator[str]:
    """The alias, and the aliases that serve it. Raises `ValueError` for a circle."""
    seen: list[str] = []
    while name in aliases:
        if name in seen:
            circle = " → ".join((*seen[seen.index(name) :], name))
            raise ValueError(
                f"aliases.{seen[-1]}.model: the aliases {circle} are a circle; let one of them "
                "name a model"
            )
        seen.append(name)
        yield name
        name = aliases[name].model


def _link(
    name: str, alias: Alias, linked: Mapping[str, LinkedAlias], models: Mapping[str, Any]
) -> LinkedAlias:
    served_by = linked[alias.model].row if alias.model in linked else models[alias.model]
    row = models.get(name, served_by)
    changes: dict[str, Any] = {"id": name}
    has_formats = "response_format" in row.parameters
    if alias.response_format is not None and not has_formats:
        changes["parameters"] = {**row.parameters, "response_format": _RESPONSE_FORMAT}
    row = row.model_copy(update=changes)
    for parameter in alias.map:
        require(
            parameter in row.parameters,
            f"aliases.{name}.map: '{name}' has no parameter '{parameter}'"
            f"{did_you_mean(parameter, row.parameters)}",
        )
    for parameter, spec in row.parameters.items():
        if parameter not in alias.map or alias.map[parameter] is not None:
            _check_parameter(name, alias, parameter, spec, served_by.parameters.get(parameter))
    return LinkedAlias(name, alias.model, row, alias.map)


def _check_parameter(
    name: str, alias: Alias, parameter: str, spec: ParameterSpec, target: ParameterSpec | None
) -> None:
    """Checks that the target knows a parameter, and everything that its values become."""
    key = f"aliases.{name}.map.{parameter}"
    if target is None:
        if parameter == "response_format":
            require(
                alias.response_format is not None,
                f"aliases.{name}: '{alias.model}' has no parameter 'response_format'. Add "
                f"'response_format: {BY_REHOSTING}', or 'response_format: drop' to map",
            )
            return
        raise ValueError(
            f"aliases.{name}.map: '{alias.model}' has no parameter '{parameter}'. Add "
            f"'{parameter}: drop'"
        )
    mapped = alias.map.get(parameter) or {}
    values = spec.values if isinstance(spec, SizeSpec) else ()
    if isinstance(spec, ChoiceSpec):
        for value in mapped:
            require(
                value not in spec.means,
                f"{key}: '{value}' means '{spec.means.get(value)}' and is read as that; map that",
            )
        values = spec.distinct_values
    for value in mapped:
        is_free = isinstance(spec, SizeSpec) and spec.fault_of(value) is None
        require(
            value in values or is_free,
            f"{key}: '{name}' has no {parameter} '{value}'{did_you_mean(value, values)}",
        )
    for value in (*values, *(value for value in mapped if value not in values)):
        became = mapped.get(value, value)
        require(
            _knows(target, became),
            f"{key}: '{value}' becomes '{became}', which '{alias.model}' does not know. Map "
            f"'{value}' to one of {', '.join(_values_of(target))}",
        )


def _knows(spec: ParameterSpec, value: str) -> bool:
    if isinstance(spec, ChoiceSpec):
        return value in spec.values
    return isinstance(spec, SizeSpec) and (value in spec.values or spec.fault_of(value) is None)


def _values_of(spec: ParameterSpec) -> tuple[str, ...]:
    if isinstance(spec, SizeSpec):
        return (spec.example, *spec.values)
    return spec.values if isinstance(spec, ChoiceSpec) else ()

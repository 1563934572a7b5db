"""Interprets the model table: from a JSON object to a valid request, or to the exact error.

Strict mode: what the API reference does not allow is refused with the error of WIRE §2, the first
one only, in the order of CONTRACT §5. Lenient mode sets aside what known clients send although it
changes nothing (WIRE §7), and checks the rest as strictly; so it accepts all that strict mode
does, as the very same request. Nothing is coerced and the prompt is never changed. The rows say
what is allowed (`catalog`); bytes become JSON in `request/body`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import singledispatch
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from gateway.catalog import (
    SIZE,
    BooleanSpec,
    Catalog,
    ChoiceSpec,
    Condition,
    IntegerSpec,
    Model,
    ParameterSpec,
    Rule,
    SizeSpec,
    TextSpec,
)
from gateway.errors import InvalidRequest
from gateway.images import ImageRequest
from gateway.request.body import describe_kind, shorten

Value: TypeAlias = str | int | None
"""A checked parameter; a boolean is an `int` here."""

IMAGE_USER_ERROR: Final = "image_generation_user_error"
"""The error type of what only the images endpoint refuses (WIRE §2 rows 12, 16, 18, 20)."""

_NOT_IN_THE_IMAGE: Final = frozenset({"n", "partial_images", "response_format", "stream", "user"})
"""Parameters with a field of their own in `ImageRequest`; all others change the image."""

_SETTING: Final = 'GATEWAY_VALIDATION=lenient, or "validation": "lenient" of the key'
_DROPPED: Final = "is dropped at its default"
_FORWARDED: Final = "is forwarded as given"
_SERVED: Final = "is served by the gateway itself"
"""What lenient mode does with a parameter, in the words of the hint."""


def validate(
    body: Mapping[str, object],
    catalog: Catalog,
    *,
    allowed_models: Collection[str] | None = None,
    is_lenient: bool = False,
) -> ImageRequest:
    """The request that `body` means: model resolved, defaults filled in, other spellings folded.

    `allowed_models` None allows all. Raises `InvalidRequest`: 400 as in WIRE §2, or 403
    `model_not_found` for a model that exists and is not allowed. A refusal that lenient mode
    would not make carries the header `x-gateway-hint`.
    """
    model = _resolve_model(body, catalog)
    _check_allowed(model, allowed_models)
    if is_lenient:
        return _read_leniently(body, model, catalog=catalog)
    try:
        return _read_strictly(body, model, catalog=catalog)
    except InvalidRequest as refusal:
        refusal.headers |= _hint(body, model, catalog=catalog)
        raise


def _read_strictly(body: Mapping[str, object], model: Model, *, catalog: Catalog) -> ImageRequest:
    _check_keys(body, model, catalog=catalog)
    prompt = _check_prompt(body, model)
    given = {
        name: _check.registry[type(spec)](spec, name, value)
        for name, spec in model.parameters.items()
        if (value := body.get(name)) is not None
    }
    values = {name: spec.default for name, spec in model.parameters.items()} | given
    for rule in model.rules:
        _check_rule(rule, values)
    return _build(model, prompt, values=values, given=given, body=body)


# ── the model ───────────────────────────────────────────────────────────────────────────────


def _resolve_model(body: Mapping[str, object], catalog: Catalog) -> Model:
    name = body.get("model")
    if name is None:
        name = _default_model(body, catalog)
    if not isinstance(name, str):
        raise _invalid_type("model", "a string", value=name)
    model = catalog.models.get(name)
    if model is None:
        raise InvalidRequest(
            f"The model '{shorten(name)}' does not exist.",
            type=IMAGE_USER_ERROR,
            param="model",
            code="invalid_value",
        )
    return model


def _default_model(body: Mapping[str, object], catalog: Catalog) -> str:
    """What an omitted model means: the GPT default as soon as something only GPT models know.

    The same in both modes and before either begins, so that leniency never changes the image:
    a tolerated `background: auto` still asks for a GPT model, and `response_format` or `style`,
    which no GPT model has, for none.
    """
    given = ((name, value) for name, value in body.items() if value is not None)
    if any(_needs_gpt(name, value, catalog=catalog) for name, value in given):
        return catalog.default_gpt_model
    return catalog.default_model


def _needs_gpt(name: str, value: object, *, catalog: Catalog) -> bool:
    plain = catalog.models[catalog.default_model].parameters.get(name)
    gpt = catalog.models[catalog.default_gpt_model].parameters.get(name)
    if gpt is None:
        return False
    if plain is None:
        return not _is_harmless(name, value, catalog=catalog)
    return _lists(gpt, value) and not _lists(plain, value)


def _lists(spec: ParameterSpec, value: object) -> bool:
    return isinstance(spec, ChoiceSpec | SizeSpec) and value in spec.values


def _check_allowed(model: Model, allowed_models: Collection[str] | None) -> None:
    if allowed_models is None or model.id in allowed_models:
        return
    message = f"The key does not have access to model `{model.id}`."
    raise InvalidRequest(message, status=403, code="model_not_found")


# ── lenient mode ────────────────────────────────────────────────────────────────────────────


def _read_leniently(body: Mapping[str, object], model: Model, *, catalog: Catalog) -> ImageRequest:
    """Sets the tolerable aside, reads the rest strictly, and puts back what has an effect."""
    aside = _tolerated(body, model, catalog=catalog)
    rest = {name: value for name, value in body.items() if name not in aside}
    kept: dict[str, Any] = {name: body[name] for name in aside if aside[name] != _DROPPED}
    return replace(_read_strictly(rest, model, catalog=catalog), **kept)


def _hint(body: Mapping[str, object], model: Model, *, catalog: Catalog) -> Mapping[str, str]:
    """The header of a refusal that lenient mode would not make (CONTRACT §5)."""
    try:
        _read_leniently(body, model, catalog=catalog)
    except InvalidRequest:
        return {}
    aside = _tolerated(body, model, catalog=catalog)
    fate = ", ".join(f"'{name}' {fate}" for name, fate in aside.items())
    return {"x-gateway-hint": f"lenient validation would accept this: {fate} ({_SETTING})"}


def _tolerated(body: Mapping[str, object], model: Model, *, catalog: Catalog) -> Mapping[str, str]:
    """What strict mode refuses and lenient mode does not, with what becomes of it."""
    fates = {name: _fate(name, value, model, catalog=catalog) for name, value in body.items()}
    return {name: fate for name, fate in fates.items() if fate is not None}


def _fate(name: str, value: object, model: Model, *, catalog: Catalog) -> str | None:
    """What lenient mode does with a parameter that strict mode refuses; None: it refuses too."""
    if value is None or _is_harmless(name, value, catalog=catalog):
        return None
    if name in model.parameters:
        is_any_json = name == "user" and not isinstance(value, str) and _can_be_written(value)
        return _FORWARDED if is_any_json else None
    rows = [m.parameters[name] for m in catalog.models.values() if name in m.parameters]
    if name == "response_format":  # base64 and link are two views of what the gateway keeps
        return _SERVED if any(_lists(spec, value) for spec in rows) else None
    return _DROPPED if any(_is_default(spec, name, value) for spec in rows) else None


def _can_be_written(value: object) -> bool:
    """Whether JSON can say it: a number like 1e999 was read as infinite and cannot be repeated."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _is_default(spec: ParameterSpec, name: str, value: object) -> bool:
    """Whether a model with this row would read the value as if it were not there."""
    try:
        return _check(spec, name, value) == spec.default
    except InvalidRequest:
        return False


# ── keys and prompt ─────────────────────────────────────────────────────────────────────────


def _check_keys(body: Mapping[str, object], model: Model, *, catalog: Catalog) -> None:
    """Refuses the first key that the model lacks, unless it says nothing."""
    for name, value in body.items():
        if name in ("model", "prompt") or name in model.parameters:
            continue
        is_omitted = value is None and catalog.knows_parameter(name)
        if not is_omitted and not _is_harmless(name, value, catalog=catalog):
            shown = shorten(name)
            message = f"Unknown parameter: '{shown}'."
            raise InvalidRequest(message, param=shown, code="unknown_parameter")


def _is_harmless(name: str, value: object, *, catalog: Catalog) -> bool:
    """Whether the value changes nothing even for models that lack the parameter."""
    if name not in catalog.harmless:
        return False
    harmless = catalog.harmless[name]
    return value == harmless and isinstance(value, bool) == isinstance(harmless, bool)


def _check_prompt(body: Mapping[str, object], model: Model) -> str:
    if "prompt" not in body:
        message = "Missing required parameter: 'prompt'."
        raise InvalidRequest(message, param="prompt", code="missing_required_parameter")
    prompt = body["prompt"]
    if not isinstance(prompt, str):
        raise _invalid_type("prompt", "a string", value=prompt)
    if not prompt:
        message = (
            "Invalid 'prompt': empty string. Expected a string with minimum length 1, "
            "but got an empty string instead."
        )
        raise InvalidRequest(message, param="prompt", code="empty_string")
    longest = model.prompt_max_characters
    if len(prompt) > longest:
        message = (
            f"Invalid 'prompt': string too long. Expected a string with maximum length {longest}, "
            f"but got a string with length {len(prompt)} instead."
        )
        raise InvalidRequest(message, param="prompt", code="string_above_max_length")
    return prompt


# ── parameters: one check per row type, the type before the value ───────────────────────────


@singledispatch
def _check(spec: ParameterSpec, name: str, value: object) -> Value:
    """The value as the row reads it; raises `InvalidRequest`."""
    raise TypeError(f"no check for rows like {type(spec).__name__}")


@_check.register
def _(spec: ChoiceSpec, name: str, value: object) -> Value:
    if not isinstance(value, str):
        raise _invalid_type(name, f"one of {_listed(spec.values, 'or')}", value=value)
    if value not in spec.values:
        known = _listed(spec.values, "and")
        message = f"Invalid value: '{shorten(value)}'. Supported values are: {known}."
        raise InvalidRequest(message, param=name, code="invalid_value")
    return spec.means.get(value, value)


@_check.register
def _(spec: SizeSpec, name: str, value: object) -> Value:
    if not isinstance(value, str):
        raise _invalid_type(name, "a string", value=value)
    if value in spec.values:
        return value
    fault = _size_fault(spec, value)
    if fault is not None:
        message = f"Invalid size '{shorten(value)}'. {fault}"
        raise InvalidRequest(message, type=IMAGE_USER_ERROR, param=name, code="invalid_value")
    return value


@_check.register
def _(spec: IntegerSpec, name: str, value: object) -> Value:
    number = _integer(name, value)
    if number < spec.min:
        fault = f"below minimum value. Expected a value >= {spec.min}"
        raise _out_of_range(name, fault, number=number, code="integer_below_min_value")
    if number > spec.max:
        fault = f"above maximum value. Expected a value <= {spec.max}"
        raise _out_of_range(name, fault, number=number, code="integer_above_max_value")
    if spec.only is not None and number != spec.only.value:
        raise InvalidRequest(spec.only.message)
    return number


@_check.register
def _(spec: BooleanSpec, name: str, value: object) -> Value:
    if not isinstance(value, bool):
        raise _invalid_type(name, "a boolean", value=value)
    return value


@_check.register
def _(spec: TextSpec, name: str, value: object) -> Value:
    if not isinstance(value, str):
        raise _invalid_type(name, "a string", value=value)
    return value


def _integer(name: str, value: object) -> int:
    """An integer; `2.0` is one, `true` and `"2"` are not."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _invalid_type(name, "an integer", value=value)
    return value


def _size_fault(spec: SizeSpec, size: str) -> str | None:
    """What is wrong with a free size, in the words of WIRE §2 row 12.

    The ratio comes last: no wording of it was ever observed, and the others are exact.
    """
    matched = SIZE.fullmatch(size)
    if matched is None:
        return f"Expected WIDTHxHEIGHT, for example '{spec.example}'."
    shorter, longer = sorted(int(edge) for edge in matched.groups())
    pixels = shorter * longer
    if shorter % spec.divisor or longer % spec.divisor:
        return f"Width and height must both be divisible by {spec.divisor}."
    if longer > spec.max_edge:
        return f"The longest edge must be less than or equal to {spec.max_edge}."
    if pixels < spec.min_pixels:
        return "Requested resolution is below the current minimum pixel budget."
    if pixels > spec.max_pixels:
        return "Requested resolution exceeds the current pixel budget."
    if longer > spec.max_ratio * shorter:
        return f"The aspect ratio must be between 1:{spec.max_ratio} and {spec.max_ratio}:1."
    return None


# ── rules across parameters ─────────────────────────────────────────────────────────────────


def _check_rule(rule: Rule, values: Mapping[str, Value]) -> None:
    for name, condition in rule.when.items():
        if not _holds(condition, values[name]):
            return
    error = rule.error
    raise InvalidRequest(error.message, type=error.type, param=error.param, code=error.code)


def _holds(condition: Condition, value: Value) -> bool:
    if condition.equals is not None:
        return value == condition.equals
    if not isinstance(value, int):
        return False
    if condition.above is not None:
        return value > condition.above
    return condition.below is not None and value < condition.below


# ── the result, and the wording of errors ───────────────────────────────────────────────────


def _build(
    model: Model,
    prompt: str,
    *,
    values: Mapping[str, Value],
    given: Mapping[str, Value],
    body: Mapping[str, object],
) -> ImageRequest:
    stream = values.get("stream") is True
    asked = body.get("response_format")
    return ImageRequest(
        model=model.id,
        prompt=prompt,
        n=_number(values.get("n"), 1),
        parameters=_off_default(model, given),
        response_format=_text(values.get("response_format")) or "b64_json",
        asked_response_format=_text(asked) if "response_format" in model.parameters else None,
        user=_text(values.get("user")),
        stream=stream,
        # Without a stream there is nobody to send partial images to (WIRE §1.3).
        partial_images=_number(values.get("partial_images"), 0) if stream else 0,
    )


def _off_default(model: Model, given: Mapping[str, Value]) -> Mapping[str, str | int]:
    kept = {
        name: value
        for name, value in given.items()
        if name not in _NOT_IN_THE_IMAGE
        and value is not None
        and value != model.parameters[name].default
    }
    return MappingProxyType(kept)


def _number(value: Value, default: int) -> int:
    return value if isinstance(value, int) else default


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _invalid_type(name: str, expected: str, *, value: object) -> InvalidRequest:
    kind = describe_kind(value)
    message = f"Invalid type for '{name}': expected {expected}, but got {kind} instead."
    return InvalidRequest(message, param=name, code="invalid_type")


def _out_of_range(name: str, fault: str, *, number: int, code: str) -> InvalidRequest:
    message = f"Invalid '{name}': integer {fault}, but got {shorten(str(number))} instead."
    return InvalidRequest(message, param=name, code=code)


def _listed(values: Collection[str], joint: str) -> str:
    """The values quoted, as an English list: `'a'`, `'a' and 'b'`, `'a', 'b', and 'c'`."""
    *most, last = [f"'{value}'" for value in values]
    if not most:
        return last
    comma = "," if len(most) > 1 else ""
    return f"{', '.join(most)}{comma} {joint} {last}"

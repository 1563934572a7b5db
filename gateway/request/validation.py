"""Validates a JSON object against the model table: a valid request, or the exact error.

Strict mode refuses everything that the API reference does not allow, with the service's own error
(`docs/reference/images-api.md#refusals`), and only the first one
(`docs/reference/images-api.md#order-of-checks`). Lenient mode first sets aside parameters that
known clients send although they have no effect (`docs/reference/images-api.md#lenient-validation`),
and checks the rest as strictly. So it accepts everything that strict mode accepts, as the same
request.

Nothing is coerced, and the prompt is never changed. The rows of the table (`catalog`) say which
values are allowed; bytes become JSON in `request.body`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import singledispatch
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from gateway.catalog import (
    SIZE,
    BooleanSpec,
    Catalog,
    ChoiceSpec,
    DecimalSpec,
    IntegerSpec,
    Model,
    ObjectSpec,
    ParameterSpec,
    SheetLayout,
    SizeSpec,
    TextSpec,
    canonical_number,
)
from gateway.errors import IMAGE_USER_ERROR, ErrorCode, InvalidRequest, shorten, shorten_name
from gateway.images import IDENTITIES, ImageRequest, ParameterValue
from gateway.request.body import describe_kind
from gateway.request.unchecked import check_name, read_unchecked

Value: TypeAlias = ParameterValue | None

_NOT_IN_THE_IMAGE: Final = frozenset(
    {"n", "partial_images", "response_format", "stream", *IDENTITIES}
)
"""Parameters with a field of their own in `ImageRequest`; all others change the image."""

_SETTING: Final = 'GATEWAY_VALIDATION=lenient, or "validation": "lenient" of the key'
_HINT: Final = (
    "With lenient validation this gateway would accept the request ({}): ask its operator to set "
    "validation to lenient for your key, or GATEWAY_VALIDATION=lenient for all keys."
)
"""The last sentence of a refusal that lenient mode would not make."""

# How lenient mode treats a parameter, as the hint says it.
_DROPPED: Final = "is dropped at its default"
_FORWARDED: Final = "is forwarded as given"
_SERVED: Final = "is served by the gateway itself"


def validate(
    body: Mapping[str, object],
    catalog: Catalog,
    *,
    allowed_models: Collection[str] | None = None,
    is_lenient: bool = False,
    raw: bytes = b"",
) -> ImageRequest:
    """The request of a body: model resolved, defaults filled in, other spellings folded.

    `raw` are the bytes of the body. A model without a row is forwarded unchecked, as they are
    (`request.unchecked`), if the table says so.
    `allowed_models` None allows all. Raises `InvalidRequest`: 400, or 403 `model_not_found` for a
    model that exists and is not allowed. A refusal that lenient mode would not make says so in its
    last sentence and in the header `x-gateway-hint`.
    """
    model = _resolve_model(body, catalog)
    if allowed_models is not None and model.id not in allowed_models:
        message = f"The key does not have access to model `{model.id}`."
        raise InvalidRequest(message, code=ErrorCode.MODEL_NOT_FOUND)
    if not model.has_row:
        return read_unchecked(raw, body, model=model.id)
    if is_lenient:
        request = _validate_leniently(body, model, catalog=catalog)
        return _serve_alias(request, catalog)
    try:
        request = _validate_strictly(body, model, catalog=catalog)
    except InvalidRequest as refusal:
        raise _with_hint(refusal, body, model, catalog=catalog) from None
    return _serve_alias(request, catalog)


def _serve_alias(request: ImageRequest, catalog: Catalog) -> ImageRequest:
    """A request for an alias, which its row allows, as one for the model that serves it.

    Any other request is returned as it is. The names of the client, and the gateway's own links,
    need no mapping.
    """
    alias = catalog.linked_aliases.get(request.model)
    if alias is None:
        return request
    body = alias.body_for(request)
    try:
        served = _validate_strictly(body, catalog.fronts[alias.target], catalog=catalog)
    except InvalidRequest as refusal:
        sentence = f"The model '{alias.name}' is served by '{alias.target}'."
        raise refusal.with_sentence(sentence) from None
    served = replace(
        _serve_alias(served, catalog),
        asked_model=alias.name,
        user=request.user,
        safety_identifier=request.safety_identifier,
    )
    if alias.map.get("response_format", {}) is None:
        return served
    knows_formats = "response_format" in catalog.model_of(alias.name).parameters
    return replace(
        served,
        response_format=request.response_format,
        requested_response_format=request.requested_response_format if knows_formats else None,
    )


def _validate_strictly(
    body: Mapping[str, object], model: Model, *, catalog: Catalog
) -> ImageRequest:
    _check_names(body, model, catalog=catalog)
    prompt = _check_prompt(body, model)
    given = {
        # By class in the registry, without a dispatch for each parameter: no row type has
        # subclasses.
        name: _check.registry[type(spec)](spec, name, value)
        for name, spec in _specs(model, body)
        # null means omitted: `docs/reference/images-api.md#null-and-types`.
        if (value := body.get(name)) is not None
    }
    values = {name: spec.default for name, spec in model.parameters.items()} | given
    for rule in model.rules:
        if all(condition.holds(values[name]) for name, condition in rule.when.items()):
            error = rule.error
            raise InvalidRequest(error.message, type=error.type, param=error.param, code=error.code)
    return _build(model, prompt, values=values, given=given, body=body)


@dataclass(frozen=True, slots=True)
class _FrameSize:
    """The row of a size that is one frame's, because the format has a sheet of them."""

    size: SizeSpec
    layout: SheetLayout


def _specs(
    model: Model, body: Mapping[str, object]
) -> Iterable[tuple[str, ParameterSpec | _FrameSize]]:
    """The parameters of a model as this body has them."""
    size = model.parameters.get("size")
    if not isinstance(size, SizeSpec) or size.sheet is None:
        return model.parameters.items()
    if body.get("output_format") not in size.sheet.formats:
        return model.parameters.items()
    frames = _without_fraction(body.get(size.sheet.frames))
    if not isinstance(frames, int):  # omitted, or refused when its turn comes
        frames = _number(model.parameters[size.sheet.frames].default, 1)
    of_frames = _FrameSize(size, size.sheet.layout_of(frames))
    return [(name, of_frames if name == "size" else s) for name, s in model.parameters.items()]


def _build(
    model: Model,
    prompt: str,
    *,
    values: Mapping[str, Value],
    given: Mapping[str, Value],
    body: Mapping[str, object],
) -> ImageRequest:
    off_default = {
        name: value
        for name, value in given.items()
        if name not in _NOT_IN_THE_IMAGE
        and value is not None
        and value != model.parameters[name].default
        and value != {}  # an object of which nothing is off its default
    }
    stream = values.get("stream") is True
    requested = body.get("response_format") if "response_format" in model.parameters else None
    return ImageRequest(
        model=model.id,
        prompt=prompt,
        n=_number(values.get("n"), 1),
        parameters=MappingProxyType(off_default),
        response_format=_text(values.get("response_format")) or "b64_json",
        requested_response_format=_text(requested),
        user=_text(values.get("user")),
        safety_identifier=_text(values.get("safety_identifier")),
        stream=stream,
        # Without a stream, partial images cannot be sent. See
        # `docs/reference/images-api.md#parameters-that-change-nothing`.
        partial_images=_number(values.get("partial_images"), 0) if stream else 0,
        defaults=model.image_defaults,
    )


def _number(value: Value, default: int) -> int:
    return value if isinstance(value, int) else default


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


# ── the model ───────────────────────────────────────────────────────────────────────────────


def _resolve_model(body: Mapping[str, object], catalog: Catalog) -> Model:
    name = body.get("model")
    if name is None:
        name = _default_model(body, catalog)
    if not isinstance(name, str):
        raise _invalid_type("model", "a string", value=name)
    model = catalog.fronts.get(name)
    if model is None and catalog.unknown_models == "passthrough":
        check_name(name)
        return catalog.unknown_model(name)
    if model is None:
        raise InvalidRequest(
            f"The model '{shorten_name(name)}' does not exist.",
            type=IMAGE_USER_ERROR,
            param="model",
            code=ErrorCode.INVALID_VALUE,
        )
    return model


def _default_model(body: Mapping[str, object], catalog: Catalog) -> str:
    """The model of a request without one: the GPT default if it has anything for GPT models only.

    The same in both modes, so that lenient mode never changes the image: `background: auto` needs
    a GPT model although lenient mode tolerates it elsewhere. `response_format` and `style`, which
    no GPT model has, never do. If no account has one of the two models, it is always the other.
    """
    served = catalog.served_defaults
    if not served:
        message = "Missing required parameter: 'model'."
        raise InvalidRequest(message, param="model", code=ErrorCode.MISSING_REQUIRED_PARAMETER)
    if len(served) == 1:
        return served[0]
    given = ((name, value) for name, value in body.items() if value is not None)
    plain, gpt = (catalog.fronts[name].parameters for name in served)
    for name, value in given:
        if (spec := gpt.get(name)) is None:
            continue
        if (known := plain.get(name)) is None:
            needs_gpt = not _is_harmless(name, value, catalog=catalog)
        else:
            needs_gpt = _has_value(spec, value) and not _has_value(known, value)
        if needs_gpt:
            return catalog.default_gpt_model
    return catalog.default_model


def _has_value(spec: ParameterSpec, value: object) -> bool:
    return isinstance(spec, ChoiceSpec | SizeSpec) and value in spec.values


# ── lenient mode ────────────────────────────────────────────────────────────────────────────


def _validate_leniently(
    body: Mapping[str, object], model: Model, *, catalog: Catalog
) -> ImageRequest:
    """Sets tolerated parameters aside, validates the rest, and adds those with an effect."""
    tolerated = _tolerated(body, model, catalog=catalog)
    rest = {name: value for name, value in body.items() if name not in tolerated}
    with_effect: dict[str, Any] = {
        name: body[name]
        for name, treatment in tolerated.items()
        if treatment in (_FORWARDED, _SERVED)
    }
    return replace(_validate_strictly(rest, model, catalog=catalog), **with_effect)


def _with_hint(
    refusal: InvalidRequest, body: Mapping[str, object], model: Model, *, catalog: Catalog
) -> InvalidRequest:
    """A refusal with its hint, if lenient mode would not make it. Many clients show no headers."""
    try:  # an alias's values also have to be those of the model that serves it
        _serve_alias(_validate_leniently(body, model, catalog=catalog), catalog)
    except InvalidRequest:
        return refusal
    tolerated = _tolerated(body, model, catalog=catalog)
    shown = ", ".join(f"'{name}' {treatment}" for name, treatment in tolerated.items())
    hinted = refusal.with_sentence(_HINT.format(shown))
    hint = f"lenient validation would accept this: {shown} ({_SETTING})"
    hinted.headers["x-gateway-hint"] = hint
    return hinted


def _tolerated(body: Mapping[str, object], model: Model, *, catalog: Catalog) -> Mapping[str, str]:
    """The parameters that strict mode refuses and lenient mode does not, with their treatment."""
    # A name that no model knows is never tolerated, and a body may have hundreds of those.
    known = {name for any_model in catalog.models.values() for name in any_model.parameters}
    treatments = {
        name: _treatment(name, value, model, catalog=catalog)
        for name, value in body.items()
        if name in known
    }
    return {name: treatment for name, treatment in treatments.items() if treatment is not None}


def _treatment(name: str, value: object, model: Model, *, catalog: Catalog) -> str | None:
    """How lenient mode treats a parameter; None if strict mode takes it or lenient refuses it."""
    if value is None or _is_harmless(name, value, catalog=catalog):
        return None
    if (own := model.parameters.get(name)) is not None:
        if isinstance(own, ChoiceSpec) and isinstance(value, str) and value in own.lenient:
            return f"is read as '{own.default}'"
        is_any_json = name in IDENTITIES and not isinstance(value, str) and _can_be_written(value)
        return _FORWARDED if is_any_json else None
    specs = [m.parameters[name] for m in catalog.models.values() if name in m.parameters]
    if name == "response_format":  # the gateway can make base64 and links of any image
        return _SERVED if any(_has_value(spec, value) for spec in specs) else None
    return _DROPPED if any(_is_default(spec, name, value) for spec in specs) else None


def _can_be_written(value: object) -> bool:
    # A number like 1e999 was read as infinite, which JSON cannot express.
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _is_default(spec: ParameterSpec, name: str, value: object) -> bool:
    try:
        return spec.default is not None and _check(spec, name, value) == spec.default
    except InvalidRequest:
        return False


# ── names and prompt ────────────────────────────────────────────────────────────────────────


def _check_names(body: Mapping[str, object], model: Model, *, catalog: Catalog) -> None:
    """Refuses the first parameter that the model does not have, unless it has no effect."""
    for name, value in body.items():
        if name in ("model", "prompt") or name in model.parameters:
            continue
        is_omitted = value is None and catalog.knows_parameter(name)
        if not is_omitted and not _is_harmless(name, value, catalog=catalog):
            shown = shorten(name)
            message = f"Unknown parameter: '{shown}'."
            raise InvalidRequest(message, param=shown, code=ErrorCode.UNKNOWN_PARAMETER)


def _is_harmless(name: str, value: object, *, catalog: Catalog) -> bool:
    """Whether the value has no effect, even for models without the parameter."""
    if name not in catalog.harmless:
        return False
    harmless = catalog.harmless[name]
    # In Python False == 0. In JSON they differ.
    return value == harmless and isinstance(value, bool) == isinstance(harmless, bool)


def _check_prompt(body: Mapping[str, object], model: Model) -> str:
    if "prompt" not in body:
        message = "Missing required parameter: 'prompt'."
        raise InvalidRequest(message, param="prompt", code=ErrorCode.MISSING_REQUIRED_PARAMETER)
    prompt = body["prompt"]
    if not isinstance(prompt, str):
        raise _invalid_type("prompt", "a string", value=prompt)
    if not prompt:
        message = (
            "Invalid 'prompt': empty string. Expected a string with minimum length 1, "
            "but got an empty string instead."
        )
        raise InvalidRequest(message, param="prompt", code=ErrorCode.EMPTY_STRING)
    if len(prompt) > model.prompt_max_characters:
        raise _too_long("prompt", prompt, max_length=model.prompt_max_characters)
    return prompt


# ── parameters: one check per row type, the type before the value ───────────────────────────


@singledispatch
def _check(spec: ParameterSpec | _FrameSize, name: str, value: object) -> Value:
    """The value as the row reads it. Raises `InvalidRequest`."""
    raise TypeError(f"no check for rows like {type(spec).__name__}")


@_check.register
def _(spec: ChoiceSpec, name: str, value: object) -> Value:
    if not isinstance(value, str):
        raise _invalid_type(name, f"one of {_quoted_list(spec.values, 'or')}", value=value)
    if value not in spec.values:
        supported = _quoted_list(spec.values, "and")
        message = f"Invalid value: '{shorten(value)}'. Supported values are: {supported}."
        raise InvalidRequest(message, param=name, code=ErrorCode.INVALID_VALUE)
    return spec.means.get(value, value)


@_check.register
def _(spec: SizeSpec, name: str, value: object) -> Value:
    if not isinstance(value, str):
        raise _invalid_type(name, "a string", value=value)
    if value in spec.values:
        return value
    if (fault := spec.fault_of(value)) is not None:
        raise _invalid_size(name, value, fault=fault)
    return value


@_check.register
def _(spec: _FrameSize, name: str, value: object) -> Value:
    if not isinstance(value, str):
        raise _invalid_type(name, "a string", value=value)
    # Listed sizes are those of a whole image.
    if value in spec.size.values and SIZE.fullmatch(value) is None:
        return value
    if (fault := _frame_fault(spec, value)) is not None:
        raise _invalid_size(name, value, fault=fault)
    return value


@_check.register
def _(spec: IntegerSpec, name: str, value: object) -> Value:
    value = _without_fraction(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _invalid_type(name, "an integer", value=value)
    if value < spec.min:
        fault = f"integer below minimum value. Expected a value >= {spec.min}"
        raise _out_of_range(name, fault, number=value, code=ErrorCode.INTEGER_BELOW_MIN_VALUE)
    if value > spec.max:
        fault = f"integer above maximum value. Expected a value <= {spec.max}"
        raise _out_of_range(name, fault, number=value, code=ErrorCode.INTEGER_ABOVE_MAX_VALUE)
    if spec.only is not None and value != spec.only.value:
        raise InvalidRequest(spec.only.message)
    return value


def _without_fraction(value: object) -> object:
    """2 for 2.0, which is an integer. true and "2" are none."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


@_check.register
def _(spec: BooleanSpec, name: str, value: object) -> Value:
    if not isinstance(value, bool):
        raise _invalid_type(name, "a boolean", value=value)
    return value


@_check.register
def _(spec: DecimalSpec, name: str, value: object) -> Value:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid_type(name, "a number", value=value)
    # 1e999 was read as infinite, which is above any maximum.
    if value < spec.min:
        fault = f"decimal below minimum value. Expected a value >= {spec.min}"
        raise _out_of_range(name, fault, number=value, code=ErrorCode.DECIMAL_BELOW_MIN_VALUE)
    if value > spec.max:
        fault = f"decimal above maximum value. Expected a value <= {spec.max}"
        raise _out_of_range(name, fault, number=value, code=ErrorCode.DECIMAL_ABOVE_MAX_VALUE)
    number = canonical_number(value)
    if not spec.has_step(number):
        fault = f"Expected a multiple of {spec.step}"
    elif not spec.has_decimals(number):
        fault = f"Expected at most {spec.decimals} digits behind the decimal point"
    else:
        return number
    message = f"Invalid '{name}': {fault}, but got {shorten(str(number))} instead."
    raise InvalidRequest(message, param=name, code=ErrorCode.INVALID_VALUE)


@_check.register
def _(spec: TextSpec, name: str, value: object) -> Value:
    if not isinstance(value, str):
        raise _invalid_type(name, "a string", value=value)
    if spec.max_length is not None and len(value) > spec.max_length:
        raise _too_long(name, value, max_length=spec.max_length)
    return value


@_check.register
def _(spec: ObjectSpec, name: str, value: object) -> Value:
    """The fields off their defaults, in the order of the row."""
    if not isinstance(value, Mapping):
        raise _invalid_type(name, "an object", value=value)
    for key in value:
        if key not in spec.fields:
            path = f"{name}.{shorten(key)}"
            message = f"Unknown parameter: '{path}'."
            raise InvalidRequest(message, param=path, code=ErrorCode.UNKNOWN_PARAMETER)
    checked: dict[str, Value] = {}
    for key, field in spec.fields.items():
        path = f"{name}.{key}"
        if (inner := value.get(key)) is None:  # null means omitted here too
            if key in spec.required:
                message = f"Missing required parameter: '{path}'."
                code = ErrorCode.MISSING_REQUIRED_PARAMETER
                raise InvalidRequest(message, param=path, code=code)
            continue
        read = _check(field, path, inner)
        if read != field.default and read != {}:
            checked[key] = read
    return checked


def _frame_fault(spec: _FrameSize, size: str) -> str | None:
    """The fault of a frame's size: the sheet of all frames, upright or on its side, must fit."""
    matched = SIZE.fullmatch(size)
    if matched is None:
        return f"Expected WIDTHxHEIGHT, for example '{spec.size.example}'."
    width, height = map(int, matched.groups())
    if width % spec.size.divisor or height % spec.size.divisor:
        return f"Width and height must both be divisible by {spec.size.divisor}."
    columns, rows = spec.layout.columns, spec.layout.rows
    sheets = [(width * columns, height * rows), (width * rows, height * columns)]
    faults = [spec.size.bounds_fault(*sheet) for sheet in sheets]
    if None in faults:
        return None
    return f"Its frames make a sheet of {sheets[0][0]}x{sheets[0][1]} pixels. {faults[0]}"


# ── the wording of errors ───────────────────────────────────────────────────────────────────


def _invalid_type(name: str, expected: str, *, value: object) -> InvalidRequest:
    kind = describe_kind(value)
    message = f"Invalid type for '{name}': expected {expected}, but got {kind} instead."
    return InvalidRequest(message, param=name, code=ErrorCode.INVALID_TYPE)


def _out_of_range(name: str, fault: str, *, number: float, code: ErrorCode) -> InvalidRequest:
    message = f"Invalid '{name}': {fault}, but got {shorten(str(number))} instead."
    return InvalidRequest(message, param=name, code=code)


def _invalid_size(name: str, size: str, *, fault: str) -> InvalidRequest:
    message = f"Invalid size '{shorten(size)}'. {fault}"
    return InvalidRequest(message, type=IMAGE_USER_ERROR, param=name, code=ErrorCode.INVALID_VALUE)


def _too_long(name: str, text: str, *, max_length: int) -> InvalidRequest:
    message = (
        f"Invalid '{name}': string too long. Expected a string with maximum length "
        f"{max_length}, but got a string with length {len(text)} instead."
    )
    return InvalidRequest(message, param=name, code=ErrorCode.STRING_ABOVE_MAX_LENGTH)


def _quoted_list(values: Collection[str], conjunction: str) -> str:
    """The values quoted, as an English list: `'a'`, `'a' and 'b'`, `'a', 'b', and 'c'`."""
    *others, last = [f"'{value}'" for value in values]
    if not others:
        return last
    comma = "," if len(others) > 1 else ""
    return f"{', '.join(others)}{comma} {conjunction} {last}"

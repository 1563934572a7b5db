"""What a body may hold: the checks of the simulated upstream, the first error only.

The facts of a model come from its row of the catalog. The checks are independent of the gateway's
own validation, so that a body which the gateway should not have sent is refused here. They are
stricter than the real API in one point: `null` is refused everywhere, because a gateway has no
reason to send one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import orjson

from gateway.catalog import (
    BooleanSpec,
    Catalog,
    ChoiceSpec,
    DecimalSpec,
    IntegerSpec,
    Model,
    ObjectSpec,
    ParameterSpec,
    RuleCondition,
    SizeSpec,
)
from gateway.simulator.refusals import (
    IMAGE_USER_ERROR,
    bad_value,
    missing,
    not_json,
    refuse,
    unknown_model,
    wrong_content_type,
    wrong_type,
)

_ANY_JSON: Final = ("user", "safety_identifier")

_DIMENSIONS: Final = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")


def parse_body(raw: bytes, content_type: str | None) -> Any:
    """The JSON value of a body; `content_type` is the whole header, None when it is absent."""
    bare = (content_type or "application/json").split(";")[0].strip().lower()
    if bare != "application/json":
        raise wrong_content_type(bare, content_type or "")
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise not_json() from None


def check_body(body: Any, catalog: Catalog) -> Model:
    """The model that a correct body names. Raises `Refusal`.

    The order is that of the real API: model, unknown keys, prompt, then the parameters in the
    order of the model's row, and its rules last.
    """
    if not isinstance(body, dict):
        raise not_json()
    model = _check_model(body, catalog)
    for name in body:
        if name not in ("model", "prompt") and name not in model.parameters:
            message = f"Unknown parameter: '{name}'."
            raise refuse(message, param=name, code="unknown_parameter")
    _check_prompt(body, model)
    for name, spec in model.parameters.items():
        if name in body and not (name == "size" and _has_sheet(body, model)):
            _check_value(name, body[name], spec)
    _check_sheet(body, model)
    _check_rules(body, model)
    return model


def _check_model(body: Mapping[str, Any], catalog: Catalog) -> Model:
    if "model" not in body:
        raise missing("model")
    name = body["model"]
    if not isinstance(name, str):
        raise wrong_type("model", "a string", name)
    if name not in catalog.models:
        raise unknown_model(name)
    return catalog.models[name]


def _check_prompt(body: Mapping[str, Any], model: Model) -> None:
    if "prompt" not in body:
        raise missing("prompt")
    prompt = body["prompt"]
    if not isinstance(prompt, str):
        raise wrong_type("prompt", "a string", prompt)
    if not prompt:
        message = (
            "Invalid 'prompt': empty string. "
            "Expected a string with minimum length 1, but got an empty string instead."
        )
        raise refuse(message, param="prompt", code="empty_string")
    if len(prompt) > model.prompt_max_characters:
        message = (
            "Invalid 'prompt': string too long. Expected a string with maximum length "
            f"{model.prompt_max_characters}, but got a string with length {len(prompt)} instead."
        )
        raise refuse(message, param="prompt", code="string_above_max_length")


# ── parameters ──────────────────────────────────────────────────────────────────────────────


def _check_value(name: str, value: Any, spec: ParameterSpec) -> None:
    if isinstance(spec, ChoiceSpec):
        _check_choice(name, value, spec)
    elif isinstance(spec, SizeSpec):
        _check_free_size(name, value, spec)
    elif isinstance(spec, IntegerSpec):
        _check_integer(name, value, spec)
    elif isinstance(spec, BooleanSpec):
        if not isinstance(value, bool):
            raise wrong_type(name, "a boolean", value)
    elif isinstance(spec, DecimalSpec):
        _check_decimal(name, value, spec)
    elif isinstance(spec, ObjectSpec):
        _check_object(name, value, spec)
    # The real API accepts any JSON but null as `user`.
    elif value is None if name in _ANY_JSON else not isinstance(value, str):
        raise wrong_type(name, "a string", value)
    elif spec.max_length and len(value) > spec.max_length:
        message = (
            f"Invalid '{name}': string too long. Expected a string with maximum length "
            f"{spec.max_length}, but got a string with length {len(value)} instead."
        )
        raise refuse(message, param=name, code="string_above_max_length")


def _check_decimal(name: str, value: Any, spec: DecimalSpec) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(name, "a number", value)
    number = Decimal(str(value))
    for bound, is_beyond, word, sign in (
        (spec.min, number < Decimal(str(spec.min)), "below minimum", ">="),
        (spec.max, number > Decimal(str(spec.max)), "above maximum", "<="),
    ):
        if is_beyond:
            message = f"Invalid '{name}': decimal {word} value. Expected a value {sign} {bound}"
            code = f"decimal_{word[:5]}_{word[6:9]}_value"
            raise refuse(f"{message}, but got {value} instead.", param=name, code=code)
    is_step = spec.step is None or not number % Decimal(str(spec.step))
    digits = -int(number.normalize().as_tuple().exponent)
    if not is_step or (spec.decimals is not None and digits > spec.decimals):
        raise bad_value(name, f"Invalid '{name}': {value} is between two steps.")


def _check_object(name: str, value: Any, spec: ObjectSpec) -> None:
    if not isinstance(value, dict):
        raise wrong_type(name, "an object", value)
    for key in value:
        if key not in spec.fields:
            path = f"{name}.{key}"
            raise refuse(f"Unknown parameter: '{path}'.", param=path, code="unknown_parameter")
    for key, field in spec.fields.items():
        if key in value:
            _check_value(f"{name}.{key}", value[key], field)
        elif key in spec.required:
            raise missing(f"{name}.{key}")


def _check_choice(name: str, value: Any, spec: ChoiceSpec) -> None:
    values = _accepted_values(name, spec)
    if not isinstance(value, str):
        raise wrong_type(name, f"one of {_join_values(values, 'or')}", value)
    if value not in values:
        supported = _join_values(values, "and")
        raise bad_value(name, f"Invalid value: '{value}'. Supported values are: {supported}.")


def _accepted_values(name: str, spec: ChoiceSpec) -> tuple[str, ...]:
    """The values that the real API accepts, in the order in which its messages list them."""
    if name == "size":
        # A spelling of another size, such as `auto` of a model without it, is the gateway's own.
        return spec.distinct_values
    if name == "moderation":
        # The only message that lists `auto` first.
        return tuple(sorted(spec.values, key=lambda value: value != "auto"))
    return spec.values


def _join_values(values: tuple[str, ...], joint: str) -> str:
    """`'a', 'b', and 'c'`, but `'a' and 'b'`."""
    quoted = [f"'{value}'" for value in values]
    if len(quoted) < 3:
        return f" {joint} ".join(quoted)
    return f"{', '.join(quoted[:-1])}, {joint} {quoted[-1]}"


def _check_integer(name: str, value: Any, spec: IntegerSpec) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type(name, "an integer", value)
    if value < spec.min:
        message = f"Invalid '{name}': integer below minimum value. Expected a value >= {spec.min}"
        code = "integer_below_min_value"
        raise refuse(f"{message}, but got {value} instead.", param=name, code=code)
    if value > spec.max:
        message = f"Invalid '{name}': integer above maximum value. Expected a value <= {spec.max}"
        code = "integer_above_max_value"
        raise refuse(f"{message}, but got {value} instead.", param=name, code=code)
    if spec.only is not None and value != spec.only.value:
        raise refuse(spec.only.message)


def _check_free_size(name: str, value: Any, spec: SizeSpec) -> None:
    if not isinstance(value, str):
        raise wrong_type(name, "a string", value)
    if value in spec.values:
        return
    fault = size_fault(value, spec)
    if fault is not None:
        raise bad_value(name, f"Invalid size '{value}'. {fault}", type=IMAGE_USER_ERROR)


def size_fault(size: str, spec: SizeSpec) -> str | None:
    """What is wrong with a size, in the words of the real API; None for a good one."""
    found = _DIMENSIONS.fullmatch(size)
    if found is None:
        return f"Expected WIDTHxHEIGHT, for example '{spec.example}'."
    shorter, longer = sorted((int(found[1]), int(found[2])))
    if shorter % spec.divisor or longer % spec.divisor:
        return f"Width and height must both be divisible by {spec.divisor}."
    if longer > spec.max_edge:
        return f"The longest edge must be less than or equal to {spec.max_edge}."
    if longer > spec.max_ratio * shorter:
        return f"The aspect ratio must be between 1:{spec.max_ratio} and {spec.max_ratio}:1."
    if shorter * longer < spec.min_pixels:
        return "Requested resolution is below the current minimum pixel budget."
    if shorter * longer > spec.max_pixels:
        return "Requested resolution exceeds the current pixel budget."
    return None


def _has_sheet(body: Mapping[str, Any], model: Model) -> bool:
    """Whether the size is that of a frame, of which all are made as one sheet."""
    spec = model.parameters.get("size")
    is_known = isinstance(spec, SizeSpec) and spec.sheet is not None
    return is_known and body.get("output_format") in spec.sheet.formats  # type: ignore[union-attr]


def _check_sheet(body: Mapping[str, Any], model: Model) -> None:
    """Refuses frames whose sheet fits neither upright nor on its side."""
    spec = model.parameters.get("size")
    size = body.get("size", "auto")
    if not isinstance(spec, SizeSpec) or not _has_sheet(body, model) or size == "auto":
        return
    found = _DIMENSIONS.fullmatch(size) if isinstance(size, str) else None
    if found is None:
        raise bad_value("size", f"Invalid size '{size}'.", type=IMAGE_USER_ERROR)
    width, height = int(found[1]), int(found[2])
    columns, rows = sheet_cells(body, model)
    sheets = (f"{width * columns}x{height * rows}", f"{width * rows}x{height * columns}")
    is_even = width % spec.divisor == height % spec.divisor == 0
    if not is_even or all(size_fault(sheet, spec) is not None for sheet in sheets):
        message = f"Invalid size '{size}'. The frames do not fit into one sheet."
        raise bad_value("size", message, type=IMAGE_USER_ERROR)


def sheet_cells(body: Mapping[str, Any], model: Model) -> tuple[int, int]:
    """Columns and rows of the sheet of a checked body; 1 and 1 for a format without frames."""
    spec = model.parameters.get("size")
    if not isinstance(spec, SizeSpec) or spec.sheet is None or not _has_sheet(body, model):
        return 1, 1
    default = model.parameters[spec.sheet.frames].default
    frames = body.get(spec.sheet.frames, default)
    layouts = [layout for layout in spec.sheet.layouts if layout.frames >= frames]
    return layouts[0].columns, layouts[0].rows


# ── rules across parameters ─────────────────────────────────────────────────────────────────


def _check_rules(body: Mapping[str, Any], model: Model) -> None:
    defaults = {name: spec.default for name, spec in model.parameters.items()}
    values = {**defaults, **body}
    for rule in model.rules:
        if all(_holds(condition, values[name]) for name, condition in rule.when.items()):
            error = rule.error
            raise refuse(error.message, type=error.type, param=error.param, code=error.code)


def _holds(condition: RuleCondition, value: Any) -> bool:
    if condition.given is not None:
        return (value is not None) is condition.given
    if condition.equals is not None:
        return bool(value == condition.equals)
    if condition.not_equals is not None:
        return bool(value != condition.not_equals)
    if not isinstance(value, int | float):
        return False
    is_above = condition.above is not None and value > condition.above
    return is_above or (condition.below is not None and value < condition.below)

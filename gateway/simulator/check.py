"""Checks the body that arrived, as the service does: first error only (WIRE §1, §2).

Stricter than the real service in one point: `null` is refused everywhere, because a gateway in
front has no reason to send one. Independent of the gateway's own validation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from gateway.simulator.refusals import (
    IMAGE_USER_ERROR,
    Refusal,
    bad_value,
    missing,
    not_json,
    refuse,
    wrong_content_type,
    wrong_type,
)
from gateway.simulator.table import MODELS, Choice, Flag, FreeSize, Model, Rule, Whole

_DEFAULT_EDGE: Final = "1024x1024"
"""What an omitted or `auto` size becomes, for every model."""
_DIMENSIONS: Final = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True)
class Order:
    """A body that passed, everything omitted or `auto` resolved."""

    model: Model
    prompt: str
    n: int
    size: tuple[int, int]
    quality: str
    background: str
    output_format: str
    compression: int
    response_format: str
    stream: bool
    partial_images: int


def parse_body(raw: bytes, content_type: str | None) -> Any:
    """The JSON value of a body; `content_type` is the whole header, None when it is absent."""
    bare = (content_type or "application/json").split(";")[0].strip().lower()
    if bare != "application/json":
        raise wrong_content_type(bare, content_type or "")
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise not_json() from None


def check_body(body: Any) -> Order:
    """The order in a body. Raises `Refusal` in the order of checks of WIRE §1.4."""
    if not isinstance(body, dict):
        raise not_json()
    model = _check_model(body)
    _check_names(body, model)
    _check_prompt(body, model)
    _check_n(body, model)
    for name, rule in model.parameters.items():
        if name in body:
            _check_value(name, body[name], rule)
    _check_together(body)
    return _resolve(body, model)


def _check_model(body: Mapping[str, Any]) -> Model:
    if "model" not in body:
        raise missing("model")
    name = body["model"]
    if not isinstance(name, str):
        raise wrong_type("model", "a string", name)
    if name not in MODELS:
        message = f"The model '{name}' does not exist."
        raise bad_value("model", message, type=IMAGE_USER_ERROR)
    return MODELS[name]


def _check_names(body: Mapping[str, Any], model: Model) -> None:
    for name in body:
        if name not in ("model", "prompt", "n") and name not in model.parameters:
            message = f"Unknown parameter: '{name}'."
            raise refuse(message, param=name, code="unknown_parameter")


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
    if len(prompt) > model.prompt_max:
        message = (
            "Invalid 'prompt': string too long. Expected a string with maximum length "
            f"{model.prompt_max}, but got a string with length {len(prompt)} instead."
        )
        raise refuse(message, param="prompt", code="string_above_max_length")


def _check_n(body: Mapping[str, Any], model: Model) -> None:
    n = body.get("n", 1)
    _check_whole("n", n, Whole(1, model.n_max))
    if model.one_picture_only and n != 1:
        raise refuse("You must provide n=1 for this model.")


def _check_value(name: str, value: Any, rule: Rule) -> None:
    if isinstance(rule, Choice):
        _check_choice(name, value, rule)
    elif isinstance(rule, Whole):
        _check_whole(name, value, rule)
    elif isinstance(rule, FreeSize):
        _check_free_size(name, value, rule)
    elif isinstance(rule, Flag) and not isinstance(value, bool):
        raise wrong_type(name, "a boolean", value)
    elif value is None:
        raise wrong_type(name, "a string", value)


def _check_choice(name: str, value: Any, rule: Choice) -> None:
    if not isinstance(value, str):
        raise wrong_type(name, f"one of {_listed(rule.values, 'or')}", value)
    if value not in rule.values:
        listed = _listed(rule.values, "and")
        raise bad_value(name, f"Invalid value: '{value}'. Supported values are: {listed}.")


def _listed(values: tuple[str, ...], joint: str) -> str:
    """`'a', 'b', and 'c'`, but `'a' and 'b'`."""
    quoted = [f"'{value}'" for value in values]
    if len(quoted) < 3:
        return f" {joint} ".join(quoted)
    return f"{', '.join(quoted[:-1])}, {joint} {quoted[-1]}"


def _check_whole(name: str, value: Any, rule: Whole) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type(name, "an integer", value)
    if value < rule.low:
        raise _out_of_bounds(name, f"below minimum value. Expected a value >= {rule.low}", value)
    if value > rule.high:
        raise _out_of_bounds(name, f"above maximum value. Expected a value <= {rule.high}", value)


def _out_of_bounds(name: str, what: str, value: int) -> Refusal:
    code = "integer_below_min_value" if what.startswith("below") else "integer_above_max_value"
    message = f"Invalid '{name}': integer {what}, but got {value} instead."
    return refuse(message, param=name, code=code)


def _check_free_size(name: str, value: Any, rule: FreeSize) -> None:
    if not isinstance(value, str):
        raise wrong_type(name, "a string", value)
    if value == "auto":
        return
    complaint = _complaint(value, rule)
    if complaint:
        raise bad_value(name, f"Invalid size '{value}'. {complaint}", type=IMAGE_USER_ERROR)


def _complaint(size: str, rule: FreeSize) -> str | None:
    """What is wrong with a size, in the words of WIRE §2 row 12."""
    found = _DIMENSIONS.fullmatch(size)
    if found is None:
        return "Expected WIDTHxHEIGHT, for example '1824x1024'."
    width, height = int(found[1]), int(found[2])
    if width % rule.multiple or height % rule.multiple:
        return f"Width and height must both be divisible by {rule.multiple}."
    if max(width, height) > rule.longest_edge:
        return f"The longest edge must be less than or equal to {rule.longest_edge}."
    if max(width, height) > rule.widest_ratio * min(width, height):
        ratio = rule.widest_ratio
        return f"The aspect ratio must be between 1:{ratio} and {ratio}:1."
    if width * height < rule.fewest_pixels:
        return "Requested resolution is below the current minimum pixel budget."
    if width * height > rule.most_pixels:
        return "Requested resolution exceeds the current pixel budget."
    return None


def _check_together(body: Mapping[str, Any]) -> None:
    """The rules across parameters (WIRE §1.3, §2 rows 18 to 20)."""
    output_format = body.get("output_format", "png")
    if body.get("background") == "transparent" and output_format == "jpeg":
        message = "Transparent background is not supported for JPEG output format"
        raise bad_value("background", message, type=IMAGE_USER_ERROR)
    if body.get("output_compression", 100) < 100 and output_format == "png":
        message = "Compression less than 100 is not supported for PNG output format"
        raise refuse(message, type=IMAGE_USER_ERROR, code="invalid_png_output_compression")
    if body.get("stream") and body.get("n", 1) > 1:
        message = "Streaming is only supported with n=1."
        raise refuse(message, type=IMAGE_USER_ERROR, param="input", code="unsupported_parameter")


def _resolve(body: Mapping[str, Any], model: Model) -> Order:
    def resolved(name: str, default: str) -> str:
        value = body.get(name, "auto")
        return default if value == "auto" else str(value)

    width, height = resolved("size", _DEFAULT_EDGE).split("x")
    return Order(
        model=model,
        prompt=body["prompt"],
        n=body.get("n", 1),
        size=(int(width), int(height)),
        quality=resolved("quality", model.best_quality),
        background=resolved("background", "opaque"),
        output_format=resolved("output_format", "png"),
        compression=body.get("output_compression", 100),
        response_format=resolved("response_format", "url" if model.gives_links else "b64_json"),
        stream=body.get("stream", False),
        partial_images=body.get("partial_images", 0),
    )

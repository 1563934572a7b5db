"""JSON Schemas of request bodies: image requests by the model table, keys by their fields.

Those of image requests describe strict validation. What a schema cannot say, such as the rule for
free sizes, only the validation of the request decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, get_args

from gateway.access.key_records import KeyRecord, KeySpec
from gateway.access.labels import MAX_LABEL_CHARACTERS, MAX_LABELS
from gateway.access.labels import NAME as LABEL_NAME
from gateway.access.limit_values import MAX_WARN_AT, MAX_WARNINGS, Mode
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
    Rule,
    RuleCondition,
    SizeSpec,
    TextSpec,
)
from gateway.limits import LIMITS, Limit
from gateway.request.unchecked import MAX_N, MAX_NAME, MAX_PARTIAL_IMAGES

Schema = dict[str, Any]

NULL: Final[Schema] = {"type": "null"}


def reference(name: str) -> Schema:
    """A reference to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


# ── image requests ──────────────────────────────────────────────────────────────────────────


def generation_schemas(catalog: Catalog) -> dict[str, Schema]:
    """`GenerationRequest`, `DeploymentRequest`, and one schema for each model of the table."""
    names = {model_id: _schema_name(model_id) for model_id in catalog.fronts}
    request = {
        "description": "A request for images. Each model has its own parameters; null means that a "
        f"parameter is omitted. {_described_defaults(catalog)} Lenient validation accepts more.",
        "type": "object",
        "anyOf": [
            *(
                {**reference(name), "required": ["model"], "properties": {"model": {"const": id_}}}
                for id_, name in names.items()
            ),
            *([_without_model(catalog)] if catalog.served_defaults else []),
            *([_without_row(catalog)] if catalog.may_have_others else []),
        ],
    }
    deployment = {
        "description": "A request for images of the deployment's model, whatever `model` says.",
        "type": "object",
        "anyOf": [
            *map(reference, names.values()),
            *([_UNCHECKED] if catalog.may_have_others else []),
        ],
    }
    models = {names[model.id]: _model_schema(model, catalog) for model in catalog.fronts.values()}
    return {"GenerationRequest": request, "DeploymentRequest": deployment, **models}


_UNCHECKED: Final[Schema] = {
    "description": "A request that is forwarded unchecked, for a model without a row.",
    "type": "object",
    "properties": {
        "n": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_N},
        "stream": {"type": ["boolean", "null"]},
        "partial_images": {
            "type": ["integer", "null"],
            "minimum": 0,
            "maximum": MAX_PARTIAL_IMAGES,
        },
    },
}


def _without_row(catalog: Catalog) -> Schema:
    """A request for a model that the table does not have."""
    name = {"type": "string", "minLength": 1, "maxLength": MAX_NAME, **_not_in([*catalog.models])}
    return {
        **_UNCHECKED,
        "required": ["model"],
        "properties": {"model": name, **_UNCHECKED["properties"]},
    }


def _described_defaults(catalog: Catalog) -> str:
    served = catalog.served_defaults
    if not served:
        return "It needs a `model`."
    if len(served) == 1:
        return f"Without `model` it is for `{served[0]}`."
    return (
        f"Without `model` it is for `{served[0]}`, or for `{served[1]}` if it has something that "
        "only GPT models know."
    )


def _without_model(catalog: Catalog) -> Schema:
    """A request for one of the default models, chosen as `request.validation` does."""
    served = catalog.served_defaults
    plain, gpt = catalog.fronts[served[0]], catalog.fronts[served[-1]]
    signs: list[Schema] = []
    for name, spec in gpt.parameters.items():
        known = plain.parameters.get(name)
        if known is None:
            harmless = [catalog.harmless[name]] if name in catalog.harmless else []
            signs.append({"required": [name], "properties": {name: _not_in([*harmless, None])}})
        elif values := [value for value in _choices(spec) if value not in _choices(known)]:
            signs.append({"required": [name], "properties": {name: {"enum": values}}})
    return {
        **_is_null("model"),
        "if": {"anyOf": signs} if signs else False,
        "then": reference(_schema_name(gpt.id)),
        "else": reference(_schema_name(plain.id)),
    }


def _is_null(name: str) -> Schema:
    return {"properties": {name: NULL}}


def _not_in(values: list[Any]) -> Schema:
    return {"not": {"enum": values}}


def _choices(spec: ParameterSpec) -> tuple[str, ...]:
    return spec.values if isinstance(spec, ChoiceSpec | SizeSpec) else ()


def _schema_name(model_id: str) -> str:
    # A component's name may have these characters only.
    return "Generation-" + re.sub(
        r"[^\w.-]", lambda c: f"_{ord(c[0]):x}_", model_id, flags=re.ASCII
    )


def _model_schema(model: Model, catalog: Catalog) -> Schema:
    properties: dict[str, Schema] = {
        "model": {},  # which one it names is up to the schema that refers to this one
        "prompt": {"type": "string", "minLength": 1, "maxLength": model.prompt_max_characters},
        **{name: _parameter(spec) for name, spec in model.parameters.items()},
    }
    for other in catalog.models.values():
        for name in other.parameters:
            # A parameter of other models may be omitted by null, or have a value without effect.
            harmless = [catalog.harmless[name]] if name in catalog.harmless else []
            properties.setdefault(name, {"enum": [*harmless, None]})
    schema: Schema = {
        "type": "object",
        "required": ["prompt"],
        "properties": properties,
        "additionalProperties": False,
    }
    if model.rules:
        schema["allOf"] = [_rule(rule, model) for rule in model.rules]
    return schema


def _parameter(spec: ParameterSpec) -> Schema:
    """The values of a parameter. Null is among them, and means that it is omitted."""
    default: Schema = {} if spec.default is None else {"default": spec.default}
    match spec:
        case ChoiceSpec():
            return {"enum": [*spec.values, None], **default}
        case SizeSpec():
            return {"anyOf": [{"enum": [*spec.values, None]}, _free_size(spec)], **default}
        case IntegerSpec(only=only) if only is not None:
            return {"enum": [only.value, None], **default}
        case IntegerSpec():
            bounds = {"minimum": spec.min, "maximum": spec.max}
            return {"type": ["integer", "null"], **bounds, **default}
        case BooleanSpec():
            return {"type": ["boolean", "null"], **default}
        case DecimalSpec():
            return {**_decimal(spec), **default}
        case TextSpec():
            longest = {} if spec.max_length is None else {"maxLength": spec.max_length}
            return {"type": ["string", "null"], **longest}
        case ObjectSpec():
            return _object(spec)


def _free_size(spec: SizeSpec) -> Schema:
    rule = (
        f"WIDTHxHEIGHT: both divisible by {spec.divisor}, at most {spec.max_edge}, "
        f"{spec.min_pixels} to {spec.max_pixels} pixels, at most {spec.max_ratio} to 1"
    )
    if spec.sheet is not None:
        rule += f"; of {' and '.join(spec.sheet.formats)} the sheet of all frames"
    return {"type": "string", "pattern": f"^{SIZE.pattern}$", "description": rule}


def _decimal(spec: DecimalSpec) -> Schema:
    schema: Schema = {"type": ["number", "null"], "minimum": spec.min, "maximum": spec.max}
    if spec.step is not None:
        schema["multipleOf"] = spec.step
    if spec.decimals is not None:
        schema["description"] = f"At most {spec.decimals} digits behind the decimal point."
    return schema


def _object(spec: ObjectSpec) -> Schema:
    fields = {name: _parameter(field) for name, field in spec.fields.items()}
    for name in spec.required:
        fields[name] = {"allOf": [fields[name], {"not": NULL}]}
    return {
        "type": ["object", "null"],
        "properties": fields,
        "required": list(spec.required),
        "additionalProperties": False,
    }


def _rule(rule: Rule, model: Model) -> Schema:
    """A combination that is refused. An omitted parameter has its default."""
    conditions = []
    for name, condition in rule.when.items():
        default = model.parameters[name].default
        # A condition that holds for the default also does for an omitted parameter and null.
        is_met = condition.holds(default)
        required = {} if is_met else {"required": [name]}
        values = {"anyOf": [_values_of(condition), NULL]} if is_met else _values_of(condition)
        if not is_met and condition.given is not None:
            values = {"not": NULL}
        conditions.append({"properties": {name: values}, **required})
    return {"not": {"allOf": conditions}, "description": f"Else: {rule.error.message}"}


def _values_of(condition: RuleCondition) -> Schema:
    if condition.equals is not None:
        return {"const": condition.equals}
    if condition.not_equals is not None:
        return {"not": {"enum": [condition.not_equals, None]}}
    if condition.given is not None:
        return {"not": NULL} if condition.given else NULL
    if condition.above is not None:
        return {"type": "number", "exclusiveMinimum": condition.above}
    return {"type": "number", "exclusiveMaximum": condition.below}


# ── keys ────────────────────────────────────────────────────────────────────────────────────


def key_schemas() -> dict[str, Schema]:
    """The bodies of a new key and of a change, and a key in an answer."""
    fields = _pydantic_properties(KeySpec)
    fields["limits"] = limits_schema()
    fields["labels"] = labels_schema()
    fields["expires_at"] = {
        "description": "Unix seconds, or the time from now, such as `30d`.",
        "anyOf": [fields["expires_at"], {"type": "string"}],
    }
    shown = _pydantic_properties(KeyRecord, without=("secrets", "limit_options"))
    shown["last_used_at"] = {
        "description": "Unix seconds of the minute of its last use, in lists.",
        "type": "integer",
    }
    shown["former_secrets_expire_at"] = {
        "description": "Unix seconds at which secrets that were replaced stop working.",
        "type": "array",
        "items": {"type": "integer"},
    }
    shown["limits"] = shown_limits_schema()
    shown["used"] = {"type": "array", "items": reference("UsedLimit")}
    new: Schema = {
        "type": "object",
        "required": ["name"],
        "properties": fields,
        "additionalProperties": False,
    }
    return {
        "NewKey": new,
        "KeyChanges": {
            "description": "The given fields are merged. Null removes a field, or one limit.",
            "type": "object",
            "properties": fields,
            "additionalProperties": False,
        },
        "Rotation": {
            "type": "object",
            "properties": {
                "overlap": {
                    "description": "How long the former secret still works: seconds, or `24h`.",
                    "type": ["string", "number", "null"],
                }
            },
            "additionalProperties": False,
        },
        "Key": {
            "type": "object",
            "required": ["id", "name", "prefix", "limits"],
            "properties": shown,
        },
        "CreatedKey": {
            "allOf": [reference("Key")],
            "type": "object",
            "required": ["key"],
            "properties": {"key": {"type": "string", "description": "The secret, shown once."}},
        },
        "KeyList": {
            "type": "object",
            "required": ["data", "has_more"],
            "properties": {
                "data": {"type": "array", "items": reference("Key")},
                "has_more": {"type": "boolean"},
            },
        },
    }


def limits_schema() -> Schema:
    """Limits as an administrator sets them."""
    return {
        "type": ["object", "null"],
        "properties": {name: _limit(limit) for name, limit in LIMITS.items()},
        "additionalProperties": False,
    }


def shown_limits_schema() -> Schema:
    """Limits in an answer."""
    number: Schema = {"type": "number", "minimum": 0}
    return {
        "type": "object",
        "additionalProperties": {"anyOf": [number, _detailed_limit(number, required=_DETAILS)]},
    }


def labels_schema() -> Schema:
    """Labels as an administrator sets them."""
    return {
        "description": "In the records of its requests. In a change, null removes one.",
        "type": ["object", "null"],
        "maxProperties": MAX_LABELS,
        "propertyNames": {"pattern": f"^{LABEL_NAME.pattern}$"},
        "additionalProperties": {
            "type": ["string", "null"],
            "minLength": 1,
            "maxLength": MAX_LABEL_CHARACTERS,
        },
    }


def _pydantic_properties(
    kind: type[KeySpec | KeyRecord], *, without: tuple[str, ...] = ()
) -> dict[str, Schema]:
    properties: Mapping[str, Schema] = kind.model_json_schema()["properties"]
    return {
        name: {key: value for key, value in schema.items() if key != "title"}
        for name, schema in properties.items()
        if name not in without
    }


def _limit(limit: Limit) -> Schema:
    kind = "number" if limit.unit == "usd_micros" else "integer"
    number: Schema = {"type": kind, "minimum": 0}
    return {"anyOf": [number, {"type": "null"}, _detailed_limit(number, required=())]}


_DETAILS: Final = ("max", "mode", "warn_at")


def _detailed_limit(number: Schema, *, required: tuple[str, ...]) -> Schema:
    """A limit with its mode and thresholds. Only a change of one may leave `max` out."""
    warn_at = {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_WARN_AT}
    properties = {
        "max": number,
        "mode": {"enum": [*get_args(Mode), None]},
        "warn_at": {"type": ["array", "null"], "items": warn_at, "maxItems": MAX_WARNINGS},
    }
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }

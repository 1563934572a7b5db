"""Checks the fields that an administrator sets, and names what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from gateway.errors import MAX_ECHO, ErrorCode, InvalidRequest
from gateway.values import nearest

M = TypeVar("M", bound=BaseModel)


def check_fields(model: type[BaseModel], data: Mapping[str, Any]) -> None:
    """Raises `InvalidRequest` for a field that the model does not have; it names the nearest."""
    for name in data:
        if name not in model.model_fields:
            shown = str(name)[:MAX_ECHO]
            raise InvalidRequest(
                f"Unknown parameter: '{shown}'. "
                f"Did you mean '{nearest(shown, model.model_fields)}'?",
                param=shown,
                code=ErrorCode.UNKNOWN_PARAMETER,
            )


def parse_model(model: type[M], data: Mapping[str, Any]) -> M:
    """The checked fields. Raises `InvalidRequest`, which names the first wrong one."""
    check_fields(model, data)
    try:
        return model.model_validate(data)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        param = ".".join(str(part) for part in first["loc"][:1])
        problem = first["msg"].removeprefix("Value error, ")
        raise InvalidRequest(
            problem if first["type"] == "value_error" else f"Invalid '{param}': {problem}.",
            param=param,
            code=ErrorCode.INVALID_VALUE,
        ) from None

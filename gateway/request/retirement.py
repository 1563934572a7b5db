"""The refusals of models that were shut down, and the name of what replaces them."""

from __future__ import annotations

from gateway.catalog import Model
from gateway.errors import ErrorCode, InvalidRequest


def refuse_retired(model: Model) -> InvalidRequest:
    """The refusal of any request for a model, with `retired: refuse`."""
    return _refusal(f"{_shut_down(model)}, and this gateway refuses it.", model)


def refuse_uncached(model: Model) -> InvalidRequest:
    """The refusal of a request without a cached image, with `retired: serve-cached`."""
    return _refusal(
        f"{_shut_down(model)}. This gateway serves what it has in its cache, which is nothing for "
        "this request.",
        model,
    )


def name_successor(model: Model) -> str:
    """The sentence for a client whom upstream told that the model does not exist."""
    return f"{_shut_down(model)}. {_advice(model)}"


def _refusal(reason: str, model: Model) -> InvalidRequest:
    return InvalidRequest(f"{reason} {_advice(model)}", param="model", code=ErrorCode.MODEL_RETIRED)


def _shut_down(model: Model) -> str:
    return f"The model '{model.id}' was shut down on {model.shutdown}"


def _advice(model: Model) -> str:
    if model.successor is None:
        return "GET /v1/models lists the models that can be used."
    return f"Use '{model.successor}' instead."

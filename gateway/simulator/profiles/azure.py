"""Azure OpenAI: deployments in the path, an `api-version`, `api-key`, and Azure's errors."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final

from gateway.catalog import ChoiceSpec
from gateway.simulator.generation import Generation
from gateway.simulator.profiles.errors import error_of, with_error
from gateway.simulator.profiles.profile import ForeignProfile
from gateway.simulator.refusals import Refusal, bad_value, refuse, unknown_model

_VERSION: Final = re.compile(r"20[0-9]{2}-[01][0-9]-[0-3][0-9](-preview)?")
_SAFE: Final = {
    name: {"filtered": False, "severity": "safe"}
    for name in ("hate", "self_harm", "sexual", "violence")
}
_DETECTED: Final = {"detected": False, "filtered": False}
_SIMPLE: Final[Mapping[int, tuple[str, str]]] = {
    401: (
        "401",
        "Access denied due to invalid subscription key or wrong API endpoint.",
    ),
    403: ("403", "Public access is disabled. Please configure private endpoint."),
    500: ("InternalServerError", "The server had an error while processing your request."),
    503: ("ServiceUnavailable", "The service is temporarily unable to process your request."),
}


class AzureProfile(ForeignProfile):
    """A resource whose deployments have the names of their models, or those that it is given."""

    name: ClassVar[str] = "azure"
    base_path: ClassVar[str] = "/openai"
    generations: ClassVar[tuple[str, ...]] = (
        "/openai/deployments/{deployment}/images/generations",
        "/openai/v1/images/generations",
    )
    lists: ClassVar[tuple[str, ...]] = ("/openai/models", "/openai/v1/models")
    link_seconds: ClassVar[float] = 24 * 3600

    def key_in(self, headers: Mapping[str, str]) -> str:
        """In `api-key`, or a token of Entra ID."""
        if key := headers.get("api-key", "").strip():
            return key
        return super().key_in(headers)

    def check_version(self, query: Mapping[str, str], *, deployment: str | None) -> None:
        """Raises `Refusal` for a path with a deployment and without a version."""
        version = query.get("api-version")
        if deployment is not None and not _VERSION.fullmatch(version or ""):
            raise refuse("Resource not found", status=404, code="404")

    def canonical(self, body: Any, *, deployment: str | None) -> Any:
        """With the model of the deployment, which must not be in the body as well."""
        if not isinstance(body, dict):
            return body
        if deployment is not None and "model" in body:
            raise refuse("Unknown parameter: 'model'.", param="model", code="unknown_parameter")
        named = body.get("model", "") if deployment is None else deployment
        # Without names of their own, deployments have those of the models.
        model = self.deployments.get(named) if self.deployments else named
        if model is None:
            raise unknown_model(str(named))
        if body.get("output_format") == "webp":
            raise bad_value(
                "output_format", "Invalid value: 'webp'. Supported values are: 'png' and 'jpeg'."
            )
        return {**body, "model": model}

    def resolved(self, generation: Generation, body: Mapping[str, Any]) -> Generation:
        """An omitted quality is not chosen by the model, as it is at OpenAI."""
        spec = generation.model.parameters.get("quality")
        quality = generation.model.simulator.azure_quality
        if "quality" in body or not isinstance(spec, ChoiceSpec) or quality not in spec.values:
            return generation
        return replace(generation, quality=quality)

    def answer(
        self, document: dict[str, Any], _generation: Generation, faults: Collection[str]
    ) -> dict[str, Any]:
        """With the results of the content filters beside each image."""
        for image in document["data"]:
            image["content_filter_results"] = _SAFE
            image["prompt_filter_results"] = {
                **_SAFE,
                "profanity": _DETECTED,
                "custom_blocklists": {"filtered": False, "details": []},
            }
            if "filtered" in faults:
                image.pop("b64_json", None)
                image.pop("url", None)
                image["content_filter_results"] = {
                    **_SAFE,
                    "violence": {"filtered": True, "severity": "high"},
                }
        return document

    def refusal(self, refusal: Refusal) -> Refusal:
        """In Azure's words where it has its own."""
        error = error_of(refusal)
        if error is None:
            return refusal
        code, status = error.get("code"), refusal.status
        if code == "moderation_blocked":
            stage = error.get("moderation_details", {}).get("moderation_stage")
            return _content_filter(refusal, of_output=stage == "output")
        if code == "content_policy_violation":
            return with_error(refusal, {**error, "inner_error": _inner_error(), "param": None})
        if error.get("param") == "model" and code == "invalid_value":
            message = (
                "The API deployment for this resource does not exist. If you created the "
                "deployment within the last 5 minutes, please wait a moment and try again."
            )
            found = {"code": "DeploymentNotFound", "message": message}
            return with_error(refusal, found, status=404)
        if status == 429 and code == "rate_limit_exceeded":
            seconds = refusal.headers.get("retry-after", "12")
            message = (
                "Requests to the ImageGenerations_Create Operation under Azure OpenAI API have "
                f"exceeded call rate limit. Please retry after {seconds} seconds."
            )
            return with_error(refusal, {"code": "429", "message": message})
        if status in _SIMPLE:
            code, message = _SIMPLE[status]
            return with_error(refusal, {"code": code, "message": message})
        return refusal


def _content_filter(refusal: Refusal, *, of_output: bool) -> Refusal:
    message = "Your task failed as a result of our safety system."
    if of_output:
        message = "Generated image was filtered as a result of our safety system."
    body = {"created": 1698116662, "error": {"code": "contentFilter", "message": message}}
    return Refusal(refusal.status, json.dumps(body), headers=refusal.headers)


def _inner_error() -> dict[str, Any]:
    return {
        "code": "ResponsibleAIPolicyViolation",
        "content_filter_results": {
            **_SAFE,
            "sexual": {"filtered": True, "severity": "medium"},
            "jailbreak": _DETECTED,
        },
        "revised_prompt": "the prompt in other words",
    }

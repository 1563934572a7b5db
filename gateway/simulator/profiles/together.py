"""Together: FLUX by width and height, steps and guidance; `base64` in place of `b64_json`."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final

from gateway.catalog import Model
from gateway.simulator.generation import Generation
from gateway.simulator.profiles.errors import error_of, with_body
from gateway.simulator.profiles.profile import ForeignProfile
from gateway.simulator.refusals import Refusal, bad_value, refuse

_PARAMETERS: Final = frozenset(
    {
        *("model", "prompt", "n", "width", "height", "steps", "guidance_scale", "seed"),
        *("negative_prompt", "response_format", "output_format", "disable_safety_checker"),
        "image_url",
    }
)
_FORMATS: Final = {"base64": "b64_json", "url": "url"}


class TogetherProfile(ForeignProfile):
    """api.together.xyz."""

    name: ClassVar[str] = "together"
    generations: ClassVar[tuple[str, ...]] = ("/v1/images/generations",)
    lists: ClassVar[tuple[str, ...]] = ("/v1/models",)

    def serves(self, model: Model) -> bool:
        """Its rows."""
        return model.service == self.name

    def canonical(self, body: Any, *, deployment: str | None) -> Any:
        """With the names of the model's row. Raises `Refusal` for members of other services."""
        if not isinstance(body, dict):
            return body
        for name in body:
            if name not in _PARAMETERS:
                raise refuse(f"Unknown parameter: {name}", param=name, code="unknown_parameter")
        canonical = dict(body)
        if "guidance_scale" in canonical:
            canonical["guidance"] = canonical.pop("guidance_scale")
        given = body.get("response_format", "url")
        if given not in _FORMATS:
            raise bad_value("response_format", f"Invalid response_format: {given}")
        canonical["response_format"] = _FORMATS[given]
        return canonical

    def resolved(self, generation: Generation, body: Mapping[str, Any]) -> Generation:
        """JPEG of the width and height."""
        size = body.get("width", 1024), body.get("height", 1024)
        return replace(generation, size=size, output_format="jpeg")

    def answer(
        self, document: dict[str, Any], generation: Generation, _faults: Collection[str]
    ) -> dict[str, Any]:
        """A list with an id, the model and the time of each image."""
        images = [
            {"index": index, "timings": {"inference": 0.4}, **image}
            for index, image in enumerate(document["data"])
        ]
        return {
            "id": secrets.token_hex(8),
            "model": generation.model.id,
            "object": "list",
            "data": images,
        }

    def refusal(self, refusal: Refusal) -> Refusal:
        """OpenAI's, with an id, and its own words for refused content."""
        error = error_of(refusal)
        if error is None:
            return refusal
        if error.get("code") in ("moderation_blocked", "content_policy_violation"):
            error = {
                "message": "NSFW content detected in the prompt.",
                "type": "invalid_request_error",
                "param": None,
                "code": "nsfw_content",
            }
            return with_body(refusal, {"id": secrets.token_hex(8), "error": error}, status=422)
        return with_body(refusal, {"id": secrets.token_hex(8), "error": error})

"""xAI: aspect ratios in place of sizes, JPEG, a cost in ticks, and errors that are plain texts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, ClassVar, Final

from gateway.catalog import ImageBilling, Model
from gateway.simulator.generation import Generation
from gateway.simulator.profiles.errors import error_of, with_body
from gateway.simulator.profiles.profile import ForeignProfile
from gateway.simulator.refusals import Refusal, refuse

_PARAMETERS: Final = frozenset(
    {
        *("model", "prompt", "n", "aspect_ratio", "resolution", "quality"),
        *("response_format", "user"),
    }
)
_EDGES: Final = {"1k": 1024, "2k": 2048}
_TICKS_PER_USD: Final = 10**10
_USD: Final = Decimal("0.02")
"""Of an image whose row has no price."""


class XaiProfile(ForeignProfile):
    """api.x.ai."""

    name: ClassVar[str] = "xai"
    generations: ClassVar[tuple[str, ...]] = ("/v1/images/generations",)
    lists: ClassVar[tuple[str, ...]] = ("/v1/models",)

    def serves(self, model: Model) -> bool:
        """Its rows, of which some may have other names."""
        return model.service == self.name

    def canonical(self, body: Any, *, deployment: str | None) -> Any:
        """As it is, if all its members are xAI's."""
        for name in body if isinstance(body, dict) else ():
            if name not in _PARAMETERS:
                raise refuse(f"Argument not supported: {name}", param=name)
        return body

    def resolved(self, generation: Generation, body: Mapping[str, Any]) -> Generation:
        """JPEG of the ratio and the resolution."""
        ratio = body.get("aspect_ratio", "auto")
        across, down = map(float, ("1:1" if ratio == "auto" else ratio).split(":"))
        edge = _EDGES[body.get("resolution", "1k")]
        longer = max(across, down)
        size = round(edge * across / longer), round(edge * down / longer)
        return replace(generation, size=size, output_format="jpeg")

    def answer(
        self, document: dict[str, Any], generation: Generation, faults: Collection[str]
    ) -> dict[str, Any]:
        """With the type of each image, whether it was moderated, and the cost."""
        for image in document["data"]:
            image |= {"mime_type": "image/jpeg", "revised_prompt": ""}
            image["respect_moderation"] = "filtered" not in faults
        resolution = "2k" if max(generation.size) > _EDGES["1k"] else "1k"
        billing = generation.model.billing
        usd = None
        if isinstance(billing, ImageBilling):
            usd = billing.price_of({"resolution": resolution})
        ticks = int((usd or _USD) * _TICKS_PER_USD) * len(document["data"])
        usage = {"cost_in_usd_ticks": ticks}
        answered = {"created": document["created"], "data": document["data"]}
        return answered if "no-usage" in faults else {**answered, "usage": usage}

    def refusal(self, refusal: Refusal) -> Refusal:
        """`{"code", "error"}`, both texts."""
        error = error_of(refusal)
        if error is None:
            return refusal
        message = str(error["message"])
        if error.get("code") in ("moderation_blocked", "content_policy_violation"):
            message = "Generated image rejected by content moderation."
        code = "The service is currently unavailable"
        if refusal.status < 500:
            code = "Client specified an invalid argument"
        # A wrong key is an invalid argument like any other.
        status = 400 if refusal.status == 401 else refusal.status
        return with_body(refusal, {"code": code, "error": message}, status=status)

"""What a profile is, and OpenAI's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import orjson

from gateway.catalog import Model
from gateway.simulator.generation import Generation
from gateway.simulator.links import LINK_SECONDS
from gateway.simulator.refusals import Refusal, no_key


class Profile:
    """OpenAI's images API. Others differ from it in what they override."""

    name: ClassVar[str] = "openai"
    base_path: ClassVar[str] = "/v1"
    """Of the base URL."""
    generations: ClassVar[tuple[str, ...]] = ("/v1/images/generations", "/images/generations")
    lists: ClassVar[tuple[str, ...]] = ("/v1/models", "/models")
    link_seconds: ClassVar[float] = LINK_SECONDS
    """How long the images behind its links can be fetched."""

    def __init__(self, deployments: Mapping[str, str]) -> None:
        self.deployments = deployments
        """Models by the name of their deployment, for a service that has deployments."""

    def serves(self, model: Model) -> bool:
        """Whether the service has a model of the catalog."""
        return model.service is None

    def key_in(self, headers: Mapping[str, str]) -> str:
        """The key of a request. Raises `Refusal` without one."""
        scheme, _, key = headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise no_key()
        return key.strip()

    def check_version(self, query: Mapping[str, str], *, deployment: str | None) -> None:
        """Raises `Refusal` for a path that needs another query."""

    def canonical(self, body: Any, *, deployment: str | None) -> Any:
        """The body as OpenAI would have it, which is checked next. Raises `Refusal`."""
        return body

    def resolved(self, generation: Generation, _body: Mapping[str, Any]) -> Generation:
        """The generation with what the service makes of omitted values."""
        return generation

    def rewritten(self, body: bytes, _generation: Generation, _faults: Collection[str]) -> bytes:
        """The service's JSON of a 200; `body` is OpenAI's."""
        return body

    def refusal(self, refusal: Refusal) -> Refusal:
        """The service's error; `refusal` is OpenAI's."""
        return refusal


class ForeignProfile(Profile, ABC):
    """A service whose answers are other JSON than OpenAI's."""

    def rewritten(self, body: bytes, generation: Generation, faults: Collection[str]) -> bytes:
        """As `answer` makes it."""
        return orjson.dumps(self.answer(orjson.loads(body), generation, faults))

    @abstractmethod
    def answer(
        self, document: dict[str, Any], generation: Generation, faults: Collection[str]
    ) -> dict[str, Any]:
        """The answer; `document` is OpenAI's."""

"""What leaves `upstream/` of upstream's answers: redacted of the gateway's secrets, and bounded.

Everything that a dialect parses passes here once, whether it came in an answer, an event or an
error. Only then do clients, the store, the ledger and the log see it. Links are the exception: they
are fetched as they came, and never shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, Final

import orjson

from gateway.errors import CUT, UpstreamFailure
from gateway.frozen import replace
from gateway.images import PartialImage, UpstreamAnswer, UpstreamImage
from gateway.redaction import Redactor

MAX_REVISED_PROMPT: Final = 32_000
"""Characters, as many as the longest prompt has."""

MAX_MESSAGE: Final = 4_000
"""Characters of an error's message."""

MAX_WORD: Final = 128
"""Characters of everything that is one word: codes, request ids, echoed parameters."""

MAX_KEPT_WORDS: Final = 256
"""Echoed parameters whose redaction is remembered: every answer has the same few.
Those longer than `MAX_WORD` are not remembered: each may be megabytes."""

MAX_FURTHER_BYTES: Final = 16 * 1024
"""Of the JSON of all further keys of an image or an error. Keys beyond are dropped."""

_MARGIN: Final = 1024
"""Characters beyond a bound that are searched too, so that none of them is half a secret."""


_MAX_LEVELS: Final = 32
"""Of nested JSON in a further key."""


class Relay:
    """Redacts and bounds what upstream sent."""

    def __init__(self, secrets: Iterable[str]) -> None:
        secrets = tuple(secrets)
        self._redactor = Redactor(secrets)
        # A character has at most 6 characters in an escape, and each layer may double them.
        self._margin = _MARGIN + 16 * max(map(len, secrets), default=0)
        self._echo = lru_cache(MAX_KEPT_WORDS)(partial(self._text, limit=MAX_WORD))

    def answer(self, answer: UpstreamAnswer) -> UpstreamAnswer:
        """An answer that may be stored and shown."""
        images = tuple(map(self._image, answer.images))
        echoed = self._echoed(answer.echoed)
        request_id = self._optional(answer.upstream_request_id, MAX_WORD)
        if (images, echoed, request_id) == (
            answer.images,
            answer.echoed,
            answer.upstream_request_id,
        ):
            return answer  # as nearly always; a copy takes 3 µs
        return replace(answer, images=images, echoed=echoed, upstream_request_id=request_id)

    def partial_image(self, image: PartialImage) -> PartialImage:
        """A partial image that may be shown."""
        return replace(image, echoed=self._echoed(image.echoed))

    def failure(self, failure: UpstreamFailure) -> UpstreamFailure:
        """A failure that may be stored and shown. It is a new one: an exception keeps its text."""
        relayed = UpstreamFailure(
            self._text(failure.message, MAX_MESSAGE),
            charge=failure.charge,
            status=failure.status,
            type=self._text(failure.type, MAX_WORD),
            param=self._optional(failure.param, MAX_WORD),
            code=self._optional(failure.code, MAX_WORD),
            headers=self._words(failure.headers),
            details=self._further(failure.details),
            source=failure.source,
            usage=failure.usage,
            images=failure.images,
            upstream_request_id=self._optional(failure.upstream_request_id, MAX_WORD),
            report=failure.report.redacted(self._text),
            advice=failure.advice,
        )
        relayed.cost_picos = failure.cost_picos
        return relayed

    def _image(self, image: UpstreamImage) -> UpstreamImage:
        if image.revised_prompt is None and not image.extra:
            return image
        return replace(
            image,
            revised_prompt=self._optional(image.revised_prompt, MAX_REVISED_PROMPT),
            extra=MappingProxyType(self._further(image.extra)),
        )

    def _echoed(self, words: Mapping[str, str]) -> Mapping[str, str]:
        """As `_words`, of words that come again with the next answer."""
        return MappingProxyType(
            {
                key: self._echo(word) if len(word) <= MAX_WORD else self._text(word, MAX_WORD)
                for key, word in words.items()
            }
        )

    def _words(self, words: Mapping[str, str]) -> Mapping[str, str]:
        return MappingProxyType({key: self._text(word, MAX_WORD) for key, word in words.items()})

    def _optional(self, text: str | None, limit: int) -> str | None:
        return None if text is None else self._text(text, limit)

    def _text(self, text: str, limit: int) -> str:
        searched = text[: limit + self._margin]
        redacted = self._redactor.text(searched)
        is_cut = len(searched) < len(text)
        if is_cut:  # its end may be a part of a secret
            redacted = redacted[: -self._margin]
        elif len(redacted) <= limit:
            return redacted
        return redacted[: limit - len(CUT)] + CUT

    def _further(self, further: Mapping[str, Any]) -> dict[str, Any]:
        """The keys whose JSON fits into `MAX_FURTHER_BYTES`, in their order, if not too deep."""
        kept: dict[str, Any] = {}
        room = MAX_FURTHER_BYTES
        for key, value in further.items():
            if _is_deeper(value, _MAX_LEVELS):
                continue
            size = len(orjson.dumps({key: value}))
            if size <= room:
                room -= size
                kept[self._redactor.text(key)] = self._redactor.value(value)
        return kept


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, list | dict):
        return False
    items = value.values() if isinstance(value, dict) else value
    return not levels or any(_is_deeper(item, levels - 1) for item in items)

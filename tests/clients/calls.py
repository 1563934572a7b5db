"""The calls that every client makes, and what a client usually gets."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pybase64
from PIL import Image

GPT: Final = "gpt-image-1.5"
DALL_E: Final = "dall-e-3"
MODERATION: Final = "[[sim:moderation]] "
REFUSED: Final = "400 moderation_blocked"
NOT_OFFERED: Final = "–"
"""The package has no way to make such a call, so its runner says so."""

Usual = str | Mapping[str, str]


@dataclass(frozen=True)
class Call:
    """A call in the words of the API; a runner says it in the words of its package."""

    name: str
    usual: Usual
    """The outcome, of both validations or of each."""
    model: str | None = None
    n: int | None = None
    size: str | None = None
    response_format: str | None = None
    stream: bool = False
    key: str = "plain"
    repeats: str = ""
    """The call whose prompt it has."""
    fault: str = ""

    def expected(self, validation: str) -> str:
        return self.usual if isinstance(self.usual, str) else self.usual[validation]


CALLS: Final = (
    Call("its default", "a link"),
    Call(GPT, "an image", model=GPT),
    Call(DALL_E, "a link", model=DALL_E),
    Call("3 of gpt-image-1.5", "3 images", model=GPT, n=3),
    Call("3 of dall-e-3", "400", model=DALL_E, n=3),
    Call("3 of dall-e-3, vary", "400", model=DALL_E, n=3, key="vary"),
    Call("link", "a link", model=DALL_E, response_format="url"),
    Call("base64", "an image", model=DALL_E, response_format="b64_json"),
    Call(
        "link to gpt-image-1.5",
        {"strict": "400 unknown_parameter", "lenient": "a link"},
        model=GPT,
        response_format="url",
    ),
    Call("hit", "the same, usage", model=GPT, repeats=GPT),
    Call("stream", "2 partial images, an image", model=GPT, stream=True),
    Call("hit without usage", "the same, usage 0", model=GPT, key="no usage", repeats=GPT),
    Call("moderation", REFUSED, model=GPT, fault=MODERATION),
    Call("unknown size", "400 invalid_value", model=GPT, size="1000x1000"),
    Call("budget spent", "429 insufficient_quota", model=GPT, key="poor"),
    Call("wrong key", "401 invalid_api_key", model=GPT, key="wrong"),
    Call("moderation again", REFUSED, model=GPT, fault=MODERATION, repeats="moderation"),
)


@dataclass(frozen=True)
class Outcome:
    """What a client got of one call."""

    summary: str
    """As in `Call.usual`."""
    attempts: int
    """The requests that it sent; 1 if other calls have the same prompt."""
    error_class: str
    message: str

    @property
    def cell(self) -> str:
        """For the page."""
        if not self.error_class:
            return self.summary
        times = f", {self.attempts} requests" if self.attempts > 1 else ""
        status, _, code = self.summary.removeprefix(self.error_class).partition(" ")
        words = [f"`{self.error_class}`", status, f"`{code}`" if code else ""]
        return " ".join(word for word in words if word) + times


def summarize(call: Call, got: Mapping[str, Any], opened: list[bytes], first: list[bytes]) -> str:
    """`opened` are the images as bytes, `first` those of the call that this one repeats."""
    if got.get("not_offered"):
        return NOT_OFFERED
    if error := got.get("error"):
        words = [error["status"] or error["class"], error["code"]]
        return " ".join(str(word) for word in words if word)
    for image in opened:
        with Image.open(io.BytesIO(image)) as decoded:
            decoded.load()
    count = len(opened)
    if call.repeats:
        assert opened == first, "a hit has the bytes of the purchase"
        usage = {None: "", 0: ", usage 0"}.get(got.get("usage"), ", usage")
        return f"the same{usage}"
    kind = "link" if got["images"][0].startswith("http") else "image"
    noun = f"a{'n' if kind == 'image' else ''} {kind}" if count == 1 else f"{count} {kind}s"
    if len(set(opened)) < count:
        noun += ", all the same"
    partials = got.get("partials")
    return f"{partials} partial images, {noun}" if partials is not None else noun


def is_link(image: str) -> bool:
    return image.startswith("http")


def decode(image: str) -> bytes:
    return pybase64.b64decode(image.removeprefix("data:image/png;base64,"), validate=True)

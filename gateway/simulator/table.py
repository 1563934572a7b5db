"""What the simulated service sells: one row per model, as data.

Written from the facts of WIRE §1, §2, §5.1 and §6 and kept apart from the gateway's own model
table on purpose: two tables that agree prove something, one table used twice does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few strings, listed in the order in which the service's errors list them."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Whole:
    """An integer between two bounds, both allowed."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""


@dataclass(frozen=True, slots=True)
class Anything:
    """Any JSON value except null."""


@dataclass(frozen=True, slots=True)
class FreeSize:
    """`auto`, or any WIDTHxHEIGHT within a grid and a budget of pixels."""

    multiple: int
    longest_edge: int
    widest_ratio: int
    fewest_pixels: int
    most_pixels: int


Rule: TypeAlias = Choice | Whole | Flag | Anything | FreeSize


@dataclass(frozen=True, slots=True)
class Model:
    """One model: what it accepts, what it resolves omissions to, what it reports, how slow."""

    name: str
    prompt_max: int
    """Characters."""
    parameters: Mapping[str, Rule]
    """Everything but model, prompt and n, in the order in which it is checked (WIRE §1.4)."""
    best_quality: str
    """What an omitted or `auto` quality becomes."""
    latency_seconds: Mapping[str, float]
    """Quality → the middle of what WIRE §6 reports for one picture."""
    n_max: int = 10
    one_picture_only: bool = False
    gives_links: bool = False
    """Answers `url` or `b64_json` as asked and no usage; otherwise base64 and usage."""
    revises_prompts: bool = False
    output_tokens: Mapping[tuple[str, str], int] | None = None
    """(quality, size) → tokens of one picture; None with links, or where the formula holds."""
    splits_output_tokens: bool = False
    """Whether `usage` has `output_tokens_details`."""

    def tokens(self, *, quality: str, size: tuple[int, int]) -> int:
        """Output tokens of one picture (WIRE §5.1)."""
        if self.output_tokens is None:
            return formula_tokens(quality, size)
        return self.output_tokens[quality, f"{size[0]}x{size[1]}"]


_TOKEN_GRID: Final = {"low": 16, "medium": 48, "high": 96}


def formula_tokens(quality: str, size: tuple[int, int]) -> int:
    """Output tokens of one picture of any size: the formula of WIRE §5.1."""
    shorter, longer = sorted(size)
    grid = _TOKEN_GRID[quality]
    side = (2 * grid * shorter + longer) // (2 * longer)
    return -(-grid * side * (2_000_000 + size[0] * size[1]) // 4_000_000)


_DALL_E_2: Final = Model(
    name="dall-e-2",
    prompt_max=1000,
    parameters={
        "quality": Choice(("standard", "auto")),
        "size": Choice(("256x256", "512x512", "1024x1024")),
        "response_format": Choice(("url", "b64_json")),
        "user": Anything(),
    },
    best_quality="standard",
    latency_seconds={"standard": 7.7},
    gives_links=True,
)

_DALL_E_3: Final = Model(
    name="dall-e-3",
    prompt_max=4000,
    parameters={
        "quality": Choice(("standard", "hd", "auto")),
        "size": Choice(("1024x1024", "1792x1024", "1024x1792")),
        "style": Choice(("vivid", "natural")),
        "response_format": Choice(("url", "b64_json")),
        "user": Anything(),
    },
    best_quality="standard",
    latency_seconds={"standard": 14, "hd": 30},
    one_picture_only=True,
    gives_links=True,
    revises_prompts=True,
)

_GPT_IMAGE_1: Final = Model(
    name="gpt-image-1",
    prompt_max=32000,
    parameters={
        "quality": Choice(("low", "medium", "high", "auto")),
        "output_compression": Whole(0, 100),
        "size": Choice(("1024x1024", "1024x1536", "1536x1024", "auto")),
        "background": Choice(("transparent", "opaque", "auto")),
        "output_format": Choice(("png", "webp", "jpeg")),
        "moderation": Choice(("auto", "low")),
        "partial_images": Whole(0, 3),
        "stream": Flag(),
        "user": Anything(),
    },
    best_quality="high",
    latency_seconds={"low": 10, "medium": 25, "high": 45},
    output_tokens={
        ("low", "1024x1024"): 272,
        ("low", "1024x1536"): 408,
        ("low", "1536x1024"): 400,
        ("medium", "1024x1024"): 1056,
        ("medium", "1024x1536"): 1584,
        ("medium", "1536x1024"): 1568,
        ("high", "1024x1024"): 4160,
        ("high", "1024x1536"): 6240,
        ("high", "1536x1024"): 6208,
    },
)

_GPT_IMAGE_1_5: Final = replace(
    _GPT_IMAGE_1, name="gpt-image-1.5", latency_seconds={"low": 8, "medium": 15, "high": 25}
)

_GPT_IMAGE_2: Final = replace(
    _GPT_IMAGE_1,
    name="gpt-image-2",
    parameters={
        **_GPT_IMAGE_1.parameters,
        "size": FreeSize(
            multiple=16,
            longest_edge=3840,
            widest_ratio=3,
            fewest_pixels=655_360,
            most_pixels=8_294_400,
        ),
    },
    latency_seconds={"low": 15, "medium": 60, "high": 160},
    output_tokens=None,
    splits_output_tokens=True,
)

MODELS: Final[Mapping[str, Model]] = {
    model.name: model
    for model in (
        _DALL_E_2,
        _DALL_E_3,
        _GPT_IMAGE_1,
        replace(
            _GPT_IMAGE_1,
            name="gpt-image-1-mini",
            latency_seconds={"low": 5, "medium": 10, "high": 20},
        ),
        _GPT_IMAGE_1_5,
        replace(_GPT_IMAGE_1_5, name="chatgpt-image-latest"),
        _GPT_IMAGE_2,
        replace(_GPT_IMAGE_2, name="gpt-image-2-2026-04-21"),
    )
}
"""Every model on sale, by name."""

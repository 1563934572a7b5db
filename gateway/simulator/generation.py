"""What a correct body asks for: every omitted or `auto` value resolved, with its tokens and time.

All of it follows from the model's row of the catalog. The token formula is independent of the
gateway's own, so that tests can compare what the simulator bills with what the gateway reserves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.catalog import (
    SIZE,
    ChoiceSpec,
    ImageBilling,
    Model,
    SizeSpec,
    TokenBilling,
    TokenFormula,
)
from gateway.simulator.body import sheet_cells, size_fault

_USUAL_SIZE: Final = "1024x1024"
"""What upstream makes of `auto`, if the model accepts it."""
_USUAL_FRAMES: Final = 9
_USUAL_FRAME_MS: Final = 200
_USUAL_LATENCY_SECONDS: Final = 20.0
"""The latency of a model whose row states none."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A correct body, resolved."""

    model: Model
    prompt: str
    n: int
    size: tuple[int, int]
    """Width and height in pixels."""
    quality: str
    background: str
    output_format: str
    compression: int
    response_format: str
    stream: bool
    partial_images: int
    frames: int
    """Of a GIF."""
    frame_ms: int
    """How long a GIF shows each frame, in milliseconds."""
    svg: Mapping[str, Any]
    """Which text model writes an SVG, and with how much effort, as the body says."""
    sheet: tuple[int, int] = (1, 1)
    """Columns and rows of frames that are made as one image; `size` is that of a frame."""

    @property
    def billing(self) -> TokenBilling | None:
        """How its tokens are counted; None for a model that is billed per image."""
        billing = self.model.billing
        return billing if isinstance(billing, TokenBilling) else None

    @property
    def size_text(self) -> str:
        """The size as the API writes it, WIDTHxHEIGHT."""
        return f"{self.size[0]}x{self.size[1]}"

    @property
    def latency_seconds(self) -> float:
        """How long the real upstream takes; it makes images in parallel, so n adds little."""
        by_quality = self.model.simulator.latency_seconds
        seconds = by_quality.get(self.quality, _USUAL_LATENCY_SECONDS)
        return seconds * (1 + 0.1 * (self.n - 1))


def resolve(body: Mapping[str, Any], model: Model) -> Generation:
    """The generation that a checked body asks for."""

    def given(name: str, default: Any) -> Any:
        spec = model.parameters.get(name)
        value = body.get(name, spec.default if spec else default)
        return default if value is None else value

    def resolved(name: str, automatic: str) -> str:
        """A choice, or `automatic` for `auto` and for a parameter that the model lacks."""
        spec, value = model.parameters.get(name), given(name, "auto")
        if isinstance(spec, ChoiceSpec):
            value = spec.means.get(value, value)
        return automatic if value == "auto" else str(value)

    stream = given("stream", False)
    output_format = resolved("output_format", "png")
    frames = given("frame_count", None) or _USUAL_FRAMES
    sheet = sheet_cells(body, model)
    if output_format == "gif":
        size = _pixels(resolved("size", _gif_size(frames)))
    else:
        size = _resolve_size(resolved("size", _USUAL_SIZE), model)
    made = size[0] * sheet[0], size[1] * sheet[1]
    return Generation(
        model=model,
        prompt=body["prompt"],
        n=given("n", 1),
        size=size,
        quality=_resolve_quality(resolved("quality", "auto"), model, size=made),
        background=resolved("background", "opaque"),
        output_format=output_format,
        compression=given("output_compression", 100),
        # The events of a stream have no `url`.
        response_format="b64_json" if stream else resolved("response_format", "b64_json"),
        stream=stream,
        partial_images=given("partial_images", 0),
        frames=frames,
        # As the real upstream rounds them: a GIF counts hundredths of a second.
        frame_ms=round((given("frame_duration_ms", None) or _USUAL_FRAME_MS) / 10) * 10,
        svg=given("svg", None) or {},
        sheet=sheet,
    )


def _gif_size(frames: int) -> str:
    """The largest square frame: all frames are painted as one sheet."""
    edge = 960 if frames <= 9 else 816 if frames <= 12 else 720
    return f"{edge}x{edge}"


def _resolve_size(size: str, model: Model) -> tuple[int, int]:
    """The pixels of `size` or, if the model does not accept it, of a size that it does."""
    spec = model.parameters.get("size")
    values = spec.distinct_values if isinstance(spec, ChoiceSpec) else ()
    if isinstance(spec, SizeSpec):
        values = (*spec.values, spec.example)
    sizes = [value for value in values if SIZE.fullmatch(value)]
    is_accepted = isinstance(spec, SizeSpec) and size_fault(size, spec) is None
    if sizes and size not in sizes and not is_accepted:
        size = sizes[0]
    return _pixels(size)


def _pixels(size: str) -> tuple[int, int]:
    width, _, height = size.partition("x")
    return int(width), int(height)


def _resolve_quality(quality: str, model: Model, *, size: tuple[int, int]) -> str:
    """A quality as the billing knows it; upstream makes the dearest of any other one."""
    if isinstance(model.billing, TokenBilling):
        tokens = _tokens_by_quality(model.billing, size)
        return quality if quality in tokens else max(tokens, key=tokens.__getitem__)
    if isinstance(model.billing, ImageBilling) and "quality" in model.billing.priced_by:
        text = f"{size[0]}x{size[1]}"
        spec = model.parameters["quality"]
        values = spec.distinct_values if isinstance(spec, ChoiceSpec) else ()
        prices = {
            value: price
            for value in values
            if (price := model.billing.price_of({"size": text, "quality": value})) is not None
        }
        if prices and quality not in prices:
            return max(prices, key=prices.__getitem__)
    return quality


def output_tokens(billing: TokenBilling, generation: Generation) -> int:
    """Output tokens of one image, or of the one sheet of its frames."""
    (width, height), (columns, rows) = generation.size, generation.sheet
    return _tokens_by_quality(billing, (width * columns, height * rows))[generation.quality]


def _tokens_by_quality(billing: TokenBilling, size: tuple[int, int]) -> Mapping[str, int]:
    formula = billing.output_tokens_formula
    if formula is not None:
        return {quality: formula_tokens(formula, quality, size) for quality in formula.grid}
    table = billing.output_tokens or {}
    return table.get(f"{size[0]}x{size[1]}", table[billing.dearest_size])


def formula_tokens(formula: TokenFormula, quality: str, size: tuple[int, int]) -> int:
    """Output tokens of one image of any size."""
    shorter, longer = sorted(size)
    grid = formula.grid[quality]
    side = (2 * grid * shorter + longer) // (2 * longer)
    pixels = formula.pixels_offset + size[0] * size[1]
    return -(-grid * side * pixels // formula.pixels_divisor)

"""Drawn images: complete files of the requested size, different for every prompt and seed."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gateway.imagefile.check import check_image
from gateway.imagefile.facts import ImageFacts
from gateway.simulator.drawing import draw_gif, draw_image
from gateway.simulator.vectors import draw_svg

FORMATS = ("png", "jpeg", "webp")


def check(data: bytes) -> ImageFacts:
    return check_image(data, max_bytes=64 * 2**20, max_pixels=33_000_000)


def draw(prompt: str = "an otter", *, format: str = "png", seed: int = 1, **options) -> bytes:
    size = {"width": 48, "height": 32} | options
    return draw_image(prompt, format=format, seed=seed, **size)


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.text(max_size=80),
    format=st.sampled_from(FORMATS),
    width=st.integers(16, 200),
    height=st.integers(16, 200),
    seed=st.integers(0, 2**63),
    transparent=st.booleans(),
    compression=st.integers(0, 100),
    progress=st.floats(0, 1),
)
def test_any_drawn_image_is_valid_and_has_the_requested_size(prompt, **options):
    data = draw_image(prompt, **options)
    assert check(data) == ImageFacts(options["format"], options["width"], options["height"])
    Image.open(io.BytesIO(data)).load()


@settings(max_examples=40, deadline=None)
@given(
    prompt=st.text(max_size=80),
    width=st.integers(16, 64),
    height=st.integers(16, 64),
    seed=st.integers(0, 2**63),
    frames=st.integers(2, 16),
    frame_ms=st.integers(2, 200),
)
def test_gif_and_svg_have_the_requested_size_and_frames(
    prompt, width, height, seed, frames, frame_ms
):
    size = {"width": width, "height": height, "seed": seed}
    gif = draw_gif(prompt, frames=frames, frame_ms=10 * frame_ms, **size)
    assert check(gif) == ImageFacts("gif", width, height, frames=frames)
    with Image.open(io.BytesIO(gif)) as image:
        assert image.info["duration"] == 10 * frame_ms
    svg = draw_svg(prompt, **size)
    assert check(svg.encode()) == ImageFacts("svg", width, height)
    assert draw_svg(prompt, **size | {"seed": seed + 1}) != svg == draw_svg(prompt, **size)


@pytest.mark.parametrize("format", FORMATS)
def test_two_seeds_never_give_the_same_bytes_and_one_seed_always_does(format):
    drawn = {draw(format=format, seed=seed, width=16, height=16) for seed in range(20)}
    assert len(drawn) == 20
    assert draw(format=format, seed=3) == draw(format=format, seed=3)


def test_different_prompts_give_different_images():
    assert draw("an otter") != draw("a heron")


def test_transparent_images_have_clear_corners_and_a_full_middle():
    for kind in ("png", "webp"):
        data = draw(format=kind, width=64, height=64, transparent=True)
        alpha = Image.open(io.BytesIO(data)).getchannel("A")
        assert alpha.getpixel((0, 0)) == 0
        assert alpha.getpixel((32, 32)) == 255


def test_a_lower_compression_makes_a_smaller_file():
    for kind in ("jpeg", "webp"):
        sizes = [len(draw(format=kind, width=128, height=128, compression=c)) for c in (5, 100)]
        assert sizes[0] < sizes[1]


def test_a_caption_of_any_length_and_script_fits():
    for prompt in ("", "x" * 5000, "many words " * 90, "獺 на пруду 🦦", "\ud800", "a\x00b\nc"):
        assert check(draw(prompt, width=200, height=140)).width == 200


def test_the_prompt_is_written_below_the_image():
    plain, written = (
        Image.open(io.BytesIO(draw("", width=256, height=256))),
        Image.open(io.BytesIO(draw("OTTER", width=256, height=256))),
    )
    band = (0, 236, 256, 256)
    brightest = [max(image.crop(band).convert("L").tobytes()) for image in (plain, written)]
    assert brightest[1] > 220 > brightest[0]


def test_an_unknown_format_cannot_be_drawn():
    with pytest.raises(ValueError, match="gif"):
        draw(format="gif")

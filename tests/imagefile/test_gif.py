"""GIF files: complete ones pass with their frames counted, any other is rejected."""

from __future__ import annotations

import io
import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gateway.imagefile.check import check_image
from gateway.imagefile.facts import BadImage, ImageFacts
from gateway.imagefile.thumbnail import make_thumbnail
from gateway.simulator.drawing import draw_gif
from tests.examples import examples
from tests.processor import processor_seconds
from tests.rows import each_row

MAX_PIXELS = 33_000_000


def check(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    return check_image(data, max_bytes=64 * 2**20, max_pixels=max_pixels)


def drawn(frames: int = 3, *, width: int = 24, height: int = 16) -> bytes:
    return draw_gif("a pond", width=width, height=height, seed=1, frames=frames, frame_ms=90)


def header(width: int = 4, height: int = 4, *, flags: int = 0) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, flags, 0, 0)


def frame(
    left: int = 0, top: int = 0, width: int = 1, height: int = 1, *, data: bytes = b"\x02\x01D\x00"
) -> bytes:
    return b"," + struct.pack("<HHHHB", left, top, width, height, 0) + data


SAMPLE = drawn()
COMMENT = b"!\xfe\x05hello\x00"


@pytest.mark.parametrize("frames", [2, 9, 16])
def test_the_frames_that_pillow_writes_are_counted(frames):
    data = drawn(frames)
    assert check(data) == ImageFacts("gif", 24, 16, frames=frames)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == frames


def test_every_form_that_encoders_write_passes():
    forms = [Image.new(mode, (7, 5)) for mode in ("L", "P", "1", "RGB", "RGBA")]
    for image in forms:
        for options in ({}, {"interlace": 1}, {"transparency": 0}):
            file = io.BytesIO()
            image.save(file, "GIF", **options)
            assert check(file.getvalue()) == ImageFacts("gif", 7, 5)
    assert check(header().replace(b"89a", b"87a") + frame() + b";").frames == 1
    assert check(header() + COMMENT + frame() + COMMENT * 9 + frame(3, 3) + b";").frames == 2


def test_any_truncated_gif_fails():
    for length in range(len(SAMPLE)):
        with pytest.raises(BadImage):
            check(SAMPLE[:length])
    for junk in (b"\x00", b";", b"junk"):
        with pytest.raises(BadImage):
            check(SAMPLE + junk)


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=12))
def test_damaged_bytes_raise_nothing_but_bad_image(changes):
    data = bytearray(SAMPLE)
    for position, value in changes:
        data[position % len(data)] = value
    with suppress(BadImage):
        check(bytes(data))


@settings(max_examples=examples(100), deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_after_a_header_raise_nothing_but_bad_image(rest):
    with suppress(BadImage):
        check(header() + rest)


@each_row(
    ("data", "reason"),
    [
        (header(), "GIF is cut short"),
        (header() + b";", "GIF without a frame"),
        (header(flags=0x87) + frame() + b";", "GIF is cut short"),
        (header() + frame(), "GIF is cut short"),
        (header() + frame() + b";;", "GIF with bytes after its trailer"),
        (header() + b"x" + frame() + b";", "GIF with a damaged block"),
        (header() + frame(4) + b";", "GIF with a frame outside of its canvas"),
        (header() + frame(width=0) + b";", "GIF with a frame outside of its canvas"),
        (header() + frame(top=2, height=3) + b";", "GIF with a frame outside of its canvas"),
        (header() + frame(data=b"\x0c\x01D\x00") + b";", "GIF with a damaged frame"),
        (header() + frame(data=b"\x02\x00") + b";", "GIF with an empty frame"),
        (header() + frame() * 257 + b";", "GIF of more than 256 frames"),
        (header(0, 4) + frame() + b";", "GIF with a frame outside of its canvas"),
        (header() + b"!\xfe\x00" * 1100 + frame() + b";", "GIF of too many small parts"),
        (
            header(60_000, 60_000) + frame() + b";",
            "GIF whose frames have more than 264000000 pixels together",
        ),
        (header(8_000, 8_000) + frame() + b";", "8000x8000 is more than 33000000 pixels"),
        (
            header(4_000, 4_000) + frame() * 17 + b";",
            "GIF whose frames have more than 264000000 pixels together",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_message_says_why_a_gif_is_rejected(data, reason):
    with pytest.raises(BadImage, match=f"^{reason}$"):
        check(data)


@pytest.mark.parametrize(
    "data",
    [
        header() + frame(data=b"\x02" + b"\x01D" * 4_000_000 + b"\x00") + b";",
        header() + b"!\xfe\x00" * 2_700_000 + frame() + b";",
        header() + frame(data=b"\x02" + (b"\xff" + bytes(255)) * 32_000 + b"\x00") + b";",
    ],
    ids=["blocks", "extensions", "full"],
)
def test_eight_megabytes_of_blocks_take_a_fraction_of_a_second(data):
    def check_blocks():
        with suppress(BadImage):
            check(data)

    assert processor_seconds(check_blocks, best_of=1) < 0.5


def test_the_thumbnail_of_a_gif_is_its_first_frame():
    frames = [Image.new("RGB", (40, 20), colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=50)
    made = make_thumbnail(file.getvalue(), max_pixels=MAX_PIXELS)
    assert made is not None
    with Image.open(io.BytesIO(made)) as thumbnail:
        red, _, blue = thumbnail.convert("RGB").getpixel((20, 10))
    assert red > 200 > 60 > blue

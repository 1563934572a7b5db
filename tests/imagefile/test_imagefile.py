"""Image bytes: a complete file passes, any other is rejected; transcoding."""

from __future__ import annotations

import io
import random
import struct
import zlib
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageCms, ImageStat

from gateway.imagefile.check import PNG_SIGNATURE, QUICK_PARTS, check_image, is_quick
from gateway.imagefile.checksum import QUICK_BYTES
from gateway.imagefile.convert import transcode_image
from gateway.imagefile.facts import BadImage, ImageFacts
from gateway.simulator.drawing import draw_image
from tests.examples import examples
from tests.processor import processor_seconds
from tests.rows import each_row

FORMATS = ("png", "jpeg", "webp")


def check(data: bytes) -> ImageFacts:
    return check_image(data, max_bytes=64 * 2**20, max_pixels=33_000_000)


def draw(prompt: str = "an otter", *, format: str = "png", seed: int = 1, **options) -> bytes:
    size = {"width": 48, "height": 32} | options
    return draw_image(prompt, format=format, seed=seed, **size)


def saved(format: str, mode: str = "RGB", size: tuple[int, int] = (40, 30), **options) -> bytes:
    """Noise as encoded by Pillow, the same noise each time."""
    file = io.BytesIO()
    noise = Image.frombytes("RGB", size, random.Random(7).randbytes(size[0] * size[1] * 3))
    noise.convert(mode).save(file, format, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


SAMPLES = {kind: draw(format=kind) for kind in FORMATS}


@settings(max_examples=examples(200), deadline=None)
@given(format=st.sampled_from(FORMATS), part=st.floats(0, 1, exclude_max=True))
def test_any_truncated_image_fails(format, part):
    data = SAMPLES[format]
    with pytest.raises(BadImage):
        check(data[: int(len(data) * part)])


@pytest.mark.parametrize("format", FORMATS)
def test_an_image_without_its_last_bytes_fails(format):
    for missing in range(1, 20):
        with pytest.raises(BadImage):
            check(SAMPLES[format][:-missing])


@settings(max_examples=examples(300), deadline=None)
@given(position=st.integers(0, len(SAMPLES["png"]) - 1), flip=st.integers(1, 255))
def test_any_changed_byte_of_a_png_fails(position, flip):
    data = bytearray(SAMPLES["png"])
    data[position] ^= flip
    with pytest.raises(BadImage):
        check(bytes(data))


@settings(max_examples=examples(300), deadline=None)
@given(
    format=st.sampled_from(FORMATS),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=12),
)
def test_damaged_bytes_raise_nothing_but_bad_image(format, changes):
    data = bytearray(SAMPLES[format])
    for position, value in changes:
        data[position % len(data)] = value
    with suppress(BadImage):
        check(bytes(data))


@settings(max_examples=examples(300), deadline=None)
@given(
    start=st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x00\x00\x00\x00WEBPVP8 "]
    ),
    rest=st.binary(max_size=200),
)
def test_random_bytes_are_rejected(start, rest):
    with pytest.raises(BadImage):
        check(start + rest)


@pytest.mark.parametrize(
    ("format", "mode", "options"),
    [
        ("PNG", "RGBA", {}),
        ("PNG", "1", {}),
        ("PNG", "P", {}),
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "L", {"restart_marker_blocks": 1}),
        ("JPEG", "CMYK", {"quality": 100}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGBA", {}),
        ("WEBP", "RGB", {"xmp": b"noted"}),
    ],
)
def test_every_form_that_encoders_write_passes(format, mode, options):
    data = saved(format, mode, size=(41, 29), **options)
    assert check(data) == ImageFacts(format.lower(), 41, 29)


def test_a_c2pa_chunk_at_the_head_of_a_png_is_accepted():
    data = SAMPLES["png"]
    signed = data[:33] + chunk(b"caBX", bytes(14_000)) + data[33:]
    assert check(signed).width == 48


@pytest.mark.parametrize("format", FORMATS)
def test_bytes_after_the_end_fail(format):
    for junk in (b"\x00", b"junk", b"<html>"):
        with pytest.raises(BadImage):
            check(SAMPLES[format] + junk)


def test_a_webp_of_odd_length_may_lack_its_pad_byte():
    payload = b"\x2f" + struct.pack("<I", 6 | 4 << 14) + b"\x00\x00"
    body = b"WEBP" + b"VP8L" + struct.pack("<I", len(payload)) + payload
    data = b"RIFF" + struct.pack("<I", len(body)) + body
    assert check(data) == ImageFacts("webp", 7, 5)
    assert check(data + b"\x00") == ImageFacts("webp", 7, 5)
    with pytest.raises(BadImage):
        check(data + b"\x00\x00")


HEADER = struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)
SIGNATURE = b"\x89PNG\r\n\x1a\n"
IDAT, IEND = chunk(b"IDAT", b"x"), chunk(b"IEND", b"")


@each_row(
    ("data", "reason"),
    [
        (b"", "neither PNG, JPEG, WebP, GIF nor SVG"),
        (b"BM" + bytes(20), "neither PNG, JPEG, WebP, GIF nor SVG"),
        (b"\x89PNG\r", "neither PNG, JPEG, WebP, GIF nor SVG"),
        (SIGNATURE, "PNG is cut short"),
        (SIGNATURE + chunk(b"IHDR", HEADER) + IEND, "PNG without IDAT"),
        (SIGNATURE + IDAT + IEND, "PNG does not start with IHDR"),
        (SIGNATURE + chunk(b"IHDR", HEADER + b"0") + IDAT + IEND, "PNG with a wrong IHDR"),
        (SIGNATURE + chunk(b"IHDR", HEADER[:8] + b"\x07\x02\0\0\0"), "PNG with a wrong IHDR"),
        (
            SIGNATURE + chunk(b"IHDR", HEADER) * 2 + IDAT + IEND,
            "PNG with a second IHDR",
        ),
        (SIGNATURE + chunk(b"IHDR", bytes(8) + HEADER[8:]) + IDAT + IEND, "no pixels"),
        (
            SIGNATURE + chunk(b"IHDR", HEADER) + IDAT + chunk(b"IEND", b"x"),
            "PNG with a filled IEND",
        ),
        (b"\xff\xd8\xff\xd9", "JPEG without a frame or a scan"),
        (b"\xff\xd8\xff\xe0\x00\x01\xff\xd9", "JPEG with a damaged segment"),
        (b"\xff\xd8\xff\xc0\x00\x05\x08\x00\x01\xff\xd9", "JPEG with a damaged frame header"),
        (b"RIFF\x04\x00\x00\x00WEBP", "WebP with a damaged header"),
        (
            b"RIFF\x16\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00" + bytes(10),
            "WebP without an image",
        ),
        (b"RIFF\xff\x00\x00\x00WEBP", "WebP with a wrong length"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.hex()[:48],
)
def test_the_message_says_why_the_bytes_are_rejected(data, reason):
    with pytest.raises(BadImage, match=f"^{reason}$"):
        check(data)


def test_more_bytes_or_pixels_than_allowed_are_rejected():
    data = SAMPLES["png"]
    with pytest.raises(BadImage, match="larger than 100 bytes"):
        check_image(data, max_bytes=100, max_pixels=10**6)
    with pytest.raises(BadImage, match="48x32 is more than 1535 pixels"):
        check_image(data, max_bytes=10**6, max_pixels=1535)
    assert check_image(data, max_bytes=len(data), max_pixels=1536)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {"quality": 95})])
def test_an_image_of_one_and_a_half_megabytes_is_checked_fast_enough_for_the_event_loop(
    kind, options
):
    """2.5 ms; the bound leaves room for another version of zlib."""
    data = saved(kind, size=(1100, 1100), **options)
    assert processor_seconds(lambda: check(data)) < 0.025


# ── files of very many parts ────────────────────────────────────────────────────────────────

IHDR = chunk(b"IHDR", struct.pack(">IIBBBBB", 10, 10, 8, 2, 0, 0, 0))
SOF = b"\xff\xc0" + struct.pack(">HBHHB", 11, 8, 10, 10, 1) + b"\1\x11\0"
SOS = b"\xff\xda\0\2"


def png_of_parts(count: int) -> bytes:
    parts = chunk(b"IDAT", b"") * (count - 2)
    return b"\x89PNG\r\n\x1a\n" + IHDR + parts + chunk(b"IEND", b"")


def jpeg_of_parts(count: int, part: bytes = b"\xff\xe0\0\2") -> bytes:
    return b"\xff\xd8" + part * (count - 3) + SOF + SOS + b"\xff\xd9"


def webp_of_parts(count: int) -> bytes:
    first = b"VP8L" + struct.pack("<I", 6) + b"\x2f\0\0\0\0\0"
    content = b"WEBP" + first + b"ABCD\0\0\0\0" * (count - 1)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def test_only_a_png_of_few_parts_is_quick():
    assert is_quick(png_of_parts(QUICK_PARTS))
    assert not is_quick(png_of_parts(QUICK_PARTS + 1))
    assert not is_quick(png_of_parts(3) + bytes(QUICK_BYTES))
    assert not is_quick(jpeg_of_parts(4))


@pytest.mark.parametrize("data", [b"", PNG_SIGNATURE, PNG_SIGNATURE + bytes(50), PNG_SIGNATURE[:7]])
def test_damaged_bytes_are_quick_or_not_but_no_error(data):
    is_quick(data)


@pytest.mark.parametrize("write", [png_of_parts, jpeg_of_parts, webp_of_parts])
def test_a_file_of_a_thousand_small_parts_is_accepted_and_one_of_many_more_is_not(write):
    assert check(write(1000)).width
    with pytest.raises(BadImage, match="too many small parts"):
        check(write(1200))


@pytest.mark.parametrize(
    "data",
    [
        png_of_parts(700_000),
        jpeg_of_parts(2_000_000),
        jpeg_of_parts(2_000_000, SOS),
        jpeg_of_parts(4_000_000, b"\xff\x01"),
        jpeg_of_parts(8_000_000, b"\xff"),
        webp_of_parts(1_000_000),
    ],
    ids=["png", "jpeg", "scans", "markers", "fill", "webp"],
)
def test_eight_megabytes_of_small_parts_take_a_fraction_of_a_second(data):
    def check_parts():
        with suppress(BadImage):
            check(data)

    # 2 to 16 s before.
    assert processor_seconds(check_parts, best_of=1) < 0.5


# ── transcoding ─────────────────────────────────────────────────────────────────────────────

OTTER = draw(width=96, height=64)
MAX_PIXELS = 33_000_000
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY = SRGB[:16] + b"GRAY" + SRGB[20:]


def transcode(data: bytes, format: str, *, compression: int = 100, **options: int) -> bytes | None:
    return transcode_image(data, format=format, compression=compression, **options)


def transcoded(data: bytes, format: str, **options: int) -> Image.Image:
    """A transcoded image, checked like an image from upstream and decoded."""
    made = transcode(data, format, **options)
    assert made is not None
    facts = check(made)
    image = Image.open(io.BytesIO(made))
    image.load()
    assert (facts.format, facts.width, facts.height) == (format, *image.size)
    return image


def difference(one: Image.Image, other: Image.Image) -> float:
    """The mean difference of two images' channels, 0…255."""
    return max(ImageStat.Stat(ImageChops.difference(one, other)).mean)


def png_of(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def raw_png(depth: int, colour: int, row: bytes, *extra: bytes, width: int = 4) -> bytes:
    """A PNG of four equal rows, written by hand because Pillow does not write such files."""
    head = struct.pack(">IIBBBBB", width, 4, depth, colour, 0, 0, 0)
    rows = zlib.compress((b"\0" + row) * 4)
    parts = (chunk(b"IHDR", head), *extra, chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return SIGNATURE + b"".join(parts)


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    return png[:33] + b"".join(chunks) + png[33:]


@pytest.mark.parametrize("format", ["jpeg", "webp"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA"])
def test_an_opaque_png_of_any_kind_becomes_the_same_image(format, mode):
    image = Image.open(io.BytesIO(OTTER)).convert(mode, palette=Image.Palette.ADAPTIVE)
    made = transcoded(png_of(image), format)
    assert made.size == image.size
    assert made.mode == ("L" if format == "jpeg" and mode in ("L", "1") else "RGB")
    assert difference(made.convert("RGB"), image.convert("RGB")) < 3


@pytest.mark.parametrize("format", ["jpeg", "webp"])
@pytest.mark.parametrize(
    ("png", "expected"),
    [
        (raw_png(16, 0, b"\x80\xff" * 4), (128, 128, 128)),
        (raw_png(16, 2, b"\x80\xff\x20\xff\x40\xff" * 4), (128, 32, 64)),
        (raw_png(16, 6, b"\x80\xff\x20\xff\x40\xff\xff\xff" * 4), (128, 32, 64)),
        (raw_png(16, 4, b"\x80\xff\xff\xff" * 4), (128, 128, 128)),
    ],
    ids=["grey", "colour", "colour-alpha", "grey-alpha"],
)
def test_sixteen_bits_a_channel_become_eight(format, png, expected):
    made = transcoded(png, format).convert("RGB")
    assert max(abs(a - b) for a, b in zip(made.getpixel((2, 2)), expected, strict=True)) <= 4


TRANSPARENT = {
    "alpha": draw(transparent=True),
    "palette": png_of(Image.new("P", (8, 8)), transparency=0),
    "colour-key": png_of(Image.new("RGB", (8, 8), (1, 2, 3)), transparency=(1, 2, 3)),
    "grey-alpha": png_of(Image.new("LA", (8, 8), (9, 120))),
}


@pytest.mark.parametrize("png", TRANSPARENT.values(), ids=TRANSPARENT.keys())
def test_transparency_is_kept_in_a_webp_and_prevents_a_jpeg(png):
    assert transcode(png, "jpeg") is None
    before, after = Image.open(io.BytesIO(png)).convert("RGBA"), transcoded(png, "webp")
    assert after.mode == "RGBA"
    assert difference(before.getchannel("A"), after.getchannel("A")) < 1


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_less_quality_makes_a_smaller_file(format):
    sizes = [len(transcode(OTTER, format, compression=c) or b"") for c in (0, 1, 50, 89, 90, 100)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 2 * sizes[2] > 2 * sizes[0] > 0


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_the_same_png_gives_the_same_bytes(format):
    assert transcode(OTTER, format, compression=70) == transcode(OTTER, format, compression=70)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_colour_profile_and_orientation_are_kept(format):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(OTTER))
    made = transcoded(png_of(image, icc_profile=SRGB, exif=exif), format)
    assert made.info["icc_profile"] == SRGB
    assert made.getexif()[0x0112] == 6


def test_a_grey_profile_is_kept_in_a_grey_image():
    png = png_of(Image.new("L", (8, 8), 90), icc_profile=GREY)
    assert transcoded(png, "jpeg").info["icc_profile"] == GREY
    assert transcode(png, "webp") is None


def frames(count: int) -> bytes:
    images = [Image.new("RGB", (8, 8), (40 * i, 0, 0)) for i in range(count)]
    return png_of(images[0], save_all=True, append_images=images[1:])


WIDE = {"jpeg": 65_501, "webp": 16_384}


@each_row("format", ["jpeg", "webp"])
@each_row(
    "png",
    [
        frames(2),
        with_chunks(OTTER, chunk(b"cICP", b"\x09\x10\0\x01")),
        with_chunks(OTTER, chunk(b"gAMA", struct.pack(">I", 100_000))),
        raw_png(16, 2, bytes(24), chunk(b"tRNS", bytes(6))),
        OTTER[:-1],
        draw(format="jpeg"),
        b"",
        raw_png(8, 2, b""),
        raw_png(8, 2, bytes(12), chunk(b"IHDR", HEADER)),
        SIGNATURE + chunk(b"IHDR", HEADER) + chunk(b"IDAT", b"not deflated") + IEND,
        with_chunks(OTTER, chunk(b"eXIf", bytes(70_000))),
        *(raw_png(1, 0, bytes(-(-wide // 8)), width=wide) for wide in WIDE.values()),
    ],
    ids=lambda png: f"{len(png)} bytes",
)
def test_a_png_that_would_look_different_is_not_transcoded(format, png):
    is_a_good_jpeg = format == "jpeg" and png.startswith(SIGNATURE) and png[16:20] == b"\0\0\x40\0"
    is_a_good_webp = format == "webp" and b"eXIf" in png
    assert (transcode(png, format) is not None) == (is_a_good_jpeg or is_a_good_webp)


def test_the_default_gamma_changes_nothing():
    plain = with_chunks(OTTER, chunk(b"gAMA", struct.pack(">I", 45_455)))
    named = with_chunks(OTTER, chunk(b"gAMA", struct.pack(">I", 99)), chunk(b"sRGB", b"\0"))
    assert transcode(plain, "jpeg") == transcode(named, "jpeg") == transcode(OTTER, "jpeg")


def test_more_pixels_than_allowed_are_never_decoded(monkeypatch):
    bomb = raw_png(1, 0, bytes(2000), width=16_000)
    assert transcode(bomb, "webp", max_pixels=63_999) is None
    # Pillow's global bound is neither used nor changed.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    made = transcode(bomb, "webp", max_pixels=64_000)
    assert made is not None
    assert check(made).width == 16_000
    assert Image.MAX_IMAGE_PIXELS == 10


@settings(max_examples=examples(200), deadline=None)
@given(
    kind=st.sampled_from([b"IDAT", b"tRNS", b"iCCP", b"PLTE", b"tEXt", b"zTXt", b"iTXt", b"pHYs"]),
    content=st.binary(max_size=40),
    format=st.sampled_from(["jpeg", "webp"]),
)
def test_odd_chunks_give_a_complete_image_or_none(kind, content, format):
    made = transcode(with_chunks(SAMPLES["png"], chunk(kind, content)), format)
    assert made is None or check(made) == ImageFacts(format, 48, 32)


@pytest.mark.parametrize("searched", [2, 3, 7])
def test_the_end_of_a_scan_is_found_wherever_its_pieces_are_divided(monkeypatch, searched):
    monkeypatch.setattr("gateway.imagefile.check._SEARCHED_BYTES", searched)
    frame = b"\xff\xc0\x00\x0b\x08\x00\x10\x00\x10\x01\x01\x11\x00"
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    for length in range(12):
        for coded in (b"\0" * length, b"\xff" * length, b"\xff\0" * length):
            file = b"\xff\xd8" + frame + scan + coded
            facts = check(file + b"\xff\xd9")
            assert facts == ImageFacts("jpeg", 16, 16)
            with pytest.raises(BadImage, match="cut short"):
                check(file)

"""Thumbnails: of every format, and of hostile bytes none."""

from __future__ import annotations

import io
import os
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gateway.imagefile import thumbnail_process
from gateway.imagefile.convert_process import ConversionFailed
from gateway.imagefile.thumbnail import make_thumbnail
from gateway.imagefile.thumbnail_process import ThumbnailProcess
from tests.pngs import write_png

MAX_PIXELS = 33_000_000
RED, BLUE = (250, 10, 10), (10, 10, 250)


def encoded(
    format: str, size: tuple[int, int] = (800, 400), *, mode: str = "RGB", **given: Any
) -> bytes:
    """An image whose left half is red and whose right half is blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    file = io.BytesIO()
    image.convert(mode).save(file, format, **given)
    return file.getvalue()


def opened(thumbnail: bytes | None) -> Image.Image:
    assert thumbnail is not None
    image = Image.open(io.BytesIO(thumbnail))
    assert image.format == "WEBP"
    return image.convert("RGBA")


def is_like(pixel: Any, colour: tuple[int, int, int]) -> bool:
    return all(abs(found - wanted) < 40 for found, wanted in zip(pixel, colour, strict=False))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_every_format_has_a_small_webp(format: str) -> None:
    image = opened(make_thumbnail(encoded(format), max_pixels=MAX_PIXELS))
    assert image.size == (320, 160)
    assert is_like(image.getpixel((20, 80)), RED)
    assert is_like(image.getpixel((300, 80)), BLUE)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "I;16"])
def test_every_kind_of_pixels_can_be_made_smaller(mode: str) -> None:
    if mode == "I;16":
        file = io.BytesIO()
        Image.new("I;16", (640, 640), 40_000).save(file, "PNG")
        image = opened(make_thumbnail(file.getvalue(), max_pixels=MAX_PIXELS))
        assert is_like(image.getpixel((5, 5)), (156, 156, 156))
        return
    image = opened(make_thumbnail(encoded("PNG", (640, 640), mode=mode), max_pixels=MAX_PIXELS))
    assert image.size == (320, 320)


def test_a_small_image_keeps_its_size_and_its_transparency() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (20, 10), (250, 10, 10, 0)).save(file, "PNG")
    image = opened(make_thumbnail(file.getvalue(), max_pixels=MAX_PIXELS))
    assert (image.size, image.getpixel((5, 5))[3]) == ((20, 10), 0)  # type: ignore[index]


def test_the_orientation_is_applied_and_nothing_else_is_kept() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    exif[0x010E] = "a secret"
    data = encoded("JPEG", exif=exif.tobytes(), icc_profile=b"a profile")
    thumbnail = make_thumbnail(data, max_pixels=MAX_PIXELS)
    assert opened(thumbnail).size == (160, 320)
    assert thumbnail is not None
    assert b"secret" not in thumbnail
    assert b"profile" not in thumbnail


def test_an_animation_has_its_first_frame() -> None:
    frames = [Image.new("RGB", (400, 400), colour) for colour in (RED, BLUE, BLUE)]
    for kind in ("GIF", "WEBP"):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:])
        image = opened(make_thumbnail(file.getvalue(), max_pixels=MAX_PIXELS))
        assert is_like(image.getpixel((9, 9)), RED)


def bomb() -> bytes:
    """A PNG of a few kilobytes, of 33,000 × 33,000 pixels."""
    packer = zlib.compressobj(9)
    rows = packer.compress(bytes(1 + 33_000 * 3) * 200) + packer.flush()
    return write_png(33_000, 33_000, rows)


HUGE = b"\xff" * 4
HOSTILE = {
    "no byte": b"",
    "no image": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "another decoder's": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "too many pixels": bomb(),
    "pixels that are missing": write_png(640, 640, zlib.compress(b"few")),
    "pixels that are not packed": write_png(640, 640, b"no zlib"),
    "a GIF of 4 gigapixels": b"GIF89a" + HUGE + bytes(3) + b"," + bytes(4) + HUGE + b"\0\x02\0;",
    "a cut JPEG": encoded("JPEG")[:200],
    "a cut WebP": encoded("WEBP")[:40],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_have_none(name: str) -> None:
    began_at = time.process_time()
    assert make_thumbnail(HOSTILE[name], max_pixels=MAX_PIXELS) is None
    assert time.process_time() - began_at < 1


# ── the process ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def process() -> Iterator[ThumbnailProcess]:
    opened = ThumbnailProcess(max_pixels=MAX_PIXELS)
    yield opened
    opened.close()


def replace_python(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Has a shell script run as Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def test_a_process_makes_several_and_no_hostile_one_ends_it(process: ThumbnailProcess) -> None:
    png = encoded("PNG")
    expected = make_thumbnail(png, max_pixels=MAX_PIXELS)
    assert process.make(png) == expected
    first = process._process
    for data in HOSTILE.values():
        assert process.make(data) is None
    assert process.make(png) == expected
    assert process._process is first
    assert process.idle_seconds < 60
    process.close()
    assert (process._process, process.idle_seconds) == (None, 0.0)


def test_a_process_ends_after_some(
    process: ThumbnailProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thumbnail_process, "MAX_MADE", 2)
    for _ in range(2):
        assert process.make(encoded("GIF")) is not None
    assert process._process is None
    assert process.make(encoded("GIF")) is not None


@pytest.mark.parametrize(
    "script", ["exit 1", "kill -9 $$", "head -c 4000; exit 3", "exec sleep 60"]
)
def test_a_process_that_ends_or_hangs_is_replaced(
    process: ThumbnailProcess, script: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(thumbnail_process, "MAX_SECONDS", 0.3)
    with monkeypatch.context() as patch:
        replace_python(patch, tmp_path, script)
        with pytest.raises(ConversionFailed):
            process.make(encoded("PNG") + bytes(1_000_000))
    monkeypatch.setattr(thumbnail_process, "MAX_SECONDS", 20.0)
    assert process.make(encoded("PNG")) is not None


def test_without_a_process_it_fails(
    process: ThumbnailProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    with pytest.raises(ConversionFailed, match="no process"):
        process.make(encoded("PNG"))


def test_the_process_has_no_secret_low_priority_and_bounded_memory(
    process: ThumbnailProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSTREAM_API_KEY", "sk-secret")
    process.make(encoded("GIF"))
    assert process._process is not None
    proc = Path(f"/proc/{process._process.pid}")
    assert b"sk-secret" not in (proc / "environ").read_bytes()
    assert os.getpriority(os.PRIO_PROCESS, process._process.pid) >= 10
    (limit,) = [
        line.split()[3]
        for line in (proc / "limits").read_text().splitlines()
        if line.startswith("Max address space")
    ]
    assert int(limit) == thumbnail_process.MAX_MEMORY_BYTES

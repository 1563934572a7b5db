"""Transcoding in a process of its own: the same images, and what the process is kept from."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gateway.imagefile.convert import TranscodedFormat, transcode_image
from gateway.imagefile.convert_process import ConversionFailed, transcode_in_process
from gateway.simulator.drawing import draw_image
from tests.pngs import write_png

PNG = draw_image("an otter", format="png", seed=1, width=48, height=32)


def replace_python(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Has a shell script run as Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_it_makes_the_same_bytes_as_in_a_thread(format: TranscodedFormat) -> None:
    made = transcode_in_process(PNG, format=format, compression=80)
    assert made is not None
    assert made == transcode_image(PNG, format=format, compression=80)


@pytest.mark.parametrize("data", [b"", b"no png", write_png(4, 4, b"no pixels")], ids=range(3))
def test_bytes_that_are_no_image_give_none(data: bytes) -> None:
    assert transcode_in_process(data, format="webp", compression=80) is None


@pytest.mark.parametrize(
    "script", ["exit 1", "cat > /dev/null; kill -9 $$", "printf image; exit 3"], ids=range(3)
)
def test_a_process_that_ends_early_fails(
    script: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also if it has not read the image, which is larger than the buffer between them."""
    replace_python(monkeypatch, tmp_path, script)
    with pytest.raises(ConversionFailed):
        transcode_in_process(PNG * 1000, format="jpeg", compression=80)


def test_without_a_process_it_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    with pytest.raises(ConversionFailed, match="no process"):
        transcode_in_process(PNG, format="jpeg", compression=80)


def test_the_process_gets_no_secret_and_no_signal_to_the_gateway(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    session_id = f"{sys.executable} -c 'import os; print(os.getsid(0))'"
    replace_python(monkeypatch, tmp_path, f"cat > /dev/null; env; {session_id}")
    seen = transcode_in_process(PNG, format="jpeg", compression=80)
    assert seen is not None
    *environment, session = seen.decode().splitlines()
    assert any(line.startswith("PYTHONPATH=") for line in environment)
    assert "sk-secret" not in seen.decode()
    assert int(session) != os.getsid(0)

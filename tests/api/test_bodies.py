"""What a worker keeps of the bodies of its answers."""

from __future__ import annotations

import json
from dataclasses import replace

from gateway.api.bodies import MAX_FRAME_BYTES, MAX_FRAMES, Frames, json_body
from gateway.images import Image, ImageRequest, Usage
from gateway.proxy.result import Answer

IMAGE = Image(
    *("1" * 24, "d"), format="png", width=1, height=1, size_bytes=1, created_at=0.0,
    echoed={"size": "1024x1024"}, usage=Usage(text_in=3, image_out=5),
)  # fmt: skip


def body_of(image: Image, frames: Frames, *, reports_all_usage: bool = True) -> dict[str, object]:
    answer = Answer(ImageRequest("m", "p"), "hit", ((image, b"AAAA"),))
    pieces = json_body(
        answer, frames, created=1, public_url="", reports_all_usage=reports_all_usage
    )
    decoded: dict[str, object] = json.loads(b"".join(pieces))
    return decoded


def test_a_kept_frame_is_not_used_for_another_image_or_another_view_of_its_usage() -> None:
    frames = Frames()
    changed = replace(IMAGE, echoed={"size": "1536x1024"})
    for image in (IMAGE, changed, IMAGE):
        for reports_all_usage in (True, False, True):
            fresh = body_of(image, Frames(), reports_all_usage=reports_all_usage)
            assert body_of(image, frames, reports_all_usage=reports_all_usage) == fresh


def test_a_worker_makes_a_frame_once_and_keeps_few() -> None:
    frames = Frames()
    first = frames.of(IMAGE, shows_usage=True)
    assert frames.of(IMAGE, shows_usage=True) is first
    for number in range(2 * MAX_FRAMES):
        frames.of(replace(IMAGE, id=f"{number:024}"), shows_usage=True)
        assert len(frames) <= MAX_FRAMES


def test_a_frame_with_a_long_revised_prompt_is_not_kept() -> None:
    frames = Frames()
    long = replace(IMAGE, revised_prompt="x" * MAX_FRAME_BYTES)
    assert body_of(long, frames) == body_of(long, Frames())
    assert len(frames) == 0
    short = replace(IMAGE, revised_prompt="x" * (MAX_FRAME_BYTES // 2))
    assert frames.of(short, shows_usage=True) is frames.of(short, shows_usage=True)

"""Percent-encoded `data:` URLs: read as `urllib` does, in a multiple of their size."""

from __future__ import annotations

import tracemalloc
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream.openai import encoded_images
from gateway.upstream.openai.encoded_images import decode_image

PARTS = ("%", "%4", "%41", "%ff", "%FF", "%zz", "a", "%%", "=", "ä", " ")


@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=30), st.integers(14, 30))
def test_a_url_is_read_as_urllib_does_wherever_it_is_divided(parts: list[str], size: int) -> None:
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded_images, "_PIECE_BYTES", size)
        patch.setattr(encoded_images, "_MAX_ESCAPE", 3)
        assert decode_image("data:,x" + text) == b"x" + unquote_to_bytes(text)


@pytest.mark.parametrize("parameters", ["image/png", "image/png;base64"])
def test_a_url_of_percent_signs_takes_no_more_memory_than_a_few_of_it(parameters: str) -> None:
    """An object for each would be 80 times as large: gigabytes, for an answer that is allowed."""
    text = f"data:{parameters}," + "%41" * 1_000_000
    tracemalloc.start()
    try:
        assert decode_image(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * len(text)

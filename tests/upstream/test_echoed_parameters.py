"""Parameters that upstream echoes: what is shown of them, and what stays in memory."""

from __future__ import annotations

import gc
import tracemalloc

from tests.scripted_upstream import KEY, PIXELS, REQUEST, client_of, http, images, upstream

MEBIBYTE = 1024 * 1024


async def test_long_ones_are_cut_and_redacted_and_not_remembered() -> None:
    """The redaction of short ones is remembered; long ones would fill the worker's memory."""
    words = [f"{number} {KEY} " + "x" * MEBIBYTE for number in range(6)]
    async with (
        upstream(*(http(200, images(PIXELS, size=word)) for word in words)) as script,
        client_of(script) as client,
    ):
        await client.generate(REQUEST, images=1)
        gc.collect()
        tracemalloc.start()
        try:
            for _ in words[1:]:
                answer = await client.generate(REQUEST, images=1)
                size = answer.echoed["size"]
                assert len(size) <= 128
                assert KEY not in size
                assert size.endswith("…")
            del answer
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert held < 2 * MEBIBYTE

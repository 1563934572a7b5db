"""Whatever form the base64 of upstream has, every answer has that of the image's bytes."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import pytest

from tests.gateways import Client, Reply, make_settings, run_gateway
from tests.http.hostile import Hostile, run_hostile
from tests.pngs import write_png

COMPLETED, PARTIAL = "image_generation.completed", "image_generation.partial_image"
SIZES = (20, 4_000, 300_000)
"""Bytes of pixels. The answer with the last one is received into one buffer."""


def picture(size: int) -> bytes:
    return write_png(16, 16, random.Random(size).randbytes(size))


def in_lines(text: bytes) -> bytes:
    return b"\\n".join(text[start : start + 76] for start in range(0, len(text), 76))


FORMS = {
    "plain": lambda text: text,
    "lines": in_lines,
    "the alphabet of URLs": lambda text: text.translate(bytes.maketrans(b"+/", b"-_")),
    "no padding": lambda text: text.rstrip(b"="),
    "data URL": lambda text: b"data:image/png;base64," + text,
    "escaped slashes": lambda text: text.replace(b"/", b"\\/"),
    "escapes": lambda text: text.replace(b"A", b"\\u0041"),
}


def shown(reply: Reply) -> list[str]:
    """The base64 of an answer or of the events of a stream."""
    text = reply.body.decode()
    if reply.headers["Content-Type"].startswith("text/event-stream"):
        events = [frame.partition("data: ")[2] for frame in text.split("\n\n")]
        return [json.loads(event)["b64_json"] for event in events if event]
    return [image["b64_json"] for image in reply.json["data"]]


@pytest.mark.parametrize("form", FORMS)
async def test_answers_have_the_base64_of_the_bytes(form: str, tmp_path: Path) -> None:
    async with (
        run_hostile() as hostile,
        run_gateway(make_settings(tmp_path / "data", hostile.base_url)) as gateway,
    ):
        alice = await gateway.client.with_key("alice", validation="lenient")
        for size in SIZES:
            await check(alice, hostile, picture(size), form)


async def check(alice: Client, hostile: Hostile, data: bytes, form: str) -> None:
    plain = base64.b64encode(data)
    other = base64.b64encode(picture(7))
    sent, prompt = FORMS[form](plain), f"{form} {len(data)}"
    hostile.answers = []
    hostile.will_answer(b'{"data":[{"b64_json":"%b"}]}' % sent)
    bought = [await alice.ask(prompt) for _ in range(2)]
    bought.append(await alice.ask(prompt, stream=True))
    assert [shown(reply) for reply in bought] == [[plain.decode()]] * 3
    link = await alice.ask(prompt, response_format="url")
    path = link.json["data"][0]["url"].removeprefix(alice.url)
    assert (await alice.send("GET", path)).body == data

    hostile.will_answer(b'{"data":[{"b64_json":"%b"},{"b64_json":"%b"}]}' % (sent, other))
    both = await alice.ask(f"two {prompt}", n=2)
    assert shown(both) == [plain.decode(), other.decode()]

    hostile.will_stream(
        (PARTIAL, {"b64_json": "X", "partial_image_index": 0}), (COMPLETED, {"b64_json": "X"})
    )
    frames = hostile.answers[0].partition(b"\r\n\r\n")[2].replace(b'"X"', b'"%b"' % sent)
    hostile.answers = [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n" % len(frames) + frames
    ]
    streamed = await alice.ask(f"stream {prompt}", stream=True, partial_images=1)
    assert shown(streamed) == [plain.decode()] * 2

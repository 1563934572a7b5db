"""`output_format` of an answer is what its bytes are, whatever upstream says and was asked for."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.api.bodies import Frames, json_body
from gateway.cache.entries import decode_image, encode_image
from gateway.images import Image, ImageRequest
from gateway.proxy.result import Answer
from gateway.simulator.drawing import draw_image
from tests.gateways import Client, InProcess, Reply, make_settings, run_gateway
from tests.http.hostile import Hostile, run_hostile

FORMATS = ("png", "jpeg", "webp")
ENCODED = {
    kind: base64.b64encode(draw_image("a pond", width=48, height=32, format=kind, seed=5)).decode()
    for kind in FORMATS
}
COMPLETED, PARTIAL = "image_generation.completed", "image_generation.partial_image"


@pytest.fixture
async def hostile() -> AsyncIterator[Hostile]:
    async with run_hostile() as opened:
        yield opened


@pytest.fixture
async def gateway(hostile: Hostile, tmp_path: Path) -> AsyncIterator[InProcess]:
    cache = {"derive_formats": True}
    settings = make_settings(tmp_path / "data", hostile.base_url, cache=cache)
    async with run_gateway(settings) as opened:
        yield opened


@pytest.fixture
async def alice(gateway: InProcess) -> Client:
    return await gateway.client.with_key("alice", validation="lenient")


def events(reply: Reply) -> list[dict[str, Any]]:
    frames = reply.body.decode().split("\n\n")
    return [json.loads(frame.partition("data: ")[2]) for frame in frames if "data: " in frame]


async def test_every_answer_says_what_its_bytes_are(alice: Client, hostile: Hostile) -> None:
    """Plain, streamed, from the cache and behind a link, for all that was asked, came and was said.

    Without transcoding: the prompts differ.
    """
    said: list[dict[str, str]] = [{}, {"output_format": "jpeg"}, {"output_format": "gif"}]
    for asked in (None, *FORMATS):
        for came in FORMATS:
            for number, echo in enumerate(said):
                image = {"b64_json": ENCODED[came], **echo}
                body = {"output_format": asked}
                prompt = f"{asked} {came} {number}"

                hostile.will_answer({"data": [{"b64_json": ENCODED[came]}], **echo})
                plain = [await alice.ask(prompt, **body) for _ in range(2)]
                assert [reply.json["output_format"] for reply in plain] == [came, came]
                hit = await alice.ask(prompt, **body, stream=True)
                assert [event["output_format"] for event in events(hit)] == [came]
                link = await alice.ask(prompt, **body, response_format="url")
                path = link.json["data"][0]["url"].removeprefix(alice.url)
                served = await alice.send("HEAD", path)
                assert served.headers["Content-Type"] == f"image/{came}"
                assert f".{came}" in path
                assert link.json["output_format"] == came

                hostile.will_stream(
                    (PARTIAL, {**image, "partial_image_index": 0}), (COMPLETED, image)
                )
                stream = {**body, "stream": True, "partial_images": 1}
                streamed = await alice.ask(f"stream {prompt}", **stream)
                assert [event["output_format"] for event in events(streamed)] == [came, came]


async def test_a_partial_image_of_another_kind_says_what_upstream_says(
    alice: Client, hostile: Hostile
) -> None:
    """Partial images are not checked."""
    other = {"b64_json": base64.b64encode(b"BM, a bitmap").decode(), "output_format": "webp"}
    hostile.will_stream(
        (PARTIAL, {**other, "partial_image_index": 0}), (COMPLETED, {"b64_json": ENCODED["jpeg"]})
    )
    reply = await alice.ask(stream=True, partial_images=1)
    assert [event["output_format"] for event in events(reply)] == ["webp", "jpeg"]


async def test_a_transcoded_image_says_its_own_format(alice: Client, hostile: Hostile) -> None:
    hostile.will_answer({"data": [{"b64_json": ENCODED["png"]}], "output_format": "webp"})
    await alice.ask()
    derived = [await alice.ask(output_format=kind) for kind in ("jpeg", "webp")]
    assert ["detail=derived" in reply.cache_status for reply in derived] == [True, True]
    assert [reply.json["output_format"] for reply in derived] == ["jpeg", "webp"]


async def test_several_images_have_the_format_of_the_first(alice: Client, hostile: Hostile) -> None:
    data = [{"b64_json": ENCODED[kind]} for kind in ("webp", "png")]
    hostile.will_answer({"data": data, "output_format": "jpeg"})
    both = await alice.ask(n=2)
    second = await alice.ask(headers={"X-Gateway-Variation": "1"})
    assert (both.json["output_format"], second.json["output_format"]) == ("webp", "png")


async def test_a_dall_e_answer_has_a_format_only_if_upstream_sends_one(
    alice: Client, hostile: Hostile
) -> None:
    for echo, shown in (({}, None), ({"output_format": "webp"}, "jpeg")):
        hostile.will_answer({"data": [{"b64_json": ENCODED["jpeg"]}], **echo})
        ask = {"model": "dall-e-2", "response_format": "b64_json"}
        reply = await alice.ask(f"{echo}", **ask)
        assert reply.json.get("output_format") == shown


@pytest.mark.parametrize(
    ("said", "shown"),
    [("auto", "48x32"), ("1024x1536", "1024x1536"), ("the largest", None), (None, None)],
)
async def test_a_size_that_is_no_size_is_that_of_the_bytes(
    gateway: InProcess, alice: Client, hostile: Hostile, said: str | None, shown: str | None
) -> None:
    """In answers and in the ledger. A size that upstream omits stays omitted."""
    hostile.will_answer({"data": [{"b64_json": ENCODED["png"]}], "size": said})
    replies = [await alice.ask(size="auto"), await alice.ask(size="auto")]
    assert [reply.json.get("size") for reply in replies] == [shown, shown]
    assert {record.size for record in await gateway.ledger()} == {shown or "auto"}


def test_an_entry_of_an_older_gateway_says_what_its_bytes_are() -> None:
    """It stored the format that upstream said."""
    old = Image(
        *("1" * 24, "d"), format="jpeg", width=1, height=1, size_bytes=1, created_at=0.0,
        echoed={"output_format": "png", "size": "1024x1024"},
    )  # fmt: skip
    answer = Answer(ImageRequest("m", "p"), "hit", ((decode_image(encode_image(old)), b"AAAA"),))
    body = json.loads(b"".join(json_body(answer, Frames(), created=1, public_url="")))
    assert (body["output_format"], body["size"]) == ("jpeg", "1024x1024")

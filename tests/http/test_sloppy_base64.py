"""Base64 that only a lenient decoder reads: upstream charged for the image, so it is kept."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from gateway.upstream.openai import parse_answer
from tests.http.plays import Play, completed, doc, events, house, partial
from tests.pngs import write_png
from tests.processor import watching_loop

GPT = {"model": "gpt-image-2", "quality": "low", "size": "1024x1024"}
DALLE = {"model": "dall-e-2", "size": "1024x1024", "response_format": "b64_json"}
USAGE = {"input_tokens": 9, "output_tokens": 50}


def picture(size: int, *, padding: int = 1) -> bytes:
    """An image with every digit of base64, whose base64 has so much padding."""
    noise = random.Random(size).randbytes(size)
    while (-len(data := write_png(64, 64, noise)) % 3) != padding:
        noise += b"x"
    return data


def lines(text: str, end: str, width: int = 76) -> str:
    return "".join(text[i : i + width] + end for i in range(0, len(text), width))


SMALL, LONG = picture(300), picture(20_000)
BARE = picture(500, padding=2)

KEPT: dict[str, Any] = {
    "strict": lambda t: t,
    "a data URL": lambda t: f"data:image/png;base64,{t}",
    "a data URL in capitals": lambda t: f"DATA:IMAGE/PNG;BASE64,{t}",
    "a data URL with parameters": lambda t: f"data:image/png;name=a.png;charset=utf-8;base64,{t}",
    "a data URL without a type": lambda t: f"data:;base64,{t}",
    "a data URL with white space": lambda t: f" \n data:image/png; base64, {t}",
    "a percent-encoded data URL": lambda t: (
        "data:image/png;base64," + urllib.parse.quote(t, safe="")
    ),
    "a prefix without data": lambda t: f"image/png;base64,{t}",
    "line breaks": lambda t: lines(t, "\n"),
    "CRLF": lambda t: lines(t, "\r\n"),
    "spaces and tabs": lambda t: lines(t, " \t", 64),
    "a data URL with line breaks": lambda t: f"data:image/png;base64,\r\n{lines(t, chr(10))}",
    "the alphabet of URLs": lambda t: t.replace("+", "-").replace("/", "_"),
    "no padding": lambda t: t.rstrip("="),
    "the alphabet of URLs without padding": lambda t: (
        t.replace("+", "-").replace("/", "_").rstrip("=")
    ),
    "too much padding": lambda t: t + "==",
    "padding in another line": lambda t: t.rstrip("=") + "\n==\n",
    "a NUL at its end": lambda t: t + "\0",
    "NULs and a line break at its end": lambda t: t + "\0\0\n",
    "a byte order mark": lambda t: "\ufeff" + t,
}

REFUSED: dict[str, Any] = {
    "another character within": lambda t: t[:40] + "!" + t[40:],
    "another character behind the padding": lambda t: t + "!",
    "text behind the padding": lambda t: t + "AAAA",
    "a digit less": lambda t: t.rstrip("=")[:-1],
    "a digit more": lambda t: t.rstrip("=") + "AAAA"[: 1 + (-len(t.rstrip("=")) % 4)],
    "another digit": lambda t: t[:60] + ("A" if t[60] != "A" else "B") + t[61:],
    "half of it": lambda t: t[: len(t) // 8 * 4],
    "nothing but a prefix": lambda t: "data:image/png;base64,",
    "no comma": lambda t: "data:image/png;base64" + t,
}


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("form", KEPT)
async def test_an_image_that_only_a_lenient_decoder_reads_is_kept(
    tmp_path: Path, form: str
) -> None:
    """In answers and streams, small and large, in `b64_json` and, as a `data:` URL, in `url`."""
    write = KEPT[form]
    async with house(tmp_path / "data", None) as (gateway, script):
        alice = await gateway.client.with_key()
        wanted: dict[str, bytes] = {}
        asked = []
        for size, data in (("small", SMALL), ("long", LONG), ("bare", BARE)):
            text = write(encode(data))
            element = {"b64_json": text}
            script.plays[f"{size}"] = [doc(data=[element], usage=USAGE)]
            escaped = json.dumps({"data": [element]}).replace("/", "\\/").replace("+", "\\u002B")
            script.plays[f"{size}, escaped"] = [Play(200, escaped.encode())]
            script.plays[f"{size}, streamed"] = [
                events(partial(**element), completed(**element, usage=USAGE))
            ]
            wanted |= dict.fromkeys([size, f"{size}, escaped", f"{size}, streamed"], data)
            if "data:" in text.lower():
                script.plays[f"{size}, as url"] = [doc(data=[{"url": text}])]
                wanted[f"{size}, as url"] = data
        for prompt in wanted:
            more = {"stream": True, "partial_images": 1} if "streamed" in prompt else {}
            asked.append(alice.ask(prompt, **(DALLE if "url" in prompt else GPT), **more))
        replies = dict(zip(wanted, await asyncio.gather(*asked), strict=True))
        hits = {p: await alice.ask(p, **(DALLE if "url" in p else GPT)) for p in wanted}
        records = {record.id: record for record in await gateway.ledger()}

    assert {prompt: hit.status for prompt, hit in hits.items()} == dict.fromkeys(wanted, 200)
    for prompt, data in wanted.items():
        encoded = encode(data)
        assert hits[prompt].cache_status.startswith("hit"), prompt
        assert hits[prompt].images == [encoded], prompt
        if "streamed" in prompt:
            assert replies[prompt].body.count(encoded.encode()) == 2, prompt
        else:
            assert replies[prompt].images == [encoded], prompt
    assert {r.outcome for r in records.values()} == {"bought", "hit"}


@pytest.mark.parametrize("form", REFUSED)
async def test_base64_that_means_no_image_is_refused_as_before(tmp_path: Path, form: str) -> None:
    async with house(tmp_path / "data", None) as (gateway, script):
        alice = await gateway.client.with_key()
        for name, data in (("small", SMALL), ("long", LONG), ("bare", BARE)):
            element = {"b64_json": REFUSED[form](encode(data))}
            script.plays[name] = [doc(data=[element], usage=USAGE)]
            script.plays[f"{name} stream"] = [events(completed(**element, usage=USAGE))]
        names = list(script.plays)
        replies = await asyncio.gather(
            *(alice.ask(name, stream="stream" in name, **GPT) for name in names)
        )
        records = await gateway.ledger()

    assert [r.status for r in replies] == [200 if "stream" in n else 502 for n in names]
    assert {record.flags for record in records} == {("undelivered",)}
    assert {record.cost_micros for record in records} == {9 * 5 + 50 * 30}


async def test_a_data_url_that_is_percent_encoded_bytes_is_the_image(tmp_path: Path) -> None:
    async with house(tmp_path / "data", None) as (gateway, script):
        alice = await gateway.client.with_key()
        url = "data:image/png," + urllib.parse.quote(SMALL, safe="")
        script.plays["otter"] = [doc(data=[{"url": url}])]
        reply = await alice.ask("otter", **DALLE)
    assert reply.images == [encode(SMALL)]


async def test_an_image_in_a_data_url_is_answered_as_a_link_of_the_gateway(tmp_path: Path) -> None:
    async with house(tmp_path / "data", None) as (gateway, script):
        alice = await gateway.client.with_key()
        url = "data:image/png;base64," + encode(LONG)
        script.plays["otter"] = [doc(data=[{"url": url, "revised_prompt": "an otter"}])]
        reply = await alice.ask("otter", model="dall-e-2")
        (image,) = reply.json["data"]
        async with alice.session.get(image["url"]) as shown:
            data = await shown.read()
    assert image["url"].startswith("http://")
    assert image["revised_prompt"] == "an otter"
    assert data == LONG


async def test_literal_line_breaks_within_a_string_of_json_are_read(tmp_path: Path) -> None:
    async with house(tmp_path / "data", None) as (gateway, script):
        alice = await gateway.client.with_key()
        for name, data in (("small", SMALL), ("long", LONG)):
            text = lines(encode(data), "\r\n")
            script.plays[name] = [Play(200, b'{"data":[{"b64_json":"%s"}]}' % text.encode())]
        replies = [await alice.ask(name, **GPT) for name in ("small", "long")]
    assert [reply.images for reply in replies] == [[encode(SMALL)], [encode(LONG)]]


@pytest.mark.timed
@pytest.mark.parametrize("form", ["strict", "CRLF", "the alphabet of URLs", "escaped"])
async def test_a_large_image_is_read_leniently_without_holding_the_loop(form: str) -> None:
    data = random.Random(1).randbytes(24 * 1024 * 1024)
    text = KEPT.get(form, KEPT["CRLF"])(encode(data))
    body = json.dumps({"data": [{"b64_json": text}]})
    if form == "escaped":
        body = body.replace("/", "\\/").replace("+", "\\u002B")
    encoded = body.encode()

    def parse() -> bytes | None:
        return parse_answer(encoded, images=1, upstream_request_id=None).images[0].data

    async with watching_loop() as held:
        started = time.perf_counter()
        found = await asyncio.to_thread(parse)
        seconds = time.perf_counter() - started
    assert found == data
    assert held.seconds < 0.1
    assert seconds < 6

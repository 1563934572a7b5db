"""Models without a row under `unknown_models: passthrough`: forwarded unchecked, never for free."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml

from tests.catalogs import read_shipped
from tests.gateways import Client, InProcess, PolicyFile, make_settings, read_spent, run_gateway
from tests.pngs import write_png
from tests.scripted_upstream import Reply, Upstream, http, images, upstream

WORST = 700_000
PRICE = {"usd_per_image": "0.70"}
MODEL = "acme/flux-9"


@dataclass(frozen=True)
class Pass:
    """A gateway that forwards unknown models to a scripted upstream, with a client."""

    gateway: InProcess
    alice: Client
    script: Upstream

    async def ask(self, *replies: Reply, client: Client | None = None, **body: Any) -> Any:
        """Sends a request for the model, to which upstream gives the next replies."""
        if replies:
            self.script.replies[:] = replies
        given = {"model": MODEL, "prompt": "an owl", **body}
        return await (client or self.alice).ask(**given)

    async def send(self, text: str) -> Any:
        """Sends a body as it is."""
        headers = {"Content-Type": "application/json"}
        path = "/v1/images/generations"
        return await self.alice.send("POST", path, data=text.encode(), headers=headers)

    def sent(self) -> list[bytes]:
        """The bodies that upstream has received since the last call."""
        bodies, self.script.bodies[:] = list(self.script.bodies), []
        return bodies


OpenPass: TypeAlias = Callable[..., AbstractAsyncContextManager[Pass]]


@pytest.fixture
def open_pass(tmp_path: Path, store_url: str | None) -> OpenPass:
    @asynccontextmanager
    async def open_it(
        name: str = "alice", dialect: str = "openai", **changes: Any
    ) -> AsyncIterator[Pass]:
        table = read_shipped() | {"unknown_models": "passthrough", "unknown_price": PRICE} | changes
        path = tmp_path / "models.yaml"
        path.write_text(yaml.safe_dump(table, sort_keys=False))
        async with upstream(answer()) as script:
            settings = make_settings(
                tmp_path / "data",
                script.url,
                store_url,
                upstream={"dialect": dialect},
                rehost={"allow": ["127.0.0.1"]},
            )
            async with run_gateway(settings, policy=PolicyFile(path)) as gateway:
                yield Pass(gateway, await gateway.client.with_key(name), script)

    return open_it


def pixels(width: int, text: bytes = b"") -> bytes:
    return write_png(width, 16, text)


def answer(*files: bytes, **fields: Any) -> bytes:
    body = images(*(files or (pixels(16),)), **fields)
    return http(200, body, Content_Type="application/json")


def raw_answer(*elements: Any) -> bytes:
    body = json.dumps({"created": 1, "data": list(elements)})
    return http(200, body.encode(), Content_Type="application/json")


def encoded(file: bytes) -> str:
    return base64.b64encode(file).decode()


AS_WRITTEN = (
    '{"watermark":true,"prompt":"an owl","guidance":7.50,"seed":0,"size":"2K","quality":"auto",'
    '"model":"acme/flux-9","n":2.0,"user":"ann","background":null,"extra":{"b":[1e2,"\u00e4"],"a":-0},'
    '"stream":false,"safety_identifier":{"of":1.0}}'
)
EQUAL = (
    '{"model":"acme/flux-9","n":2,"prompt":"an owl","watermark":true,"guidance":75e-1,"seed":0.0,'
    '"size":"2K","quality":"auto","background":null,"extra":{"a":0,"b":[100,"\\u00e4"]},'
    '"user":"bob"}'
)


async def test_a_body_is_forwarded_as_it_came_and_is_the_cache_key_as_a_whole(
    open_pass: OpenPass,
) -> None:
    async with open_pass() as way:
        way.script.replies[:] = [answer(pixels(16), pixels(32))]
        bought, (sent,) = await way.send(AS_WRITTEN), way.sent()
        equal = await way.send(EQUAL)
        assert way.sent() == []
        others = [
            EQUAL.replace(*change)
            for change in (
                (',"seed":0.0', ""),
                ('"seed":0.0', '"seed":"0"'),
                ('"watermark":true', '"watermark":1'),
                (',"background":null', ""),
                ('"quality":"auto",', ""),
                ('"n":2,', ""),
                ('"guidance":75e-1', '"guidance":7.5000000000000000001'),
                ("an owl", "an owl "),
            )
        ]
        for body in others:
            assert (await way.send(body)).status == 200, body
        misses = len(way.sent())
        dry = await way.alice.send(
            "POST",
            "/v1/images/generations",
            data=EQUAL.encode(),
            headers={"Content-Type": "application/json", "Prefer": "dry-run"},
        )
        models = (await way.alice.send("GET", "/v1/models")).json["data"]
        one = await way.alice.send("GET", "/v1/models/flux-9")
        metrics = await way.alice.metrics()
        document = (await way.alice.send("GET", "/openapi.json")).json
        record = (await way.gateway.ledger())[0]

    assert bought.status == equal.status == 200, bought.body
    members = sent.removeprefix(b"{").removesuffix(b"}").decode()
    assert json.loads(sent) == {
        name: value for name, value in json.loads(AS_WRITTEN).items() if name != "stream"
    }
    for text in ('"guidance":7.50', '"n":2.0', "1e2", "-0", '{"of":1.0}', '"background":null'):
        assert text in members
    assert bought.cache_status == "fwd=miss; stored"
    assert equal.cache_status.startswith("hit")
    assert equal.images == bought.images == [encoded(pixels(16)), encoded(pixels(32))]
    assert misses == len(others)
    assert bought.headers["x-gateway-cost-usd"] == "1.400000"
    assert (record.flags, record.cost_micros) == (("unknown_price",), 2 * WORST)
    assert (record.model, record.n, record.user) == (MODEL, 2, "ann")
    assert dry.json["hit"] is True
    assert MODEL not in {model["id"] for model in models}
    assert one.status == 404
    assert any('model="other"' in name for name in metrics if "upstream_requests_total" in name)
    assert not any(MODEL in name for name in metrics)
    schemas = document["components"]["schemas"]
    assert any(
        "forwarded unchecked" in s.get("description", "")
        for s in schemas["GenerationRequest"]["anyOf"]
    )


BAD = (
    ({"model": "x" * 257}, "model"),
    ({"model": "a\nb"}, "model"),
    ({"model": ""}, "model"),
    ({"model": 7}, "model"),
    ({"n": 0}, "n"),
    ({"n": 11}, "n"),
    ({"n": "2"}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": True}, "n"),
    ({"stream": "yes"}, "stream"),
    ({"stream": True, "n": 2}, "input"),
    ({"partial_images": 4}, "partial_images"),
    ({"partial_images": False}, "partial_images"),
)


async def test_what_the_gateway_acts_on_is_checked_and_a_key_keeps_to_its_models(
    open_pass: OpenPass,
) -> None:
    async with open_pass() as way:
        for body, param in BAD:
            reply = await way.ask(**body)
            assert (reply.status, reply.error["param"]) == (400, param), (body, reply.body)
        limited = await way.alice.with_key("bob", models=["gpt-image-2", MODEL])
        assert (await way.ask(client=limited)).status == 200
        refused = await way.ask(client=limited, model="acme/flux-8")
        assert (refused.status, refused.error["code"]) == (403, "model_not_found")
        lenient = await way.alice.with_key("carol", validation="lenient")
        assert (await way.ask(client=lenient)).cache_status.startswith("hit")
        capped = await way.ask(prompt="b", headers={"X-Gateway-Max-Cost-USD": "0.69"})
        assert capped.error["code"] == "max_cost_exceeded"
        key = {"Idempotency-Key": "one"}
        first = await way.ask(prompt="c", headers=key)
        again = await way.ask(prompt="c", headers=key)
        other = await way.ask(prompt="c", seed=1, headers=key)
        assert (first.status, again.headers["idempotent-replayed"]) == (200, "true")
        assert other.error["code"] == "idempotency_key_reused"
        deployed = await way.alice.send(
            "POST", "/openai/deployments/flux-7/images/generations", json={"prompt": "d"}
        )
        assert deployed.status == 200, deployed.body
        assert json.loads(way.sent()[-1])["model"] == "flux-7"
        poor = await way.alice.with_key("poor", limits={"usd_per_day": 1.5})
        asked = [way.ask(client=poor, prompt=f"e{i}") for i in range(4)]
        assert sorted([r.status for r in await asyncio.gather(*asked)]) == [200, 200, 429, 429]
        without_prompt = await way.ask(prompt=None, image_url="https://example.org/a.png")
        assert without_prompt.status == 200
        assert json.loads(way.sent()[-1])["prompt"] is None
    async with open_pass("dora", unknown_price="deny") as way:
        denied = await way.ask()
        assert (denied.status, denied.error["code"]) == (403, "unknown_price")
        assert "a row with `billing`" in denied.error["message"]
        assert way.sent() == []


async def test_images_beyond_n_are_kept_charged_and_served_together(open_pass: OpenPass) -> None:
    five = [pixels(16 * (i + 1)) for i in range(5)]
    elements: list[Any] = [{"b64_json": encoded(file)} for file in five]
    elements[2:2] = [{"error": {"code": "sensitive"}}]
    async with open_pass() as way:
        bought, hit = (
            await way.ask(raw_answer(*elements), max_images=5),
            await way.ask(max_images=5),
        )
        spent = await read_spent(way.gateway.settings, way.alice.key_id)
        stream = await way.ask(stream=True, max_images=5)
        varied = await way.ask(max_images=5, headers={"X-Gateway-Variation": "1"})
        again = await way.ask(max_images=5)
        fresh = await way.ask(
            answer(pixels(8)), max_images=5, headers={"Cache-Control": "no-cache"}
        )
        latest = await way.ask(max_images=5)
        many = await way.ask(answer(*[pixels(16, b"%d" % i) for i in range(40)]), seed=2)
        records = await way.gateway.ledger()
    assert bought.images == hit.images == again.images == [encoded(file) for file in five]
    assert bought.headers["x-gateway-cost-usd"] == "3.500000"
    assert hit.headers["x-gateway-saved-usd"] == "3.500000"
    assert spent.usd_micros == 5 * WORST
    assert stream.status == 200
    assert stream.body.count(b"image_generation.completed") >= 1
    assert varied.images == bought.images
    assert fresh.images == latest.images == [encoded(pixels(8))]
    assert len(many.images) == 16
    # One of its elements had an error in place of an image, and cost nothing.
    assert {r.flags for r in records if r.images == 5} == {("unknown_price", "over_estimate")}
    assert [r.flags for r in records if r.images == 16] == [
        ("unknown_price", "over_estimate", "undelivered")
    ]


async def test_links_streams_and_answer_formats(open_pass: OpenPass) -> None:
    event = {"type": "image_generation.completed", "b64_json": encoded(pixels(16)), "created_at": 1}
    partial = event | {"type": "image_generation.partial_image", "partial_image_index": 0}
    stream = b"".join(b"data: %b\n\n" % json.dumps(each).encode() for each in (partial, event))
    file = http(200, pixels(48), Content_Type="image/png")
    async with open_pass() as way:
        streamed = await way.ask(
            http(200, stream, Content_Type="text/event-stream"), stream=True, partial_images=1
        )
        body = json.loads(way.sent()[0])
        link = {"url": way.script.url.removesuffix("/v1") + "/a.png"}
        linked = await way.ask(raw_answer(link), file, response_format="url")
        shown = await way.alice.send(
            "GET", linked.json["data"][0]["url"].removeprefix(way.alice.url)
        )
        way.sent()
    assert (body["stream"], body["partial_images"]) == (True, 1)
    assert b"partial_image" in streamed.body
    assert shown.body == pixels(48)


async def test_a_client_that_names_a_raster_format_is_given_no_document(
    open_pass: OpenPass,
) -> None:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="5" height="5"/>'
    async with open_pass("erin") as way:
        drawn = [
            await way.ask(answer(svg), seed=seed, **named)
            for seed, named in enumerate(({}, {"output_format": None}, {"output_format": "vector"}))
        ]
        refused = [
            await way.ask(answer(svg), output_format=name) for name in ("png", "JPG", "webp", "gif")
        ]
    assert [reply.images for reply in drawn] == [[encoded(svg)]] * 3
    for reply in refused:
        assert (reply.status, reply.headers["x-gateway-cost-usd"]) == (502, "0.700000")


CLONE = {"images": "output.images", "raw_image": True}


async def test_a_service_answers_with_a_file_or_a_list_of_another_name(open_pass: OpenPass) -> None:
    """Only if its row says so: `data:` URLs and base64 are read everywhere."""
    files = [pixels(16), pixels(32, b"\0" * 5000), pixels(48, b"\1" * 9000), pixels(64)]
    prefix = "data:image/png;base64,"
    async with open_pass(
        "carl", "clone", dialects=read_shipped()["dialects"] | {"clone": CLONE}
    ) as way:
        link = way.script.url.removesuffix("/v1") + "/a.png"
        elements = [
            prefix + encoded(files[0]),
            encoded(files[1]),
            {"b64_json": prefix + encoded(files[2])},
            {"url": prefix + encoded(files[3])},
            link,
        ]
        text = json.dumps({"output": {"images": elements}, "usage": None})
        listed = http(200, text.encode(), Content_Type="application/json")
        file = http(200, pixels(80), Content_Type="image/png")
        several = await way.ask(listed, file, n=5)
        raw = await way.ask(file, prompt="raw")
        prologue = b'<?xml version="1.0" encoding="UTF-8"?>\n<!-- by %b -->\n' % (b"hand " * 99)
        svg = prologue + b'<svg xmlns="http://www.w3.org/2000/svg"/>'
        drawn = await way.ask(http(200, svg, Content_Type="image/svg+xml"), prompt="svg")
        cut = await way.ask(http(200, pixels(80)[:-9], Content_Type="image/png"), prompt="cut")
        page = http(200, b"<html>oops</html>", Content_Type="image/png")
        no_image = await way.ask(page, prompt="no image")
        usual = await way.ask(answer(pixels(96)), prompt="usual")
        failed = http(200, b'{"error":{"message":"no"}}', Content_Type="application/json")
        error = await way.ask(failed, prompt="error")
        records = {record.request_id: record for record in await way.gateway.ledger()}
    async with open_pass("dora") as way:
        refused = [await way.ask(reply, prompt=str(i)) for i, reply in enumerate((file, listed))]
    assert several.images == [encoded(one) for one in (*files, pixels(80))]
    assert drawn.images == [encoded(svg)]
    assert (raw.images, usual.images) == ([encoded(pixels(80))], [encoded(pixels(96))])
    for reply in (cut, no_image, *refused):
        assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    for reply in (cut, no_image):
        record = records[reply.headers["x-request-id"]]
        assert (record.cost_micros, record.flags) == (WORST, ("unknown_price", "undelivered"))
    assert error.error["message"].startswith("no ")

"""GIF and SVG as image files: bought, served again, linked, rejected, flagged."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from PIL import Image

from gateway.catalog import Catalog
from tests.gateways import (
    ADMIN_TOKEN,
    Client,
    InProcess,
    PolicyFile,
    Reply,
    Upstream,
    make_settings,
    run_gateway,
    run_upstream,
)

MODEL = "stork-1"

ROWS = """
default_model: stork-1
default_gpt_model: stork-1
unknown_models: reject
prices_as_of: 2026-11-01
text_models: {gpt-5.6-sol: {text_in: "5.00", text_out: "30.00"}}
unknown_text_model: {text_in: "10.00", text_out: "50.00"}
models:
  stork-1:
    created: 1790000000
    owned_by: pond
    cache_epoch: 1
    prompt_max_characters: 1000
    parameters:
      n: {type: integer, min: 1, max: 4, default: 1}
      quality: {type: choice, values: [plain], default: plain}
      size: {type: choice, values: [512x512, 768x512], default: 512x512}
      output_format: {type: choice, values: [png, jpeg, gif, svg], default: png}
      frame_count: {type: integer, min: 2, max: 16, default: 9}
      frame_duration_ms: {type: integer, min: 20, max: 2000, default: 200}
      svg:
        type: object
        fields:
          model: {type: string, max_length: 64}
          reasoning: {type: object, fields: {effort: {type: choice, values: [low, max]}}}
      response_format: {type: choice, values: [b64_json, url], default: b64_json}
      stream: {type: boolean, default: false}
    rules:
      - when: {output_format: {equals: gif}, stream: {equals: true}}
        error: {message: A GIF cannot be streamed, param: stream}
      - when: {output_format: {equals: svg}, stream: {equals: true}}
        error: {message: An SVG cannot be streamed, param: stream}
    billing:
      by: tokens
      usd_per_million_tokens: {text_in: "1.00", image_in: "1.00", image_out: "50.00"}
      output_tokens: {512x512: {plain: 100}, 768x512: {plain: 150}}
      partial_image_tokens: 0
      dearest_size: 768x512
      svg_max_tokens: {low: 4000, max: 9000}
      svg_input_tokens: 2000
"""

GIF_POLICY = "default-src 'none'; sandbox"
SVG_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


@cache
def policy(folder: Path) -> PolicyFile:
    (folder / "models.yaml").write_text(yaml.safe_dump(yaml.safe_load(ROWS), sort_keys=False))
    return PolicyFile(folder / "models.yaml")


@dataclass(frozen=True)
class Pond:
    """A gateway with the row, and what is behind it."""

    gateway: InProcess
    upstream: Upstream
    alice: Client
    another: AbstractAsyncContextManager[InProcess]
    """A second gateway on the same store."""

    async def ask(self, prompt: str, **body: object) -> Reply:
        return await self.alice.ask(prompt, **{"model": MODEL, **body})

    async def admin_get(self, path: str, **headers: str) -> Reply:
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", **headers}
        return await self.alice.send("GET", path, headers=headers)

    async def show(self, link: str, method: str = "GET", **headers: str) -> Reply:
        async with self.alice.session.request(method, link, headers=headers) as response:
            return Reply(response.status, response.headers, await response.read())


@pytest.fixture
async def pond(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, store_url: str | None
) -> AsyncIterator[Pond]:
    rows = policy(tmp_path_factory.getbasetemp())
    catalog: Catalog = rows.read_policy().catalog
    async with run_upstream(catalog) as upstream:
        settings = make_settings(
            tmp_path / "data",
            upstream.base_url,
            store_url,
            upstream={"breaker": {"failures": 0}},
            rehost={"allow": ["127.0.0.1"]},
        )
        async with run_gateway(settings, policy=rows) as gateway:
            alice = await gateway.client.with_key("alice")
            yield Pond(gateway, upstream, alice, run_gateway(settings, policy=rows))


def id_of(reply: Reply) -> str:
    return reply.headers["x-gateway-image-ids"]


def link_of(reply: Reply) -> str:
    return reply.json["data"][0]["url"]


async def test_gif_and_svg_are_bought_once_and_served_as_files(pond: Pond) -> None:
    files: dict[str, bytes] = {}
    for kind in ("png", "gif", "svg"):
        bought = await pond.ask("an otter", output_format=kind, frame_count=3)
        assert (bought.status, bought.cache_status) == (200, "fwd=miss; stored"), bought.body
        assert bought.json["output_format"] == kind
        files[kind] = base64.b64decode(bought.images[0])
    assert len(await pond.upstream.bodies()) == 3, "none of them was transcoded from another"
    with Image.open(io.BytesIO(files["gif"])) as gif:
        assert (gif.n_frames, gif.info["duration"], gif.size) == (3, 200, (32, 32))
    assert files["svg"].startswith(b'<svg xmlns="http://www.w3.org/2000/svg"')

    async with pond.another as there:
        elsewhere = Client(there.client.url, there.client.session, pond.alice.secret)
        for kind, media_type, policy in (
            ("gif", "image/gif", GIF_POLICY),
            ("svg", "image/svg+xml", SVG_POLICY),
        ):
            asked = {"model": MODEL, "output_format": kind, "frame_count": 3}
            hit = await elsewhere.ask("an otter", **asked)
            assert hit.cache_status.startswith("hit")
            assert base64.b64decode(hit.images[0]) == files[kind]

            link = link_of(await pond.ask("an otter", response_format="url", **asked))
            assert urlsplit(link).path.endswith(f"img-{id_of(hit)}.{kind}")
            await assert_is_served(pond, link, files[kind], media_type, policy)
            no_stream = await pond.ask("an otter", stream=True, **asked)
            assert (no_stream.status, no_stream.error["param"]) == (400, "stream")
    assert len(await pond.upstream.bodies()) == 3


async def assert_is_served(
    pond: Pond, link: str, data: bytes, media_type: str, policy: str
) -> None:
    shown = await pond.show(link)
    kind, is_svg = urlsplit(link).path.rpartition(".")[2], media_type == "image/svg+xml"
    disposition = "attachment" if is_svg else "inline"
    expected = {
        "Content-Type": media_type,
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Accept-Ranges": "bytes",
        "Content-Length": str(len(data)),
    }
    assert (shown.status, shown.body) == (200, data)
    assert {name: shown.headers[name] for name in expected} == expected
    assert shown.headers["Content-Disposition"].startswith(f"{disposition}; filename=")
    assert shown.headers["Content-Disposition"].endswith(f'.{kind}"')

    head = await pond.show(link, "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert {name: head.headers[name] for name in expected} == expected
    part = await pond.show(link, Range="bytes=3-9")
    assert (part.status, part.body) == (206, data[3:10])
    assert part.headers["Content-Security-Policy"] == policy
    same = await pond.show(link, **{"If-None-Match": shown.headers["ETag"]})
    assert (same.status, same.body) == (304, b"")
    other = await pond.show(link.removesuffix(kind) + "png")
    assert other.status in (403, 404), "the format is signed too"

    # What operators see.
    image_id = urlsplit(link).path.rpartition("img-")[2].partition(".")[0]
    one = (await pond.admin_get(f"/admin/images/{image_id}")).json
    assert (one["format"], one["active"], one["bytes"]) == (kind, [], len(data))
    file = await pond.admin_get(f"/admin/images/{image_id}/file")
    assert (file.body, file.headers["Content-Type"]) == (data, media_type)
    assert file.headers["Content-Disposition"].startswith(disposition)
    assert file.headers["Content-Security-Policy"] == policy
    thumbnail = await pond.admin_get(f"/admin/images/{image_id}/thumbnail")
    if is_svg:
        assert (thumbnail.status, thumbnail.error["code"]) == (404, "no_thumbnail")
    else:
        assert (thumbnail.status, thumbnail.headers["Content-Type"]) == (200, "image/webp")


async def test_links_replays_and_take_downs_know_the_types(pond: Pond) -> None:
    for kind in ("gif", "svg"):
        asked = {"output_format": kind, "response_format": "url"}
        # Upstream answers with a link of its own, of the right type.
        bought, again = [
            await pond.ask("a heron", headers={"Idempotency-Key": kind}, **asked) for _ in range(2)
        ]
        assert (bought.status, again.status) == (200, 200), bought.body
        assert again.headers["idempotent-replayed"] == "true"
        shown = [await pond.show(link_of(reply)) for reply in (bought, again)]
        assert shown[0].body == shown[1].body
        assert shown[0].headers["Content-Type"].startswith(f"image/{kind}")

        several = await pond.ask("two herons", n=2, output_format=kind)
        assert len(set(several.images)) == 2

        taken = await pond.alice.admin(
            "POST", "/admin/cache/takedown", {"image": link_of(bought), "prompt": False}
        )
        assert taken.status == 200, taken.body
        assert (await pond.show(link_of(bought))).status == 410
        assert not (await pond.ask("a heron", **asked)).cache_status.startswith("hit")


DAMAGES = (
    "gif-no-trailer",
    "gif-frames",
    "svg-dtd",
    "svg-entity",
    "svg-depth",
    "svg-tag",
    "svg-cut",
)


async def test_damaged_files_are_charged_and_undelivered(pond: Pond) -> None:
    for fault in DAMAGES:
        prompt = f"{fault} [[sim:{fault}]]"
        refused = await pond.ask(prompt, output_format=fault[:3], frame_count=2)
        assert refused.status == 502, (fault, refused.body)
        assert float(refused.headers["x-gateway-cost-usd"]) > 0.005
        assert refused.headers["x-should-retry"] == "false"
    records = await pond.gateway.ledger()
    assert len(records) == len(DAMAGES)
    for record in records:
        assert (record.outcome, "undelivered" in record.flags) == ("failed", True)
        assert record.cost_micros > 5000

    # Of several images the good ones are delivered.
    partly = await pond.ask("half [[sim:one-bad]]", n=3, output_format="svg")
    assert (partly.status, len(partly.images)) == (200, 2)
    assert "undelivered" in (await pond.gateway.ledger())[-1].flags
    failures = (await pond.admin_get("/admin/upstream")).body.decode()
    assert "SVG" in failures


async def test_active_content_is_kept_and_flagged(pond: Pond) -> None:
    bought = await pond.ask("a stork [[sim:svg-active]]", output_format="svg")
    plain = await pond.ask("a stork", output_format="svg")
    data = base64.b64decode(bought.images[0])
    assert b"<script>" in data
    assert b"@import" in data
    hit = await pond.ask("a stork [[sim:svg-active]]", output_format="svg", response_format="url")
    assert hit.cache_status.startswith("hit")
    shown = await pond.show(link_of(hit))
    assert shown.body == data, "byte for byte"
    assert shown.headers["Content-Security-Policy"] == SVG_POLICY
    assert shown.headers["Content-Disposition"].startswith("attachment")

    listed = (await pond.admin_get("/admin/images")).json["data"]
    active = {image["id"]: image["active"] for image in listed}
    assert active == {
        id_of(bought): ["script", "references", "foreign-content"],
        id_of(plain): [],
    }
    flagged = ["active_svg" in record.flags for record in await pond.gateway.ledger()]
    assert sorted(flagged) == [False, False, True]

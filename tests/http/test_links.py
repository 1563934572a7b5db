"""The gateway's own links: they outlive upstream's, and serve the same bytes as base64."""

from __future__ import annotations

import asyncio
import base64
import time
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway.imagefile.convert import transcode_image
from gateway.simulator import server
from gateway.simulator.links import LINK_SECONDS
from tests.gateways import Client, InProcess, Reply, Upstream
from tests.http.conftest import OpenGateway

DALLE = "dall-e-3"


def link_of(reply: Reply) -> str:
    """The link of the first image of an answer."""
    return reply.json["data"][0]["url"]


async def show(client: Client, link: str, method: str = "GET", **headers: str) -> Reply:
    """Requests a link, without a key."""
    async with client.session.request(method, link, headers=headers) as response:
        return Reply(response.status, response.headers, await response.read())


async def test_a_link_works_after_upstreams_link_has_expired(
    alice: Client, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await alice.ask(model=DALLE)
    link = link_of(first)
    later = SimpleNamespace(time=lambda: time.time() + 2 * LINK_SECONDS, monotonic=time.monotonic)
    monkeypatch.setattr(server, "time", later)
    again = await alice.ask(model=DALLE)
    shown = await show(alice, link)

    assert (first.status, shown.status) == (200, 200)
    assert first.cache_status == "fwd=miss; stored"
    assert again.cache_status.startswith("hit")
    assert link_of(again) == link
    assert again.headers["x-gateway-cost-usd"] == "0.000000"
    assert shown.headers["Content-Type"] == "image/png"
    assert len(await upstream.bodies()) == 1


async def test_link_and_base64_are_the_same_bytes(alice: Client, upstream: Upstream) -> None:
    """In either order of purchase."""
    as_link = await alice.ask("a pond", model=DALLE)
    as_base64 = await alice.ask("a pond", model=DALLE, response_format="b64_json")
    other_base64 = await alice.ask("a lake", model=DALLE, response_format="b64_json")
    other_link = await alice.ask("a lake", model=DALLE, response_format="url")

    assert (await show(alice, link_of(as_link))).body == base64.b64decode(as_base64.images[0])
    assert (await show(alice, link_of(other_link))).body == base64.b64decode(other_base64.images[0])
    assert [as_base64.cache_status[:3], other_link.cache_status[:3]] == ["hit", "hit"]
    assert [body.get("response_format") for body in await upstream.bodies()] == [None, "b64_json"]


async def test_the_answer_has_the_fields_that_upstream_sent_beside_its_link(alice: Client) -> None:
    reply = await alice.ask("a pond", model=DALLE)
    (image,) = reply.json["data"]

    assert set(image) == {"url", "revised_prompt"}
    assert reply.headers["x-gateway-image-ids"] in image["url"]
    assert urlsplit(image["url"]).path.endswith(".png")


async def test_another_gateway_on_the_store_serves_the_link_too(
    open_gateway: OpenGateway,
) -> None:
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key()
        parts = urlsplit(link_of(await alice.ask(model=DALLE)))
        shown = await show(there.client, f"{there.client.url}{parts.path}")
    assert shown.status == 200


async def test_links_start_with_the_public_url(open_gateway: OpenGateway) -> None:
    public = "https://images.example.com/team"
    async with open_gateway(server={"public_url": public}) as here:
        alice = await here.client.with_key()
        link = link_of(await alice.ask(model=DALLE))
    assert link.startswith(f"{public}/images/")
    assert urlsplit(link).query == ""


async def test_a_link_to_an_evicted_image_works_at_every_gateway(
    open_gateway: OpenGateway,
) -> None:
    """The worker that returns the link has the image in memory, and stores it again."""
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key()
        image = (await alice.ask(model=DALLE)).headers["x-gateway-image-ids"]
        indexed = await here.gateway.cache.image_index.find(image)
        assert indexed is not None
        await here.gateway.cache.blobs.delete([indexed.digest])
        again = await alice.ask(model=DALLE)
        parts = urlsplit(link_of(again))
        shown = await show(there.client, f"{there.client.url}{parts.path}")
    assert again.cache_status.startswith("hit")
    assert shown.status == 200


@pytest.mark.parametrize("n", [1, 3])
async def test_several_images_have_several_links(alice: Client, n: int) -> None:
    reply = await alice.ask("ponds", model="dall-e-2", n=n)
    links = [image["url"] for image in reply.json["data"]]
    shown = [(await show(alice, link)).body for link in links]
    assert len(set(links)) == len(set(shown)) == n


async def test_a_host_with_a_quote_is_refused_and_one_with_an_apostrophe_is_valid(
    alice: Client,
) -> None:
    refused = await alice.ask("a pond", model=DALLE, headers={"Host": 'a"b'})
    reply = await alice.ask("a pond", model=DALLE, headers={"Host": "a'b"})

    assert (refused.status, reply.cache_status) == (400, "fwd=miss; stored")
    assert link_of(reply).startswith("http://a'b/images/")


# ── links that cannot be fetched ────────────────────────────────────────────────────────────


async def test_a_link_that_cannot_be_fetched_is_charged_and_recorded(
    alice: Client, gateway: InProcess
) -> None:
    reply = await alice.ask("[[sim:expired-url]] a pond", model=DALLE)
    (record,) = await gateway.ledger()
    metrics = await alice.metrics()

    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    assert reply.headers["x-should-retry"] == "false"
    assert reply.headers["x-gateway-cost-usd"] == "0.040000"
    assert (record.outcome, record.flags, record.cost_micros) == (
        "failed",
        ("undelivered",),
        40_000,
    )
    assert sum(v for name, v in metrics.items() if name.startswith("gateway_rehost_total")) == 1


# ── take-down and purge ─────────────────────────────────────────────────────────────────────


async def admin(client: Client, path: str, **body: Any) -> Reply:
    return await client.admin("POST", f"/admin/cache/{path}", body)


async def test_an_image_that_was_taken_down_is_neither_served_nor_stored_again(
    alice: Client, gateway: InProcess, upstream: Upstream
) -> None:
    prompt = "[[sim:same-bytes]] a pond"
    first = await alice.ask(prompt, model=DALLE)
    taken = await admin(alice, "takedown", image=link_of(first))
    shown = await show(alice, link_of(first))
    again = await alice.ask(prompt, model=DALLE)
    *_, record = await gateway.ledger()

    assert (taken.status, taken.json["images"]) == (200, 1)
    assert (shown.status, shown.error["code"]) == (410, "image_gone")
    assert (again.status, again.error["code"]) == (403, "content_taken_down")
    assert again.headers["x-should-retry"] == "false"
    assert (record.outcome, record.flags, record.cost_micros) == (
        "failed",
        ("undelivered",),
        40_000,
    )
    assert len(await upstream.bodies()) == 2


@pytest.mark.parametrize("naming", ["id", "link", "path", "query", "fragment", "name", "slot"])
async def test_a_take_down_accepts_every_name_of_an_image(alice: Client, naming: str) -> None:
    reply = await alice.ask("a pond", model=DALLE)
    link, fingerprint = link_of(reply), reply.headers["Cache-Status"].partition('key="')[2][:-1]
    names = {
        "id": reply.headers["x-gateway-image-ids"],
        "link": link,
        "path": urlsplit(link).path,
        "query": f"{link}?w=200",
        "fragment": f"{link}#top",
        "name": link.rpartition("/")[2],
        "slot": f"{fingerprint}/0",
    }
    taken = await admin(alice, "takedown", image=names[naming])
    assert (taken.status, taken.json["images"]) == (200, 1)
    assert (await show(alice, link)).status == 410


@pytest.mark.parametrize("form", ["{link}?from=/{other}", "{link}#/{other}", "http://x/?u={link}"])
async def test_a_take_down_is_of_the_image_that_the_link_shows(alice: Client, form: str) -> None:
    """Whatever image a query behind the link names."""
    shown, other = [
        link_of(await alice.ask(prompt, model=DALLE))
        for prompt in ("the reported image", "an image of another client")
    ]
    given = form.format(link=shown, other=other.rpartition("/")[2])

    assert (await admin(alice, "takedown", image=given)).status == 200

    assert [(await show(alice, link)).status for link in (shown, other)] == [410, 200]


async def test_a_take_down_empties_every_slot_with_the_same_bytes(alice: Client) -> None:
    """Two requests were answered with the same bytes."""
    replies = [
        await alice.ask("[[sim:same-bytes]] a pond", model=DALLE, quality=quality)
        for quality in ("standard", "hd")
    ]
    taken = await admin(alice, "takedown", image=link_of(replies[1]))
    shown = [await show(alice, link_of(reply)) for reply in replies]
    assert taken.json["images"] == 2
    assert [reply.status for reply in shown] == [410, 410]


async def test_a_prompt_that_was_taken_down_is_not_bought_again(
    alice: Client, upstream: Upstream, gateway: InProcess
) -> None:
    first = await alice.ask("a pond", n=2)
    image = first.headers["x-gateway-image-ids"].split(",")[0]
    taken = await admin(alice, "takedown", image=image, prompt=True)
    again = await alice.ask("a pond")
    *_, record = await gateway.ledger()

    assert taken.json["images"] == 2
    assert (again.status, again.error["code"]) == (403, "content_taken_down")
    assert again.headers["x-gateway-cost-usd"] == "0.000000"
    assert (record.outcome, record.cost_micros) == ("refused", 0)
    assert len(await upstream.bodies()) == 1


async def test_a_take_down_keeps_the_other_images_of_the_entry(
    alice: Client, upstream: Upstream
) -> None:
    first = await alice.ask("a pond", n=2)
    image = first.headers["x-gateway-image-ids"].split(",")[0]
    await admin(alice, "takedown", image=image)
    again = await alice.ask("a pond", n=2)

    assert again.cache_status == "fwd=partial; stored"
    assert again.images[1] == first.images[1]
    assert again.images[0] != first.images[0]
    assert [body.get("n", 1) for body in await upstream.bodies()] == [2, 1]


async def test_a_purge_empties_slots_and_keeps_links(alice: Client, upstream: Upstream) -> None:
    first = await alice.ask("a pond", model=DALLE)
    fingerprint = first.headers["Cache-Status"].partition('key="')[2][:-1]
    purged = await admin(alice, "purge", fingerprint=fingerprint)
    again = await alice.ask("a pond", model=DALLE)

    assert purged.json.items() >= {"images": 1, "done": True}.items()
    assert (await show(alice, link_of(first))).status == 200
    assert again.cache_status == "fwd=miss; stored"
    assert len(await upstream.bodies()) == 2


async def test_a_purge_selects_images_by_model_or_all_images(alice: Client) -> None:
    for model in (DALLE, "gpt-image-2"):
        await alice.ask("a pond", model=model)
        await alice.ask("a lake", model=model)
    of_model = await admin(alice, "purge", model=DALLE)
    other = await alice.ask("a pond", model="gpt-image-2")
    everything = await admin(alice, "purge", all=True)

    assert of_model.json["images"] == 2
    assert other.cache_status.startswith("hit")
    assert everything.json["images"] == 2


BAD = [
    ("purge", {}, "missing_required_parameter", "fingerprint"),
    ("purge", {"tag": "a", "model": "b"}, "missing_required_parameter", "exactly one"),
    ("purge", {"tags": "a"}, "unknown_parameter", "'tag'"),
    ("purge", {"all": False}, "invalid_value", "true"),
    ("purge", {"model": 3}, "invalid_value", "string"),
    ("takedown", {}, "invalid_value", "FINGERPRINT/SLOT"),
    ("takedown", {"image": "no such thing!"}, "invalid_value", "its id"),
    ("takedown", {"image": "abc", "prompts": True}, "unknown_parameter", "'prompt'"),
    ("takedown", {"image": "abc", "prompt": "yes"}, "invalid_value", "true or false"),
]


@pytest.mark.parametrize(("path", "body", "code", "word"), BAD)
async def test_the_error_of_a_bad_request_names_the_expected_value(
    embedded: InProcess, path: str, body: dict[str, Any], code: str, word: str
) -> None:
    reply = await embedded.client.admin("POST", f"/admin/cache/{path}", body)
    assert (reply.status, reply.error["code"]) == (400, code)
    assert word in reply.error["message"]


async def test_an_unknown_image_is_404(alice: Client) -> None:
    link = f"http://x/images/k.1.{'A' * 43}/img-abc.png"
    for image in ("0" * 24, "a" * 64 + "/0", "http://x/images/img-abc.png?a=b", link):
        reply = await admin(alice, "takedown", image=image)
        assert (reply.status, reply.error["code"]) == (404, "image_not_found")
    assert reply.error["message"] == "There is no image 'abc'."


# ── transcoded formats ──────────────────────────────────────────────────────────────────────


async def test_formats_are_transcoded_from_a_png_and_taken_down_with_it(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway(cache={"derive_formats": True}) as here:
        alice = await here.client.with_key()
        png = await alice.ask("a pond")
        jpeg = await alice.ask("a pond", output_format="jpeg", output_compression=70)
        again = await alice.ask("a pond", output_format="jpeg", output_compression=70)
        webp = await alice.ask("a pond", output_format="webp")
        image = png.headers["x-gateway-image-ids"]
        taken = await admin(alice, "takedown", image=image)
        after = await alice.ask("a pond", output_format="jpeg", output_compression=70)
        records = await here.ledger()

    assert "detail=derived" in jpeg.cache_status
    assert jpeg.cache_status.startswith("hit")
    assert again.cache_status.startswith("hit; ttl=")
    assert "derived" not in again.cache_status
    assert again.images == jpeg.images
    assert base64.b64decode(jpeg.images[0]).startswith(b"\xff\xd8\xff")
    assert base64.b64decode(webp.images[0])[8:12] == b"WEBP"
    assert jpeg.json["output_format"] == "jpeg"
    assert jpeg.headers["x-gateway-cost-usd"] == "0.000000"
    assert taken.json["images"] == 3
    assert after.cache_status == "fwd=miss; stored"
    assert len(await upstream.bodies()) == 2
    assert [r.outcome for r in records if r.cost_micros] == ["bought", "bought"]


async def test_a_transparent_image_is_transcoded_to_webp(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway(cache={"derive_formats": True}) as here:
        alice = await here.client.with_key()
        await alice.ask("a pond", background="transparent")
        webp = await alice.ask("a pond", background="transparent", output_format="webp")
    assert "detail=derived" in webp.cache_status
    assert len(await upstream.bodies()) == 1


async def test_without_the_setting_every_format_is_bought(
    alice: Client, upstream: Upstream
) -> None:
    await alice.ask("a pond")
    jpeg = await alice.ask("a pond", output_format="jpeg")
    assert jpeg.cache_status == "fwd=miss; stored"
    assert len(await upstream.bodies()) == 2


async def test_concurrent_requests_for_one_format_transcode_once(
    open_gateway: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def transcode(*args: Any, **options: Any) -> bytes | None:
        calls.append(options)
        return transcode_image(*args, **options)

    monkeypatch.setattr("gateway.cache.transcoding.transcode_in_process", transcode)
    async with open_gateway(cache={"derive_formats": True}) as here:
        alice = await here.client.with_key()
        await alice.ask("a pond")
        asking = [alice.ask("a pond", output_format="jpeg") for _ in range(8)]
        replies = await asyncio.gather(*asking)

    assert {reply.cache_status.partition(";")[0] for reply in replies} == {"hit"}
    assert len(calls) == 1

"""`/admin/images`: what is in the cache, with what it saved, newest first."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image

from tests.gateways import ADMIN_TOKEN, Client, InProcess, Reply, Upstream
from tests.http.conftest import OpenGateway
from tests.http.test_dashboard import Browser
from tests.stores import usual_store
from tests.waiting import eventually

store_url = usual_store("redis")


async def listed(client: Client, **query: Any) -> list[Mapping[str, Any]]:
    """The images of a search, all pages of it."""
    found: list[Mapping[str, Any]] = []
    after = None
    while True:
        page = await client.send(
            "GET",
            "/admin/images",
            params={**query, **({"after": after} if after else {})},
            headers={"Authorization": f"Bearer {ADMIN_TOKEN}"},
        )
        assert page.status == 200, page.body
        found += page.json["data"]
        after = page.json["after"]
        if after is None:
            return found


async def admin_get(client: Client, path: str, **headers: str) -> Reply:
    return await client.send(
        "GET", path, headers={"Authorization": f"Bearer {ADMIN_TOKEN}", **headers}
    )


def id_of(reply: Reply) -> str:
    return reply.headers["x-gateway-image-ids"]


class TestList:
    async def test_an_image_has_its_origin_its_slot_and_what_it_saved(
        self, gateway: InProcess, alice: Client
    ) -> None:
        bob = await alice.with_key("bob", team="art")
        asked = {"quality": "low", "size": "1024x1024", "headers": {"X-Gateway-Tags": "a,b"}}
        bought = await bob.ask("an otter", **asked)
        for _ in range(3):
            await alice.ask("an otter", **asked)
        with_link = await alice.ask("a pond", model="dall-e-3")
        await gateway.gateway.cache.image_hits.write()

        pond, otter = await listed(alice)
        cost = float(bought.headers["x-gateway-cost-usd"])
        assert {**otter, "created_at": 0, "expires_at": 0, "last_hit_at": 0, "url": ""} == {
            "id": id_of(bought),
            "created_at": 0,
            "model": "gpt-image-2",
            "size": "1024x1024",
            "quality": "low",
            "format": "png",
            "bytes": otter["bytes"],
            "width": otter["width"],
            "height": otter["height"],
            "key": "bob",
            "key_id": bob.key_id,
            "team": "art",
            "tags": ["a", "b"],
            "cost_usd": cost,
            "hits": 3,
            "saved_usd": round(3 * cost, 6),
            "last_hit_at": 0,
            "fingerprint": otter["fingerprint"],
            "slot": 0,
            "expires_at": 0,
            "state": "cached",
            "transcoded": False,
            "active": [],
            "prompt": None,
            "revised_prompt": None,
            "url": "",
        }
        assert otter["created_at"] <= otter["last_hit_at"] < otter["expires_at"]
        assert (pond["key"], pond["hits"], pond["last_hit_at"]) == ("alice", 0, None)
        assert pond["revised_prompt"] is None, "upstream's text is a prompt too"
        assert pond["url"] == with_link.json["data"][0]["url"]
        one = await admin_get(alice, f"/admin/images/{id_of(bought)}")
        assert one.json == otter

    async def test_images_are_filtered_and_paged(self, gateway: InProcess, alice: Client) -> None:
        bob = await alice.with_key("bob")
        wide, square = "1536x1024", "1024x1024"
        sent = [
            (client, size, tag, (await client.ask(f"{n}", size=size, **tagged(tag))))
            for n, (client, size, tag) in enumerate(
                (client, size, tag)
                for tag in ("x", "y", "")
                for size in (wide, square)
                for client in (alice, bob)
            )
        ]
        newest_first = sent[::-1]

        async def ids(**query: Any) -> list[str]:
            return [image["id"] for image in await listed(alice, **query)]

        assert await ids(limit=5) == [id_of(reply) for *_, reply in newest_first]
        assert await ids(key="bob", limit=1) == [
            id_of(reply) for client, *_, reply in newest_first if client is bob
        ]
        assert await ids(key_id=bob.key_id, size=wide, tag="x", model="gpt-image-2") == [
            id_of(sent[1][3])
        ]
        assert await ids(size=square, tag="y", limit=1) == [id_of(sent[7][3]), id_of(sent[6][3])]
        assert await ids(tag="unknown") == await ids(key="x", size=wide) == []
        times = {image["id"]: image["created_at"] for image in await listed(alice)}
        for at in {int(time.time()), *map(int, times.values())}:
            assert await ids(since=at) == [each for each in times if times[each] >= at]
            assert await ids(until=at, limit=2) == [each for each in times if times[each] < at]
        for wrong in ("limit=0", "after=x", "state=cached", "since=soon"):
            refused = await admin_get(alice, f"/admin/images?{wrong}")
            assert refused.status == 400, wrong
        assert (await alice.send("GET", "/admin/images")).status == 401

    async def test_the_state_is_that_of_the_entry(self, gateway: InProcess, alice: Client) -> None:
        kept, purged, taken = [await alice.ask(prompt) for prompt in ("a", "b", "c")]
        displaced = id_of(kept)
        again = await alice.ask("a", headers={"Cache-Control": "no-cache"})
        fingerprint = (await listed(alice))[-2]["fingerprint"]
        await alice.admin("POST", "/admin/cache/purge", {"fingerprint": fingerprint})
        await alice.admin("POST", "/admin/cache/takedown", {"image": id_of(taken)})

        states = {image["id"]: (image["state"], image["slot"]) for image in await listed(alice)}
        assert states == {
            displaced: ("cached", 1),
            id_of(again): ("cached", 0),
            id_of(purged): ("purged", None),
        }
        for path in ("", "/thumbnail", "/file"):
            gone = await admin_get(alice, f"/admin/images/{id_of(taken)}{path}")
            assert (gone.status, gone.error["code"]) == (410, "image_gone")
            unknown = await admin_get(alice, f"/admin/images/unknown{path}")
            assert (unknown.status, unknown.error["code"]) == (404, "image_not_found")


def tagged(tag: str) -> dict[str, Any]:
    return {"headers": {"X-Gateway-Tags": tag}} if tag else {}


class TestBytes:
    async def test_a_thumbnail_is_a_small_webp(self, gateway: InProcess, alice: Client) -> None:
        bought = await alice.ask("an otter")
        path = f"/admin/images/{id_of(bought)}/thumbnail"
        shown, *others = await asyncio.gather(*(admin_get(alice, path) for _ in range(5)))
        with Image.open(io.BytesIO(shown.body)) as image:
            assert (image.format, max(image.size) <= 320) == ("WEBP", True)
        assert {other.body for other in others} == {shown.body}
        assert shown.headers["Content-Type"] == "image/webp"
        assert shown.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
        again = await admin_get(alice, path, **{"If-None-Match": shown.headers["ETag"]})
        assert (again.status, again.body) == (304, b"")

    async def test_a_file_is_the_image_and_can_do_nothing(
        self, gateway: InProcess, alice: Client
    ) -> None:
        bought = await alice.ask("an otter")
        path = f"/admin/images/{id_of(bought)}/file"
        shown = await admin_get(alice, path)
        assert shown.body == base64.b64decode(bought.images[0])
        wanted = {
            "Content-Type": "image/png",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "Cache-Control": "private, no-cache",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        assert {name: shown.headers[name] for name in wanted} == wanted
        assert shown.headers["Content-Disposition"].startswith("inline")
        saved = await admin_get(alice, f"{path}?download")
        name = f'attachment; filename="img-{id_of(bought)}.png"'
        assert saved.headers["Content-Disposition"] == name
        part = await admin_get(alice, path, Range="bytes=1-3")
        assert (part.status, part.body) == (206, b"PNG")
        again = await admin_get(alice, path, **{"If-None-Match": shown.headers["ETag"]})
        assert (again.status, again.body) == (304, b"")

    async def test_an_image_that_cannot_be_decoded_has_no_thumbnail(
        self, gateway: InProcess, alice: Client
    ) -> None:
        bought = await alice.ask("an otter")
        indexed = await gateway.gateway.cache.image_index.find(id_of(bought))
        assert indexed is not None
        thumbnails = gateway.gateway.cache.thumbnails
        assert await thumbnails.load(indexed.digest, "svg") == b""
        thumbnails._remember(indexed.digest, b"")
        shown = await admin_get(alice, f"/admin/images/{id_of(bought)}/thumbnail")
        assert (shown.status, shown.error["code"]) == (404, "no_thumbnail")


class TestChanges:
    async def test_a_transcoded_image_belongs_to_the_buyer_of_its_source(
        self, open_gateway: OpenGateway
    ) -> None:
        async with open_gateway(cache={"derive_formats": True}) as here:
            bob = await here.client.with_key("bob")
            alice = await here.client.with_key("alice")
            bought = await bob.ask(headers={"X-Gateway-Tags": "a"})
            made = await alice.ask(output_format="webp", output_compression=80)
            await here.gateway.cache.image_hits.write()
            webp, png = await by_id(alice, made, bought)
            assert (webp["transcoded"], webp["cost_usd"], webp["hits"]) == (True, 0.0, 1)
            assert webp["saved_usd"] == png["cost_usd"] > 0
            assert (webp["key"], webp["tags"], webp["format"]) == ("bob", [], "webp")
            assert webp["created_at"] == png["created_at"]
            await alice.admin("POST", "/admin/cache/takedown", {"image": id_of(bought)})
            assert await listed(alice) == []

    async def test_followers_and_links_count_as_hits(
        self, gateway: InProcess, alice: Client, upstream: Upstream
    ) -> None:
        async with upstream.hold():
            asked = [asyncio.create_task(alice.ask("an otter")) for _ in range(4)]
            await gateway.until_leased(4)
        bought = [await each for each in asked]
        await alice.ask("an otter", response_format="url", model="dall-e-3")
        again = await alice.ask("an otter", response_format="url", model="dall-e-3")
        await gateway.gateway.cache.image_hits.write()
        link, otter = await by_id(alice, again, bought[0])
        assert (otter["hits"], link["hits"]) == (3, 1)
        records = await gateway.ledger()
        saved = sum(record.saved_micros for record in records)
        assert round(otter["saved_usd"] + link["saved_usd"], 6) == saved / 1e6

    async def test_an_evicted_image_leaves_the_list_and_an_expired_one_stays(
        self, open_gateway: OpenGateway
    ) -> None:
        async with open_gateway(cache={"ttl": "1s"}) as here:
            alice = await here.client.with_key("alice")
            first, second = [await alice.ask(prompt) for prompt in ("a", "b")]
            await eventually(partial(has_states, alice, {"expired"}))
            (kept,) = [one for one in await listed(alice) if one["id"] == id_of(second)]
            here.gateway.cache.blobs._total_bytes = kept["bytes"] + 1
            await here.gateway.cache.blobs.evict_to_bound()
            assert [one["id"] for one in await listed(alice)] == [id_of(second)]
            gone = await admin_get(alice, f"/admin/images/{id_of(first)}")
            assert gone.status == 410

    async def test_prompts_are_stored_only_if_that_is_switched_on(
        self, open_gateway: OpenGateway
    ) -> None:
        prompt = {"model": "dall-e-3", "prompt": "a secret otter " + 60 * "in a pond "}
        async with open_gateway() as off:
            alice = await off.client.with_key("alice")
            before = await alice.ask(**prompt)
        async with open_gateway(cache={"store_prompts": True}) as on:
            alice = replace(alice, url=on.client.url, session=on.client.session)
            bought = await alice.ask(**prompt, headers={"Cache-Control": "no-cache"})
            with_prompt, without = await by_id(alice, bought, before)
            assert with_prompt["prompt"] == prompt["prompt"][:500]
            assert with_prompt["revised_prompt"]
            assert (without["prompt"], without["revised_prompt"]) == (None, None)
            whole = await admin_get(alice, f"/admin/images/{id_of(bought)}")
            assert whole.json["prompt"] == prompt["prompt"]
        async with open_gateway() as off:
            alice = replace(alice, url=off.client.url, session=off.client.session)
            assert {one["prompt"] for one in await listed(alice)} == {None}


class TestOwnImages:
    async def test_the_holder_of_a_key_sees_what_this_key_bought(
        self, gateway: InProcess, alice: Client
    ) -> None:
        """Also if another key's image is its hit: the scope is global."""
        bob = await alice.with_key("bob")
        mine, hers = await bob.ask("mine"), await alice.ask("hers")
        hit = await bob.ask("hers")
        assert hit.cache_status.startswith("hit")
        browser = await Browser(gateway.client).sign_in(token=bob.secret)
        shown = await browser.send("GET", "/dashboard/api/images?size=1024x1024&tag=")
        assert [one["id"] for one in shown.json["data"]] == [id_of(mine)]
        for path in ("", "/thumbnail", "/file"):
            own = await browser.send("GET", f"/dashboard/api/images/{id_of(mine)}{path}")
            assert own.status == 200
            other = await browser.send("GET", f"/dashboard/api/images/{id_of(hers)}{path}")
            unknown = await browser.send("GET", f"/dashboard/api/images/unknown{path}")
            assert (
                (other.status, other.error) == (unknown.status, unknown.error) == (404, other.error)
            )
        for refused in ("key=alice", "key_id=x"):
            reply = await browser.send("GET", f"/dashboard/api/images?{refused}")
            assert reply.status == 400
        assert (await browser.send("GET", "/dashboard/api/admin/images")).status in (401, 403)


async def by_id(client: Client, *replies: Reply) -> list[Mapping[str, Any]]:
    found = {one["id"]: one for one in await listed(client)}
    return [found[id_of(reply)] for reply in replies]


async def has_states(client: Client, states: set[str]) -> bool:
    return {one["state"] for one in await listed(client)} == states

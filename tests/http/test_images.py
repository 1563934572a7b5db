"""`/admin/images`: what is in the cache, with what it saved, newest first."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Mapping
from typing import Any

from PIL import Image

from tests.gateways import ADMIN_TOKEN, Client, InProcess, Reply


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
            "model": "gpt-image-1.5",
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
        assert await ids(key_id=bob.key_id, size=wide, tag="x", model="gpt-image-1.5") == [
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

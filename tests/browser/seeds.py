"""What a gateway has after 30 days: keys in teams, spend, images, refusals, failures, events.

Keys, limits and images are made through the front door. The ledger's records of past days are
written as a gateway writes them. The same seed makes the same data.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

from gateway.images import Record
from tests.gateways import Client, InProcess
from tests.month import RecordWriter, TrafficKey, traffic

SEED = 17
DAY = 86_400.0
DAYS = 30
AT_ONCE = 8

PEOPLE = (
    *("alice", "bob", "carla", "dmitri", "elif", "farid", "greta", "hiro", "ines", "jonas"),
    *("kemal", "lena", "mario", "nadia", "otto", "priya", "quentin", "rosa", "sven", "tara"),
    *("uli", "vera", "wanda", "xenia", "yusuf", "zoe"),
)
USES = ("", "-ci", "-batch", "-laptop", "-bot", "-notebook", "@example.com", "-staging", "-figma")
TEAMS = ("art", "marketing", "research", "shop", "game studio", "docs", "growth", "design-systems")
MODELS = ("gpt-image-2", "gpt-image-2-2026-04-21")
SUBJECTS = (
    "an otter with a pearl earring",
    "a lighthouse in the fog, oil on canvas",
    "an isometric office in soft light",
    "a red bicycle against a white wall",
    "a product photo of a teapot",
    "a fox in the snow, watercolour",
    "a poster for a jazz night",
    "a greenhouse on Mars",
)


@dataclass(frozen=True)
class Size:
    """How much there is."""

    keys: int
    images: int
    records: int


SMALL = Size(keys=30, images=40, records=600)
FULL = Size(keys=500, images=10_000, records=20_000)
DRAWN = 90
"""Images in full size, for which `draw_images` needs an upstream that draws them."""


async def seed(gateway: InProcess, size: Size) -> list[Client]:
    """Fills an empty gateway; returns a client with each key."""
    clients = await make_keys(gateway.client, size.keys)
    await write_ledger(gateway, size.records)
    await buy_images(clients[:20], size.images)
    await be_refused(clients[0], clients[1])
    await fold_and_verify(gateway)
    return clients


# ── keys ────────────────────────────────────────────────────────────────────────────────────


async def make_keys(client: Client, count: int) -> list[Client]:
    """Keys with and without limits, and a limit of each team, of which one is raised."""
    dice = random.Random(SEED)
    names = [f"{person}{use}" for use, person in product(USES, PEOPLE)]
    names += [f"service {number}" for number in range(count)]
    made = []
    for number, name in enumerate(names[:count]):
        made.append(await client.with_key(name, **_key(number, dice)))
    for number, team in enumerate(TEAMS):
        limits = {"usd_per_month": 300 + 100 * number}
        await _admin(client, "PATCH", f"/admin/teams/{team}", {"limits": limits})
    raised = {"scope": "key:alice", "limit": "usd_per_month", "amount": 20, "reason": "a launch"}
    await _admin(client, "POST", "/admin/limits/raise", {**raised, "until": _in_days(7)})
    await _admin(client, "PATCH", "/admin/limits", _everyone())
    return made


def _key(number: int, dice: random.Random) -> dict[str, Any]:
    spec: dict[str, Any] = {"limits": {}}
    if number % 9 != 8:
        spec["team"] = TEAMS[number % len(TEAMS)]
    if number % 3 != 2:
        spec["limits"]["usd_per_month"] = dice.choice([20, 50, 100, 250])
    if number % 4 == 0:
        spec["limits"]["requests_per_minute"] = 6000
    if number % 5 == 0:
        spec["limits"]["usd_per_day"] = {"max": 10, "mode": "shadow"}
    if number % 6 == 0:
        spec["labels"] = {"cost_center": str(4700 + number % 5)}
    if number % 13 == 1:
        spec["expires_at"] = f"{dice.randrange(1, 90)}d"
    return spec


def _in_days(days: int) -> str:
    return (datetime.now(UTC) + timedelta(days)).date().isoformat()


def _everyone() -> dict[str, Any]:
    return {"scope": "everyone", "limits": {"usd_per_month": 5000, "concurrent_requests": 40}}


async def _admin(client: Client, method: str, path: str, body: Any) -> None:
    reply = await client.admin(method, path, body)
    assert reply.status < 300, reply.body


# ── the ledger ──────────────────────────────────────────────────────────────────────────────


async def write_ledger(gateway: InProcess, records: int) -> None:
    """Records of the last days, most of them of few keys, fewer of nights and weekends."""
    listed = (await gateway.client.admin("GET", "/admin/keys")).json["data"]
    keys = [
        TrafficKey(key["name"], key.get("team"), key.get("labels", {}), key["id"]) for key in listed
    ]
    busy = [key for number, key in enumerate(keys) for _ in range(max(1, 40 // (number + 1)))]
    now = time.time()
    begins = now // DAY * DAY - (DAYS - 1) * DAY
    some = traffic(begins, now, seed=SEED, requests=records, keys=busy)
    await RecordWriter(gateway.gateway.store).write(_working_hours(some))


def _working_hours(records: Iterator[Record]) -> Iterator[Record]:
    for record in records:
        at = datetime.fromtimestamp(record.time, UTC)
        part = (0.25 if at.weekday() >= 5 else 1.0) * (1.0 if 7 <= at.hour < 19 else 0.3)
        # Also a correction is of its purchase's time, so both stay or neither does.
        if random.Random(record.time).random() < part:
            yield record


# ── images and requests ─────────────────────────────────────────────────────────────────────


async def buy_images(clients: Sequence[Client], count: int) -> None:
    """Small images, ten at a time; every fifth request is a hit too."""

    async def buy(number: int) -> None:
        client, model = clients[number % len(clients)], MODELS[number % len(MODELS)]
        body = {"model": model, "n": 10, "quality": "low"}
        headers = {"X-Gateway-Tags": ("spring", "hero", "web:2026")[number % 3]}
        prompt = f"{SUBJECTS[number % len(SUBJECTS)]} {number}"
        for _ in range(1 + (number % 5 == 0)):
            reply = await client.ask(prompt, headers=headers, **body)
            assert reply.status == 200, reply.body

    await _at_once([buy(number) for number in range(count // 10)])


async def draw_images(there: Client, owner: Client, count: int) -> None:
    """Images with their prompts below them, of a gateway on a store that another one has filled."""
    client = replace(owner, url=there.url, session=there.session)

    async def draw(number: int) -> None:
        size = ("1024x1024", "1024x1536", "1536x1024")[number % 3]
        prompt = SUBJECTS[number % len(SUBJECTS)] + "!" * (number // len(SUBJECTS))
        reply = await client.ask(prompt, size=size, quality="low", output_format="webp")
        assert reply.status == 200, reply.body

    await _at_once([draw(number) for number in range(count)])


async def _at_once(works: Sequence[Any]) -> None:
    allowed = asyncio.Semaphore(AT_ONCE)

    async def one(work: Any) -> None:
        async with allowed:
            await work

    await asyncio.gather(*(one(work) for work in works))


async def be_refused(alice: Client, bob: Client) -> None:
    """Refusals, failures, and an event."""
    assert (await alice.ask("a", size="1025x1024")).status == 400
    assert (await alice.ask("[[sim:moderation]] a")).status == 400
    assert (await bob.ask("[[sim:status=500;times=9]] a")).status >= 500
    assert (await bob.ask("[[sim:no-image]] a")).status >= 500
    more = {"limit": "usd_per_month", "amount": 20, "reason": "a launch on Friday"}
    assert (await alice.send("POST", "/v1/usage/ask-for-more", json=more)).status == 200


async def fold_and_verify(gateway: InProcess) -> None:
    """Brings the reports up to date and verifies the books, which jobs do later."""
    while await gateway.gateway.totals.fold_page():
        continue
    await gateway.gateway.verification.run()

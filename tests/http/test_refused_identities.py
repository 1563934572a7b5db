"""Upstream refuses the `user` or `safety_identifier` of a leader: its followers have others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gateways import Client, InProcess, Reply, leases_at, make_settings, run_gateway
from tests.http.hostile import Hostile, run_hostile
from tests.http.test_kept_of_answers import answer, completed
from tests.stores import usual_store
from tests.waiting import eventually

store_url = usual_store("sqlite")

LONG = "u" * 600


def refusal(**fields: Any) -> dict[str, Any]:
    message = (
        "Invalid 'user': string too long. Expected a string with maximum length 512, but got a "
        "string with length 600 instead."
    )
    error = {"message": message, "type": "invalid_request_error", "param": "user"}
    return {"error": {**error, "code": "string_above_max_length", **fields}}


def in_turn(hostile: Hostile, *answers: tuple[dict[str, Any], int]) -> None:
    made = []
    for document, status in answers:
        hostile.will_answer(document, status)
        made += hostile.answers
    hostile.answers = made


@pytest.fixture
async def hostile() -> AsyncIterator[Hostile]:
    async with run_hostile() as opened:
        yield opened


@pytest.fixture
def opens(hostile: Hostile, tmp_path: Path, store_url: str | None) -> Callable[..., Any]:
    """Opens gateways that share one store."""
    settings = make_settings(tmp_path / "data", hostile.base_url, store_url)
    return lambda: run_gateway(settings)


async def lead_and_follow(
    hostile: Hostile, gateway: InProcess, other: InProcess, *, times: int = 2, **body: Any
) -> tuple[Reply, list[Reply]]:
    """A leader with a refused name, and followers of another key in both gateways."""
    alice = await gateway.client.with_key("alice")
    bob = await gateway.client.with_key("bob")
    elsewhere = Client(other.client.url, other.client.session, bob.secret, bob.key_id)
    leases = leases_at(gateway, other)
    hostile.gate.clear()
    leading = asyncio.create_task(alice.ask(user=LONG, **body))
    await eventually(lambda: hostile.bodies)
    following = [
        asyncio.create_task(client.ask(user="bob", **body))
        for client in (bob, elsewhere)
        for _ in range(times)
    ]
    await leases.until(1 + 2 * times)
    hostile.gate.set()
    led, *followed = await asyncio.gather(leading, *following)
    return led, followed


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"param": "safety_identifier"},
        {"param": None},
        {"param": "user", "code": "content_policy_violation"},
        {"param": None, "message": "This safety identifier is blocked.", "code": None},
    ],
    ids=str,
)
async def test_followers_buy_what_was_refused_for_the_name_of_their_leader(
    opens: Callable[..., Any], hostile: Hostile, fields: dict[str, Any]
) -> None:
    """Once, in whichever gateway, and the leader gets its own error."""
    in_turn(hostile, (refusal(**fields), 400), (answer(), 200))
    async with opens() as gateway, opens() as other:
        led, followed = await lead_and_follow(hostile, gateway, other)
        records = await gateway.ledger()
    assert (led.status, led.headers["x-gateway-cost-usd"]) == (400, "0.000000")
    assert [reply.status for reply in followed] == [200] * 4
    assert [body.get("user") for body in hostile.bodies] == [LONG, "bob"]
    assert len({reply.images[0] for reply in followed}) == 1
    assert sum(record.outcome == "bought" for record in records) == 1


async def test_followers_of_a_stream_too(opens: Callable[..., Any], hostile: Hostile) -> None:
    hostile.will_stream(completed())
    bought = hostile.answers
    hostile.will_answer(refusal(), 400)
    hostile.answers += bought
    async with opens() as gateway, opens() as other:
        led, followed = await lead_and_follow(hostile, gateway, other, times=1, stream=True)
    assert led.status == 400
    assert [reply.status for reply in followed] == [200] * 2
    assert len(hostile.bodies) == 2


async def test_any_other_error_is_that_of_all(opens: Callable[..., Any], hostile: Hostile) -> None:
    """A user in the words of a message, another parameter, or a failure of upstream."""
    errors: list[tuple[dict[str, Any], int]] = [
        ({"param": None, "message": "The user asked for too much."}, 400),
        ({"param": "prompt", "message": "Invalid 'prompt' of 'user'."}, 400),
        ({}, 500),
    ]
    for number, (fields, status) in enumerate(errors):
        hostile.will_answer(refusal(**fields), status)
        async with opens() as gateway:
            alice = await gateway.client.with_key(f"alice{number}")
            bob = await gateway.client.with_key(f"bob{number}")
            hostile.gate.clear()
            hostile.bodies.clear()
            leading = asyncio.create_task(alice.ask(str(fields), user=LONG))
            await eventually(lambda: hostile.bodies)
            following = asyncio.create_task(bob.ask(str(fields)))
            await gateway.until_leased(2)
            hostile.gate.set()
            led, followed = await asyncio.gather(leading, following)
        assert (led.status, followed.status) == (status, status)
        assert len(hostile.bodies) == 1

"""Records have the key's labels, the request's tags and its user; those of refusals only labels."""

from __future__ import annotations

import asyncio

from tests.gateways import InProcess, Reply, Upstream
from tests.http.conftest import OpenGateway
from tests.stores import usually_on

USER = "X-OpenWebUI-User-Email"
LABELS = {"cost_center": "4711", "env": "test"}
TAGS = {"X-Gateway-Tags": "spring, otters"}


async def test_hits_purchases_and_followers_have_labels_and_tags(
    gateway: InProcess, upstream: Upstream
) -> None:
    alice = await gateway.client.with_key("alice", labels=LABELS)
    async with upstream.hold():
        buyer = asyncio.create_task(alice.ask("shared", headers=TAGS))
        await upstream.until_sent()
        follower = asyncio.create_task(alice.ask("shared", headers={"X-Gateway-Tags": "second"}))
        await gateway.until_leased(2)
    replies = [await buyer, await follower]
    replies.append(await alice.ask("shared", headers={"X-Gateway-Tags": "third"}))
    replies.append(await alice.ask("shared"))
    assert [reply.status for reply in replies] == [200] * 4
    found = {(r.outcome, r.tags): r.labels for r in await gateway.ledger()}
    assert found == {
        ("bought", ("spring", "otters")): LABELS,
        ("collapsed", ("second",)): LABELS,
        ("hit", ("third",)): LABELS,
        ("hit", ()): LABELS,
    }


async def test_a_failed_purchase_has_its_labels_and_tags(gateway: InProcess) -> None:
    alice = await gateway.client.with_key("alice", labels=LABELS)
    assert (await alice.ask("[[sim:no-image]]", headers=TAGS)).status == 502
    (record,) = await gateway.ledger()
    assert (record.outcome, record.labels) == ("failed", LABELS)
    assert record.tags == ("spring", "otters")


async def test_nothing_that_a_refused_request_sends_is_stored(gateway: InProcess) -> None:
    alice = await gateway.client.with_key(
        "alice", labels=LABELS, user_header=USER, limits={"usd_per_day": 0}
    )
    headers = {**TAGS, USER: "ann@example.org", "Idempotency-Key": "word"}
    for prompt, body in (("budget", {"user": "bob"}), ("", {}), ("invalid", {"size": "1x1"})):
        assert (await alice.ask(prompt, headers=headers, **body)).status in (400, 429)
    lines = [line.decode() for _, line in await stored(gateway)]
    assert lines
    for word in ("spring", "otters", "ann@", "bob", "1x1", "word"):
        assert not [line for line in lines if word in line], word
    records = await gateway.ledger()
    assert {(r.outcome, r.tags, r.user) for r in records} == {("refused", (), None)}
    assert [record.labels for record in records] == [LABELS] * len(records)


async def stored(gateway: InProcess) -> list[tuple[str, bytes]]:
    await gateway.ledger()
    found = await gateway.gateway.ledger.read(limit=1000)
    return [(position, record.encode()) for position, record in found]


async def test_a_change_of_labels_holds_for_the_next_record(gateway: InProcess) -> None:
    alice = await gateway.client.with_key("alice", labels=LABELS)
    await alice.ask("one")
    changed = await alice.admin(
        "PATCH", f"/admin/keys/{alice.key_id}", {"labels": {"env": "live", "cost_center": None}}
    )
    assert (changed.status, changed.json["labels"]) == (200, {"env": "live"})
    await alice.ask("two")
    assert [record.labels for record in await gateway.ledger()] == [LABELS, {"env": "live"}]


# ── the end user ────────────────────────────────────────────────────────────────────────────


@usually_on("sqlite")
async def test_a_trusted_header_names_the_user_if_the_body_does_not(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway() as gateway:
        webui = await gateway.client.with_key("webui", user_header=USER)
        plain = await gateway.client.with_key("plain")

        async def user_of(client, headers, **body) -> str | None:
            reply: Reply = await client.ask("the same", headers=headers, **body)
            assert reply.status == 200
            (record,) = [
                r for r in await gateway.ledger() if r.request_id == reply.headers["x-request-id"]
            ]
            return record.user

        ann = {USER.lower(): "ann@example.org"}
        assert await user_of(webui, ann) == "ann@example.org"
        assert await user_of(webui, {USER: "bob"}) == "bob"
        assert await user_of(webui, ann, user="carol") == "carol"
        assert await user_of(webui, ann, user="") == "ann@example.org"
        assert await user_of(webui, {}) is None
        assert await user_of(webui, {USER: " "}) is None
        assert await user_of(webui, {USER: "é" * 300}) == "é" * 256
        assert await user_of(plain, ann) is None
        (call,) = [call for call in await upstream.calls() if call["method"] == "POST"]
    assert "user" not in call["body"]
    assert "ann@example.org" not in str(call)
    assert USER.lower() not in {name.lower() for name in call.get("headers", {})}

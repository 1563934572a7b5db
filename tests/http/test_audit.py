"""`GET /admin/audit` and `gateway audit` through the front door."""

from __future__ import annotations

import csv
import io
import json
from urllib.parse import quote

from tests.cli.test_commands import RunHere, run_here
from tests.gateways import Client, InProcess
from tests.rows import each_row

__all__ = ["run_here"]


async def events(client: Client, query: str = "") -> list[dict[str, object]]:
    reply = await client.admin("GET", f"/admin/audit{query}")
    assert reply.status == 200, reply.body
    found: list[dict[str, object]] = reply.json["data"]
    return found


async def test_every_change_over_the_admin_api_is_an_event(gateway: InProcess) -> None:
    alice = await gateway.client.with_key("alice")
    answered = await alice.ask("an otter", model="dall-e-2")
    link, image = answered.json["data"][0]["url"], answered.headers["x-gateway-image-ids"]
    key = f"/admin/keys/{alice.key_id}"
    await alice.admin("PATCH", key, {"team": "art"})
    await alice.admin("POST", f"{key}/rotate", {"overlap": "1h"})
    await alice.admin("POST", "/admin/cache/purge", {"tag": "spring"})
    await alice.admin("POST", "/admin/cache/purge", {"all": True})
    await alice.admin("POST", "/admin/cache/takedown", {"image": link, "prompt": True})
    await alice.admin("POST", "/admin/signing-keys/rotate")
    await alice.admin("DELETE", key)
    found = await events(alice)
    assert [(event["action"], event["object"]) for event in reversed(found)] == [
        ("key.create", "key:alice"),
        ("key.change", "key:alice"),
        ("key.rotate", "key:alice"),
        ("cache.purge", "tag:spring"),
        ("cache.purge", "all"),
        ("cache.takedown", f"image:{image}"),
        ("signing_key.rotate", "signing-keys"),
        ("key.revoke", "key:alice"),
    ]
    assert {(e["via"], e["by"], e["address"]) for e in found} == {("api", "admin", "127.0.0.1")}
    assert found[-2]["before"] == {"id": alice.key_id, "team": None}
    assert found[-2]["after"] == {"id": alice.key_id, "team": "art"}
    text = json.dumps(found)
    assert alice.secret not in text
    assert link.split("/")[-2] not in text  # the signature


async def test_requests_that_fail_leave_no_event(gateway: InProcess) -> None:
    client = gateway.client
    await client.with_key("alice")
    await client.admin("POST", "/admin/keys", {"name": "alice"})
    await client.admin("POST", "/admin/cache/takedown", {"image": "0" * 24})
    await client.admin("POST", "/admin/cache/purge", {"tag": ""})
    await client.admin("PATCH", "/admin/keys/key_none", {"team": "art"})
    await client.admin("PATCH", "/admin/teams/none", {"scope": "team"})
    assert [event["action"] for event in await events(client)] == ["key.create"]


async def test_a_change_into_the_same_leaves_no_event(gateway: InProcess) -> None:
    client = gateway.client
    alice = await client.with_key("alice", team="art")
    for body in ({}, {"limits": {"usd_per_day": None}}):
        assert (await client.admin("PATCH", "/admin/teams/art", body)).status == 200
    assert [event["action"] for event in await events(client)] == ["key.create"]
    limits = {"limits": {"usd_per_day": 5}}
    changes = [
        (f"/admin/keys/{alice.key_id}", limits),
        ("/admin/teams/art", limits),
        *(("/admin/limits", {**limits, "scope": scope}) for scope in ("team:art", "everyone")),
    ]
    for path, body in 2 * changes:
        assert (await client.admin("PATCH", path, body)).status == 200
    actions = [event["action"] for event in await events(client)]
    assert actions == ["limits.change", "team.change", "key.change", "key.create"]


async def test_pages_join_up_and_say_whether_more_follows(embedded: InProcess) -> None:
    client = embedded.client
    for number in range(5):
        await client.with_key(f"k{number}")
    whole = await events(client)
    pages, query = [], "?limit=2"
    for has_more in (True, True, False):
        reply = await client.admin("GET", f"/admin/audit{query}")
        assert reply.json["has_more"] is has_more
        pages += reply.json["data"]
        query = f"?limit=2&after={pages[-1]['id']}"
    assert pages == whole
    assert [event["object"] for event in whole] == [f"key:k{n}" for n in (4, 3, 2, 1, 0)]
    until = quote(str(int(float(str(whole[-1]["time"])))))
    assert await events(client, f"?until={until}") == []
    assert await events(client, "?since=1h&until=2099-01-01") == whole


@each_row(
    ("query", "param"),
    [
        ("?since=yesterday", "since"),
        ("?since=", "since"),
        ("?until=30", "until"),
        ("?since=2026-13-01", "since"),
        ("?since=1h&until=2h", "until"),
        ("?limit=0", "limit"),
        ("?limit=1001", "limit"),
        ("?limit=1&limit=2", "limit"),
        ("?sinse=1h", "sinse"),
        ("?after=key_0123", "after"),
        ("?after=", "after"),
    ],
)
async def test_a_wrong_query_is_400_and_names_its_parameter(
    embedded: InProcess, query: str, param: str
) -> None:
    reply = await embedded.client.admin("GET", f"/admin/audit{query}")
    assert (reply.status, reply.error["param"]) == (400, param)


async def test_a_gateway_key_does_not_open_the_audit(embedded: InProcess) -> None:
    alice = await embedded.client.with_key("alice")
    assert (await alice.send("GET", "/admin/audit")).status == 401


# ── the command ─────────────────────────────────────────────────────────────────────────────


def test_the_command_lists_what_commands_changed(run_here: RunHere):
    run_here("keys", "add", "alice", "--team", "art")
    run_here("keys", "rotate", "alice", "--overlap", "24h")
    run_here("cache", "purge", "--tag", "spring")
    run_here("keys", "revoke", "alice")
    listed = run_here("audit", "--format", "json")
    assert listed.exit_code == 0, listed.stderr
    rows = json.loads(listed.stdout)
    assert [(row["action"], row["object"], row["via"]) for row in reversed(rows)] == [
        ("key.create", "key:alice", "cli"),
        ("key.rotate", "key:alice", "cli"),
        ("cache.purge", "tag:spring", "cli"),
        ("key.revoke", "key:alice", "cli"),
    ]
    assert all("@" in row["by"] for row in rows)
    (newest,) = csv.DictReader(
        io.StringIO(run_here("audit", "--limit", "1", "--format", "csv").stdout)
    )
    assert newest["action"] == "key.revoke"
    assert json.loads(newest["before"])["team"] == "art"
    assert "key.rotate" in run_here("audit").stdout
    assert json.loads(run_here("audit", "--until", "1h", "--format", "json").stdout) == []


def test_the_command_refuses_a_time_that_it_does_not_understand(run_here: RunHere):
    for words in (("--since", "soon"), ("--until", "60d"), ("--limit", "0")):
        result = run_here("audit", *words)
        assert (result.exit_code, result.stdout) == (2, ""), words
        assert words[0] in result.stderr

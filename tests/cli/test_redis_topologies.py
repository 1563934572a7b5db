"""The commands on stores of several servers: behind sentinels, and a cluster."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.gateways import Client, Processes, run_processes, run_upstream
from tests.stores import TOPOLOGIES


@pytest.fixture(params=TOPOLOGIES)
def url(request: pytest.FixtureRequest) -> str:
    """Of an empty store, for a user with the rights that the docs name."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


class Commands:
    """Runs commands beside a gateway, with its configuration."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    async def run(self, *words: str, code: int = 0) -> str:
        done = await self._processes.run(*words)
        assert done.returncode == code, (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        assert "gateway:right" not in done.stdout + done.stderr
        return done.stdout

    async def rows(self, *words: str) -> Any:
        return json.loads(await self.run(*words, "--format", "json"))


def column(rows: Sequence[dict[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows]


async def test_every_command_works_beside_a_gateway(tmp_path: Path, url: str) -> None:
    async with (
        run_upstream() as upstream,
        run_processes(tmp_path / "gateway", upstream.base_url, workers=1, redis_url=url) as (
            processes,
            anyone,
        ),
    ):
        commands = Commands(processes)
        checks = {row["check"]: row for row in await commands.rows("doctor")}
        assert checks["store"]["level"] == "ok", checks
        assert url.partition("@")[2].partition("/")[0] in checks["store"]["finding"]

        await commands.run("teams", "add", "art", "--limit", "usd_per_month=5")
        (key,) = await commands.rows("keys", "add", "alice", "--team", "art")
        alice = Client(anyone.url, anyone.session, key["key"])
        replies = [await alice.ask(prompt) for prompt in ("an otter", "a seal", "an otter")]
        assert [reply.cache_status[:3] for reply in replies] == ["fwd", "fwd", "hit"]
        assert column(await commands.rows("keys", "list"), "name") == ["alice"]
        assert column(await commands.rows("keys", "show", "alice"), "team") == ["art"]
        assert column(await commands.rows("teams", "list"), "name") == ["art"]
        await commands.run("limits", "set", "team:art", "images_per_day=3")
        until = ("--until", "2099-01-01", "--reason", "a campaign")
        await commands.run("limits", "raise", "team:art", "images_per_day=+2", *until)
        limits = {row["limit"]: row for row in await commands.rows("limits", "show", "team:art")}
        assert limits["images_per_day"]["max"] == 5
        (used,) = await commands.rows("usage")
        assert (used["key"], used["requests"], used["hits"], used["images_bought"]) == (
            "alice", 3, 1, 2,
        )  # fmt: skip
        shown = await commands.rows("requests", "show", replies[0].headers["x-request-id"])
        assert column(shown["records"], "outcome") == ["bought"]

        verified = await commands.rows("ledger", "verify")
        assert (verified["is_balanced"], verified["records"]) == (True, 2)
        assert await commands.rows("ledger", "repair") == []
        records = [
            json.loads(line) for line in (await commands.run("ledger", "export")).splitlines()
        ]
        assert column(records, "outcome").count("bought") == 2

        image = replies[0].headers["x-gateway-image-ids"]
        await commands.run("cache", "takedown", image)
        bought_again = await alice.ask("an otter")
        assert bought_again.headers["x-gateway-image-ids"] != image
        assert (await alice.ask("a seal")).cache_status[:3] == "hit"
        await commands.run("cache", "purge", "--all")
        assert (await alice.ask("a seal")).cache_status[:3] == "fwd"
        await commands.run("cache", "stats")

        (rotated,) = await commands.rows("keys", "rotate", "alice")
        assert (
            await Client(anyone.url, anyone.session, rotated["key"]).ask("a seal")
        ).status == 200
        backup = str(tmp_path / "backup.json")
        await commands.run("backup", backup)
        await commands.run("keys", "revoke", "alice")
        assert (await commands.rows("keys", "list"))[0]["revoked_at"]
        await commands.run("restore", backup, "--replace")
        actions = column(await commands.rows("audit"), "action")
        assert actions[:3] == ["backup.restore", "key.revoke", "key.rotate"]
        assert actions[-2:] == ["key.create", "team.create"]
        verified = await commands.rows("ledger", "verify")
        assert verified["is_balanced"]

"""Every client of `clients.toml`, with its real package: `make test-clients`.

Each makes the calls of `calls.py` with strict and with lenient validation. `docs/clients.md` has what
they get; `make test-clients WRITE=1` writes its tables anew.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.clients.calls import CALLS, GPT, NOT_OFFERED, Call, Outcome, decode, is_link, summarize
from tests.clients.installation import INSTALL_SECONDS, Entry, command_of, read_entries
from tests.clients.page import PAGE, rows, tables_of, write_row
from tests.clients.tap import Tap, run_tap
from tests.gateways import InProcess, Upstream, make_settings, run_gateway, run_upstream

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.long,
    pytest.mark.clients,
    pytest.mark.timeout(2 * INSTALL_SECONDS),
]

VALIDATIONS = ("strict", "lenient")
ENTRIES = read_entries()
KEYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "vary": {"parallel": "vary"},
    "no usage": {"hits_report_usage": False},
    "poor": {"limits": {"usd_per_day": 0}},
}


@dataclass
class Bench:
    """A gateway for the clients, and what is between."""

    gateway: InProcess
    upstream: Upstream
    tap: Tap
    keys: dict[tuple[str, str], str] = field(default_factory=dict)
    """Secrets by validation and role."""

    def key(self, validation: str, role: str) -> str:
        return self.keys.get((validation, role), "gk-a-key-that-does-not-exist")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    async with run_upstream() as upstream:
        settings = make_settings(tmp_path_factory.mktemp("clients"), upstream.base_url)
        async with run_gateway(settings) as gateway, run_tap(gateway.client.url) as tap:
            opened = Bench(gateway, upstream, tap)
            for validation in VALIDATIONS:
                for role, spec in KEYS.items():
                    name = f"{validation} {role}"
                    client = await gateway.client.with_key(name, validation=validation, **spec)
                    opened.keys[validation, role] = client.secret
            yield opened


def prompt_of(entry: Entry, validation: str, call: Call) -> str:
    return f"{call.fault}{entry.id}, {validation}: {call.repeats or call.name}"


async def run_calls(entry: Entry, bench: Bench, validation: str) -> dict[str, Outcome]:
    """Runs the client with a validation; the outcome of each call, by its name."""
    calls = [
        {
            "name": call.name,
            "prompt": prompt_of(entry, validation, call),
            "model": call.model,
            "n": call.n,
            "size": call.size,
            "response_format": call.response_format,
            "stream": call.stream,
            "key": bench.key(validation, call.key),
        }
        for call in CALLS
    ]
    reports = await run_client(entry, bench.tap.url + entry.base_url, calls)
    images: dict[str, list[bytes]] = {}
    outcomes = {}
    for call in CALLS:
        got = reports[call.name]
        opened = images[call.name] = await open_images(got.get("images") or [])
        summary = summarize(call, got, opened, images.get(call.repeats, []))
        attempts = len(bench.tap.requests(prompt_of(entry, validation, call)))
        error = got.get("error") or {"class": "", "message": ""}
        outcomes[call.name] = Outcome(summary, error["class"], error["message"], attempts)
    return outcomes


async def run_client(
    entry: Entry, base_url: str, calls: list[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """What the client reports of each call, by its name."""
    command = await asyncio.to_thread(command_of, entry)
    inherited = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    process = await asyncio.create_subprocess_exec(
        *command,
        base_url,
        json.dumps(calls),
        entry.flavour,
        env={**inherited, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NODE_NO_WARNINGS": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=2**26,
    )
    stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()[-4000:]
    lines = [json.loads(line) for line in stdout.splitlines() if line.startswith(b'{"call"')]
    return {line["call"]: line for line in lines}


async def open_images(found: list[str]) -> list[bytes]:
    """The bytes of images, which are base64 or links; a link is fetched without a key."""
    async with aiohttp.ClientSession() as session:
        opened = []
        for image in found:
            if not is_link(image):
                opened.append(decode(image))
                continue
            async with session.get(image) as response:
                assert response.status == 200, await response.text()
                opened.append(await response.read())
        return opened


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
async def test_the_client_gets_what_the_page_says(entry: Entry, bench: Bench) -> None:
    await asyncio.to_thread(command_of, entry)
    ran = await asyncio.gather(*(run_calls(entry, bench, each) for each in VALIDATIONS))
    outcomes = {
        (validation, name): outcome
        for validation, found in zip(VALIDATIONS, ran, strict=True)
        for name, outcome in found.items()
    }
    unexpected = [
        f"{validation}: {call}: {got.summary}, not {usual} {got.message}"
        for (validation, call), usual in expected(entry).items()
        if (got := outcomes[validation, call]).summary not in (usual, NOT_OFFERED)
    ]
    if unexpected:
        pytest.fail("\n".join(unexpected), pytrace=False)

    sent = bench.tap.requests(prompt_of(entry, "strict", CALLS[0]))
    found = rows(entry, outcomes, sent and {**sent[0].body, "prompt": "…"})
    if os.environ.get("WRITE"):
        write_row(entry, found, ENTRIES)
    written = tables_of(PAGE.read_text(encoding="utf-8"))
    stale = [row for table, row in found.items() if row not in written[table]]
    assert stale == [], "docs/clients.md is stale: make test-clients WRITE=1"


def expected(entry: Entry) -> dict[tuple[str, str], str]:
    """The usual outcome of each call, except where `clients.toml` says otherwise."""
    return {
        (validation, call.name): entry.gets.get(
            f"{validation}: {call.name}", entry.gets.get(call.name, call.expected(validation))
        )
        for validation in VALIDATIONS
        for call in CALLS
    }


async def test_a_hit_buys_nothing(bench: Bench) -> None:
    """Of all clients that have run: each prompt that was repeated was bought once."""
    bodies = await bench.upstream.bodies()
    for entry in ENTRIES:
        for validation in VALIDATIONS:
            prompt = prompt_of(entry, validation, next(c for c in CALLS if c.name == GPT))
            assert sum(body["prompt"] == prompt for body in bodies) <= 1

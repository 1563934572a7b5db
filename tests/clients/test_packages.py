"""Every client of `clients.toml`, with its real package: `make test-clients`.

Each makes the calls of `calls.py` with strict and with lenient validation. `docs/clients.md` has
what they get; `make test-clients WRITE=1` writes its tables anew.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.clients.calls import (
    CALLS,
    DALL_E,
    GPT,
    NOT_OFFERED,
    Call,
    Outcome,
    decode,
    is_link,
    summarize,
)
from tests.clients.installation import INSTALL_SECONDS, Entry, command_of, install, read_entries
from tests.clients.litellm_proxy import MASTER_KEY, run_litellm
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
SHARED_PROMPTS = {name for call in CALLS if call.repeats for name in (call.name, call.repeats)}
"""Calls whose requests the tap cannot tell apart."""
KEYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "vary": {"parallel": "vary"},
    "no usage": {"hits_report_usage": False},
    "poor": {"limits": {"usd_per_day": 0}},
}


@dataclass
class Bench:
    """A gateway with keys, and a tap before it."""

    gateway: InProcess
    tap: Tap
    keys: dict[tuple[str, str], str]
    """Secrets by validation and role."""
    url: str
    """The address for clients."""
    is_litellm_in_front: bool = False

    def key(self, validation: str, role: str) -> str:
        if self.is_litellm_in_front:
            return MASTER_KEY
        return self.keys[validation, role]

    def model(self, validation: str, call: Call) -> str | None:
        """LiteLLM has a gateway key for each of its models."""
        if self.is_litellm_in_front and call.model is not None:
            return f"{validation} {call.key} {call.model}"
        return call.model


@asynccontextmanager
async def open_bench(folder: Path, upstream: str, **options: Any) -> AsyncIterator[Bench]:
    # The links of a simulated upstream behind LiteLLM have neither its host nor its port.
    sections = {"rehost": {"allow": ["127.0.0.1"]}, "upstream": options}
    settings = make_settings(folder, upstream, **sections)
    async with run_gateway(settings) as gateway, run_tap(gateway.client.url) as tap:
        keys = {(validation, "wrong"): "gk-a-key-that-is-wrong" for validation in VALIDATIONS}
        for validation in VALIDATIONS:
            for role, spec in KEYS.items():
                client = await gateway.client.with_key(
                    f"{validation} {role}", validation=validation, **spec
                )
                keys[validation, role] = client.secret
        yield Bench(gateway, tap, keys, tap.url)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with run_upstream() as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def direct(
    upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path_factory.mktemp("direct"), upstream.base_url) as opened:
        yield opened


@asynccontextmanager
async def open_route(
    entry: Entry, direct: Bench, upstream: Upstream, folder: Path
) -> AsyncIterator[Bench]:
    """The way from the entry's client to the gateway and on to the simulated upstream."""
    if entry.route == "direct":
        yield direct
        return
    binary = await asyncio.to_thread(install, entry) / "bin" / "litellm"
    if entry.route == "in front":
        models = {
            f"{validation} {role} {model}": {
                "model": f"openai/{model}",
                "api_base": f"{direct.tap.url}/v1",
                "api_key": key,
            }
            for (validation, role), key in direct.keys.items()
            for model in (GPT, DALL_E)
        }
        async with run_litellm(binary, folder, models) as url:
            yield replace(direct, url=url, is_litellm_in_front=True)
        return
    where = {"api_base": upstream.base_url, "api_key": "sk-upstream"}
    models = {model: {"model": f"openai/{model}", **where} for model in (GPT, DALL_E, "dall-e-2")}
    options = {"streams": False} if entry.route == "behind, plain" else {}
    async with (
        run_litellm(binary, folder, models) as url,
        open_bench(folder, f"{url}/v1", api_key=MASTER_KEY, **options) as bench,
    ):
        yield bench


def prompt_of(entry: Entry, validation: str, call: Call) -> str:
    return f"{call.fault}{entry.id}, {validation}: {call.repeats or call.name}"


async def run_calls(entry: Entry, bench: Bench, validation: str) -> dict[str, Outcome]:
    """Runs the client with a validation; the outcome of each call, by its name."""
    calls = [
        {
            "name": call.name,
            "prompt": prompt_of(entry, validation, call),
            "model": bench.model(validation, call),
            "n": call.n,
            "size": call.size,
            "response_format": call.response_format,
            "stream": call.stream,
            "key": bench.key(validation, call.key),
        }
        for call in CALLS
    ]
    images: dict[str, list[bytes]] = {}
    outcomes = {}
    async for report in run_client(entry, bench.url + entry.base_url, calls):
        call = next(each for each in CALLS if each.name == report["call"])
        prompt = prompt_of(entry, validation, call)
        attempts = 1 if call.name in SHARED_PROMPTS else len(bench.tap.requests(prompt))
        opened = images[call.name] = await open_images(report.get("images") or [])
        error = report.get("error") or {"class": "", "message": ""}
        outcomes[call.name] = Outcome(
            summarize(call, report, opened, images.get(call.repeats, [])),
            attempts=attempts,
            error_class=error["class"],
            message=error["message"],
        )
    return outcomes


async def run_client(
    entry: Entry, base_url: str, calls: list[dict[str, Any]]
) -> AsyncIterator[dict[str, Any]]:
    """What the client reports of each call, as soon as it has made it."""
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
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.ensure_future(process.stderr.read())
    async for line in process.stdout:
        if line.startswith(b'{"call"'):  # some packages print lines of their own
            yield json.loads(line)
    assert await process.wait() == 0, (await errors).decode()[-4000:]


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
async def test_the_client_gets_what_the_page_says(
    entry: Entry, direct: Bench, upstream: Upstream, tmp_path: Path
) -> None:
    await asyncio.to_thread(install, entry)
    async with open_route(entry, direct, upstream, tmp_path) as bench:
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

    sent = bench.tap.requests(prompt_of(entry, "strict", CALLS[1]))
    found = rows(entry, outcomes, sent and {**sent[0].body, "prompt": "…"})
    if os.environ.get("WRITE"):
        write_row(entry, found, ENTRIES)
    written = tables_of(PAGE.read_text(encoding="utf-8"))
    stale = [row for table, row in found.items() if row not in written[table]]
    assert stale == [], "docs/clients.md is stale: make test-clients WRITE=1"


def expected(entry: Entry) -> dict[tuple[str, str], str]:
    """The usual outcome of each call, except where `clients.toml` says otherwise."""
    return {
        (validation, call.name): entry.expected(validation, call)
        for validation in VALIDATIONS
        for call in CALLS
    }


async def test_a_repeated_prompt_was_sent_upstream_once(direct: Bench, upstream: Upstream) -> None:
    """Of all clients that have run: a hit buys nothing, and a refusal is remembered."""
    sent = Counter(body["prompt"] for body in await upstream.bodies())
    repeated = {
        prompt_of(entry, validation, call)
        for entry in ENTRIES
        for validation in VALIDATIONS
        for call in CALLS
        if call.repeats
    }
    assert {prompt: sent[prompt] for prompt in repeated if sent[prompt] > 1} == {}

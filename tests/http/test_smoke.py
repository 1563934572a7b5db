"""The whole gateway once on each store, and the demo as a new user starts it.

`make smoke` runs only these tests. In a minute, they show whether the gateway works on another
Python or with another store server.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openai import AsyncOpenAI
from PIL import Image

from tests.forks import Fork
from tests.gateways import MODEL, Client, Processes, Upstream, open_to_both, run_processes
from tests.ports import free_port
from tests.processes import kill_group
from tests.waiting import GENEROUS_SECONDS

STRICT = {"PYTHONWARNINGS": "error::DeprecationWarning"}
"""Turns every DeprecationWarning in a gateway process into an error."""


async def test_two_workers_start_purchase_share_stream_and_drain(
    tmp_path: Path, upstream: Upstream, store_url: str | None
) -> None:
    async with run_processes(
        tmp_path, upstream.base_url, workers=2, redis_url=store_url, environ=STRICT
    ) as (processes, client):
        alice = await client.with_key()
        await both_workers_share_one_purchase(processes, alice)
        await a_stream_shows_partial_images(alice)
        await an_open_purchase_is_finished(processes, upstream, alice)

        assert [line for line in processes.log() if line["level"] == "error"] == []
        outcomes = Counter(record.outcome for record in await processes.ledger())
        assert outcomes == {"bought": 3, "hit": 1}


async def both_workers_share_one_purchase(processes: Processes, alice: Client) -> None:
    async with open_to_both(processes, alice) as by_worker:
        one, other = by_worker.values()
        bought, hit = await one.ask("an otter"), await other.ask("an otter")
    assert bought.cache_status == "fwd=miss; stored"
    assert hit.cache_status.startswith("hit; ttl=")
    assert bought.images == hit.images


async def a_stream_shows_partial_images(alice: Client) -> None:
    async with AsyncOpenAI(base_url=f"{alice.url}/v1", api_key=alice.secret) as sdk:
        stream = await sdk.images.generate(
            model=MODEL, prompt="an otter that swims", stream=True, partial_images=2
        )
        names = [event.type.removeprefix("image_generation.") async for event in stream]
    assert names == ["partial_image", "partial_image", "completed"]


async def an_open_purchase_is_finished(
    processes: Processes, upstream: Upstream, alice: Client
) -> None:
    async with upstream.hold() as gate:
        asking = asyncio.create_task(alice.ask("an otter that takes its time"))
        await gate.until(1)
        processes.signal_parent(signal.SIGTERM)
        await asyncio.sleep(0.5)
    assert (await asking).status == 200
    assert await processes.wait() == 0


# ── the demo ────────────────────────────────────────────────────────────────────────────────


def test_the_demo_serves_and_the_commands_that_it_prints_work(tmp_path: Path) -> None:
    with run_demo(tmp_path) as (write, again, link):
        assert _sign_in(link) == 201
        assert _sign_in(link) == 401
        subprocess.run(["bash", "-c", write], cwd=tmp_path, check=True, timeout=GENEROUS_SECONDS)
        shown = subprocess.check_output(
            ["bash", "-c", again], cwd=tmp_path, timeout=GENEROUS_SECONDS
        )
    with Image.open(tmp_path / "otter.png") as image:
        image.load()
    assert b"Cache-Status: image-gateway; hit; ttl=" in shown


def _sign_in(link: str) -> int:
    """The status with which the secret of a one-time link is answered, as the page sends it."""
    page, _, secret = link.partition("#link=")
    request = urllib.request.Request(
        f"{page}/api/session",
        json.dumps({"link": secret}).encode(),
        {"Content-Type": "application/json", "Origin": page.removesuffix("/dashboard")},
    )
    try:
        with urllib.request.urlopen(request, timeout=GENEROUS_SECONDS) as answer:
            return answer.status
    except urllib.error.HTTPError as refused:
        refused.close()
        return refused.code


@contextmanager
def run_demo(folder: Path, *, as_fork: bool = False) -> Iterator[list[str]]:
    """Runs `gateway demo` with two workers; yields the commands and the link that it prints.

    A fork starts sooner, but ignores `STRICT`.
    """
    given = {"GATEWAY_LISTEN": f"127.0.0.1:{free_port()}", "GATEWAY_WORKERS": "2"}
    demo: subprocess.Popen[bytes] | Fork
    with (folder / "log").open("w") as log:
        if as_fork:
            demo = Fork("demo", cwd=folder, env=os.environ | given, stderr=log)
        else:
            demo = subprocess.Popen(
                [sys.executable, "-m", "gateway", "demo"],
                cwd=folder,
                env={**os.environ, **STRICT, **given},
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
    assert demo.stdout is not None
    try:
        printed = ""
        while "Listening on" not in printed:
            printed += demo.stdout.readline().decode()
            assert demo.poll() is None, (folder / "log").read_text()
        links = re.findall(r"^  (http\S*#link=\S*)$", printed, re.MULTILINE)
        yield [*re.findall(r"^  (curl .*)$", printed, re.MULTILINE), *links]
        demo.terminate()
        assert demo.wait(GENEROUS_SECONDS) == 0, (folder / "log").read_text()
        assert "Traceback" not in (folder / "log").read_text()
    finally:
        kill_group(demo.pid)
        demo.wait()
        demo.stdout.close()

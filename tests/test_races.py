"""Races between clients, upstream and the gateway: the scripts `races/*.vtc` for varnishtest.

A script plays the clients and upstream, byte by byte where it matters, and fixes the order of the
events. Its name is its assertion. A new race needs only a new script. Each script runs against its
own gateway with an empty store, the embedded one in `make test`, and can use these macros:

    ${gateway}, ${upstream}           the addresses to connect to, and to listen on as upstream
    ${alice}, ${bob}                  the secrets of two keys without limits
    ${post_as_alice}, ${post_as_bob}  for `txreq`: an image request with that key, without a body
    ${stage}                          the server that answers in a given state: see `Stage`
    ${first}, ${second}               for `-bodyfrom`: files with upstream's answers, an image each
    ${first_image}, ${second_image}   for `resp.body ~`: matches a body with that image
    ${preview}, ${completed}          for `chunked "…"`: upstream's events with the first image
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from PIL import Image

from tests.gateways import InProcess, make_settings, run_gateway
from tests.http.conftest import store_url
from tests.stores import TOPOLOGIES, usually_on
from tests.waiting import eventually

__all__ = ["store_url"]

MISSING = "varnishtest is not installed: apt-get install varnish"
RACES = sorted(Path(__file__).with_name("races").glob("*.vtc"))
SECONDS = 55
"""varnishtest's timeout for a script. It ends a script that waits for ever."""

POST = (
    "-method POST -url /v1/images/generations "
    '-hdr "Authorization: Bearer {secret}" -hdr "Content-Type: application/json"'
)
COLOURS = {"first": "teal", "second": "orange"}
USAGE = {"input_tokens": 9, "output_tokens": 272, "total_tokens": 281}


@usually_on("sqlite", more=TOPOLOGIES)
@pytest.mark.parametrize("race", RACES, ids=lambda race: race.stem)
async def test_race(race: Path, tmp_path: Path, store_url: str | None) -> None:
    varnishtest = _find_varnishtest()
    with _reserved_port() as port:
        settings = make_settings(tmp_path / "data", f"http://127.0.0.1:{port}/v1", store_url)
        async with run_gateway(settings) as gateway, run_stage(gateway) as stage_port:
            macros = {
                "upstream": f"127.0.0.1 {port}",
                "stage": f"127.0.0.1 {stage_port}",
                **await _client_macros(gateway),
                **_answer_macros(tmp_path),
            }
            status, log = await _play(varnishtest, race, macros)
    assert status == 0, log


@dataclass(frozen=True)
class Stage:
    """Answers a request of a script once the gateway is in the state named by the path."""

    gateway: InProcess

    async def leases(self, request: web.Request) -> web.Response:
        """`/leases/N`: N requests since the start lead or follow a flight."""
        await self.gateway.until_leased(int(request.match_info["count"]))
        return web.Response()

    async def purchases(self, request: web.Request) -> web.Response:
        """`/purchases/N`: N purchases are in progress."""
        count = int(request.match_info["count"])
        await eventually(lambda: len(self.gateway.gateway.tasks) == count)
        return web.Response()


@asynccontextmanager
async def run_stage(gateway: InProcess) -> AsyncIterator[int]:
    """Serves the stage to scripts; yields the port."""
    stage, app = Stage(gateway), web.Application()
    app.router.add_get("/leases/{count}", stage.leases)
    app.router.add_get("/purchases/{count}", stage.purchases)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _find_varnishtest() -> str:
    """The binary. If it is missing, the test is skipped, or fails in continuous integration."""
    binary = shutil.which("varnishtest")
    if binary is None:
        pytest.skip(MISSING)
    return binary


@contextmanager
def _reserved_port() -> Iterator[int]:
    """Reserves a port: the system gives it to no other process, but a script can listen on it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


async def _client_macros(gateway: InProcess) -> dict[str, str]:
    macros = {"gateway": gateway.client.url.removeprefix("http://").replace(":", " ")}
    for name in ("alice", "bob"):
        client = await gateway.client.with_key(name)
        macros |= {name: client.secret, f"post_as_{name}": POST.format(secret=client.secret)}
    return macros


def _answer_macros(folder: Path) -> dict[str, str]:
    macros = {}
    for name, colour in COLOURS.items():
        image = _draw(colour)
        answer = {"created": 1_760_000_000, "data": [{"b64_json": image}], "usage": USAGE}
        file = folder / f"{name}.json"
        file.write_text(json.dumps(answer))
        macros |= {name: str(file), f"{name}_image": image.replace("+", "[+]")}
    image = _draw(COLOURS["first"])
    return macros | {
        "preview": _event("partial_image", b64_json=image, partial_image_index=0),
        "completed": _event("completed", b64_json=image, usage=USAGE),
    }


def _event(kind: str, **fields: Any) -> str:
    """A frame of a stream, escaped for the quotes of a script."""
    name = f"image_generation.{kind}"
    frame = f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n"
    return frame.replace('"', '\\"').replace("\n", "\\n")


def _draw(colour: str) -> str:
    """A small PNG, in base64."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


async def _play(varnishtest: str, race: Path, macros: Mapping[str, str]) -> tuple[int, str]:
    """Runs a script; returns its exit status, 0 if all its expectations held, and its log."""
    process = await asyncio.create_subprocess_exec(
        *(varnishtest, "-t", str(SECONDS)),
        *(f"-D{name}={value}" for name, value in macros.items()),
        str(race),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        log, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, log.decode(errors="replace")

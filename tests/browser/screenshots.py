"""Takes every view of the dashboard: light and dark, narrow and wide, of three gateways.

    python -m tests.browser.screenshots FOLDER [empty] [full] [down]

`empty` has nothing yet, `full` is `seeds.FULL`, and the store of `down` is not there. Prints a line
for each view that scrolls sideways, moves while it loads, or reports a fault.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from tests.browser import seeds
from tests.browser.problems import problems
from tests.browser.running import Scripts, Steps, find_scripts
from tests.browser.sessions import Session, admin, holder
from tests.gateways import make_settings, run_gateway, run_processes, run_upstream
from tests.redis_server import run_durable_redis

KINDS = ("empty", "full", "down")
THEMES = ("light", "dark")
WIDTHS = (360, 1440)
MAX_SECONDS = 1800.0
UNAVAILABLE = "^503 "


async def take(scripts: Scripts, kind: str, folder: Path) -> Steps:
    """The steps of `views.mjs` on a gateway of one kind."""
    opened = {"empty": open_empty, "full": open_full, "down": open_down}[kind]
    shots = folder / kind
    shots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as data:
        async with opened(Path(data)) as (url, sessions, sign_in_done):
            return await scripts.run(
                "views.mjs",
                on={"signed in": sign_in_done},
                max_seconds=MAX_SECONDS,
                url=url,
                sessions=[session.given() for session in sessions],
                themes=THEMES,
                widths=WIDTHS,
                expected=[UNAVAILABLE] if kind == "down" else [],
                dialogs=kind == "full",
                axe=True,
                timeout=120_000,
                save=str(shots),
            )


Opened = tuple[str, Sequence[Session], Callable[[], object]]
"""The gateway's URL, who signs in, and what happens after all have."""


@asynccontextmanager
async def open_empty(folder: Path) -> AsyncIterator[Opened]:
    """A gateway with one key, for the view of its holder."""
    async with (
        run_upstream() as upstream,
        run_processes(folder, upstream.base_url, workers=2) as (_, client),
    ):
        alice = await client.with_key("alice")
        yield client.url, [admin(), holder(alice.secret)], lambda: None


@asynccontextmanager
async def open_full(folder: Path) -> AsyncIterator[Opened]:
    """A gateway of `seeds.FULL`. Another one on the same store has bought the small images."""
    async with run_upstream() as small, run_upstream(small_images=False) as upstream:
        async with run_gateway(make_settings(folder / "data", small.base_url)) as first:
            clients = await seeds.seed(first, seeds.FULL)
        alice = clients[0]
        async with run_processes(folder, upstream.base_url, workers=2) as (_, client):
            await seeds.draw_images(client, alice, seeds.DRAWN)
            pages = f"keys?key={alice.key_id}", "teams?team=art", "events?tab=audit"
            yield client.url, [admin(*pages), holder(alice.secret)], lambda: None


@asynccontextmanager
async def open_down(folder: Path) -> AsyncIterator[Opened]:
    """A gateway whose Redis is killed when everyone has signed in."""
    with run_durable_redis(folder) as server:
        async with run_upstream() as upstream:
            settings = make_settings(folder / "data", upstream.base_url, server.url)
            async with run_gateway(settings) as first:
                clients = await seeds.seed(first, seeds.SMALL)
            async with run_processes(
                folder, upstream.base_url, workers=2, redis_url=server.url
            ) as (_, client):
                yield client.url, [admin(), holder(clients[0].secret)], server.kill


async def main(folder: Path, kinds: Sequence[str]) -> int:
    found = 0
    for kind in kinds:
        for line in problems(await take(find_scripts(folder), kind, folder)):
            sys.stdout.write(f"{kind} {line}\n")
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    sys.exit(asyncio.run(main(Path(sys.argv[1]).absolute(), sys.argv[2:] or KINDS)))

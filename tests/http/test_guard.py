"""Blocked links of upstream, over HTTP: `docs/reference/cache.md#fetching-images-behind-links`.

The simulated upstream answers with exactly the link of each row. The gateway never connects to the
inner server, its error names no reason, and the purchase is charged and recorded because upstream
has made the image. Which links are blocked for which reason is tested in `test_fetch`.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest
import pytest_asyncio

from gateway.assembly import OpenLinks
from gateway.images import Record
from gateway.simulator.drawing import draw_image
from gateway.tracing import Tracer
from gateway.upstream.fetch import FetchSettings, LinkFetcher, open_link_fetcher
from tests.examples import some_rows
from tests.gateways import Client, InProcess, Reply, make_settings, run_gateway, run_upstream
from tests.inner_server import (
    INSIDE,
    REDIRECTED,
    Inner,
    Names,
    Outer,
    names_that_lead_inside,
    run_inner,
    run_outer,
)
from tests.pngs import write_png
from tests.rows import each_row
from tests.waiting import DEADLINE_SECONDS, run_out_of_time

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "dall-e-3"
COST_MICROS = 40_000
"""Of an image of 1024x1024 in standard quality."""
MIB = 1 << 20
MAX_LINK = 1000
"""Characters. Percent-encoded, up to three times as many still fit in a dall-e-3 prompt."""


def opening(names: Names) -> OpenLinks:
    """Fetchers that resolve names from a table, with a deadline that a test can exhaust."""

    def open_links(
        settings: FetchSettings, *, observer: Callable[[str], None], tracer: Tracer
    ) -> AbstractAsyncContextManager[LinkFetcher]:
        given = settings.model_copy(update={"timeout_seconds": DEADLINE_SECONDS})
        return open_link_fetcher(given, observer=observer, tracer=tracer, resolver=names)

    return open_links


@dataclass(frozen=True)
class Result:
    """The result of a purchase whose image is behind a link."""

    reply: Reply
    record: Record
    outcomes: list[str]
    """The outcomes that `gateway_rehost_total` counted during the purchase."""


@dataclass(frozen=True)
class Trap:
    """A gateway, an inner server that it must never reach, and an outer one that it may."""

    gateway: InProcess
    alice: Client
    inner: Inner
    outer: Outer
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def buy(self, link: str) -> Result:
        """Buys an image that upstream says is at `link`."""
        prompt = f"{next(self.numbers)} [[sim:url={quote(link, safe='')}]]"
        before = await self.alice.metrics()
        reply = await self.alice.ask(prompt, model=MODEL)
        after = await self.alice.metrics()
        *_, record = await self.gateway.ledger()
        return Result(reply, record, _counted(before, after))


def _counted(before: dict[str, float], after: dict[str, float]) -> list[str]:
    start = 'gateway_rehost_total{outcome="'
    return [
        name.removeprefix(start).removesuffix('"}')
        for name, value in after.items()
        if name.startswith(start) and value != before.get(name, 0)
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trap(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Trap]:
    """One for all rows. Without a breaker, failures of one row do not affect the next."""
    async with run_upstream() as upstream, run_inner() as inner, run_outer() as outer:
        settings = make_settings(
            tmp_path_factory.mktemp("guard"),
            upstream.base_url,
            upstream={"breaker": {"failures": 0}},
            cache={"max_image": "1MiB"},
            rehost={"allow": [outer.url.removeprefix("http://")]},
        )
        names = names_that_lead_inside()
        async with run_gateway(settings, open_links=opening(names)) as here:
            yield Trap(here, await here.client.with_key(), inner, outer)


def assert_charged_and_undelivered(result: Result, link: str, outcome: str | None) -> None:
    reply, record = result.reply, result.record
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    assert link not in reply.body.decode()
    assert reply.headers["x-should-retry"] == "false"
    assert reply.headers["x-gateway-cost-usd"] == "0.040000"
    assert record.outcome == "failed"
    assert record.flags == ("undelivered",)
    assert record.cost_micros == COST_MICROS
    assert result.outcomes == ([outcome] if outcome is not None else [])


# ── links that lead inside ──────────────────────────────────────────────────────────────────

# A `data:` URL holds its bytes: nothing is fetched, so no outcome of a fetch is counted.
DIRECT = [
    (link, None if link.startswith("data:") else outcome)
    for link, outcome in INSIDE
    if 0 < len(link) <= MAX_LINK
]


@each_row(
    ("link", "outcome"), some_rows(DIRECT), ids=[repr(row[0])[:60] for row in some_rows(DIRECT)]
)
async def test_a_link_to_an_inner_address_is_charged_and_not_followed(
    trap: Trap, link: str, outcome: str | None
) -> None:
    link = link.replace("{port}", str(trap.inner.port))
    assert_charged_and_undelivered(await trap.buy(link), link, outcome)
    assert trap.inner.connections == 0


@each_row(
    ("link", "outcome"),
    some_rows(REDIRECTED),
    ids=[repr(row[0])[:60] for row in some_rows(REDIRECTED)],
)
async def test_a_redirect_to_an_inner_address_is_charged_and_not_followed(
    trap: Trap, link: str, outcome: str
) -> None:
    trap.outer.location = link.replace("{port}", str(trap.inner.port))
    before = len(trap.outer.paths)
    result = await trap.buy(f"{trap.outer.url}/redirect")
    assert_charged_and_undelivered(result, trap.outer.location, outcome)
    assert len(trap.outer.paths) == before + 1
    assert trap.inner.connections == 0


async def test_a_name_that_resolves_differently_at_the_connection_is_blocked(
    tmp_path: Path,
) -> None:
    """The first connection is to an allowed address, the second would be to the inner server."""
    names = Names({"fickle.example": [["127.0.0.2"], ["127.0.0.1"]]})
    async with (
        run_upstream() as upstream,
        run_inner() as inner,
        run_outer("127.0.0.2", name="fickle.example", port=inner.port) as outer,
    ):
        settings = make_settings(tmp_path, upstream.base_url, rehost={"allow": ["127.0.0.2"]})
        async with run_gateway(settings, open_links=opening(names)) as here:
            fickle = Trap(here, await here.client.with_key(), inner, outer)
            link = f"{outer.url}/hop?left=1"
            assert_charged_and_undelivered(await fickle.buy(link), link, "address")
            assert names.asked == ["fickle.example"] * 2
            assert outer.paths == ["/hop?left=1"]
            assert inner.connections == 0


# ── allowed links without an image ──────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "outcome"),
    [
        ("gigabyte?declared", "too_large"),
        ("gigabyte", "too_large"),
        ("drip", "timeout"),
        ("silent", "timeout"),
        ("slow-hop?left=5", "timeout"),
        ("hop?left=6", "redirects"),
        ("typed?type=text/html", "type"),
        ("typed?type=image/svg%2Bxml", "fetched"),  # of a type that images may have
        ("packed", "encoding"),
        ("cut", "cut"),
        ("missing", "status"),
        ("part", "status"),
        ("image", "fetched"),  # of the right type, but no image
    ],
)
async def test_an_answer_without_an_image_is_charged(trap: Trap, path: str, outcome: str) -> None:
    link = f"{trap.outer.url}/{path}"
    buying, before = trap.buy(link), len(trap.outer.paths)
    if outcome == "timeout":
        buying = run_out_of_time(buying, once=lambda: len(trap.outer.paths) > before)
    assert_charged_and_undelivered(await buying, link, outcome)
    assert trap.outer.sent_bytes < 16 * MIB


@pytest.mark.parametrize("size", [(100_000, 100_000), (1, 0), (2**31 - 1, 2**31 - 1)])
async def test_a_decompression_bomb_is_not_decompressed(trap: Trap, size: tuple[int, int]) -> None:
    trap.outer.body = write_png(*size, zlib.compress(bytes(16 * MIB)))
    assert len(trap.outer.body) < MIB
    link = f"{trap.outer.url}/body"
    assert_charged_and_undelivered(await trap.buy(link), link, "fetched")


@pytest.mark.parametrize("body", [b"\x89PNG\r", b"", b"GIF89a" + bytes(100)])
async def test_a_body_that_is_no_image_is_charged(trap: Trap, body: bytes) -> None:
    trap.outer.body = body
    link = f"{trap.outer.url}/body"
    assert_charged_and_undelivered(await trap.buy(link), link, "fetched")


async def test_a_good_image_behind_a_link_is_delivered(trap: Trap) -> None:
    """This gateway delivers images, so each row above was blocked for its own reason."""
    trap.outer.body = draw_image("a pond", width=64, height=64, format="png", seed=1)
    result = await trap.buy(f"{trap.outer.url}/body")
    link = result.reply.json["data"][0]["url"]
    async with trap.alice.session.get(link) as shown:
        assert await shown.read() == trap.outer.body
    assert result.record.outcome == "bought"
    assert result.outcomes == ["fetched"]

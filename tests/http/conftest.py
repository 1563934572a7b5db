"""Fixtures of the tests over HTTP."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.gateways import (
    TLS,
    Client,
    InProcess,
    Upstream,
    make_settings,
    run_gateway,
    run_upstream,
)
from tests.stores import TOPOLOGIES

OpenGateway = Callable[..., AbstractAsyncContextManager[InProcess]]
"""Opens another gateway on the test's store; keyword arguments are sections of its settings."""


@pytest.fixture(params=["sqlite", "redis", *TOPOLOGIES])
def store_url(request: pytest.FixtureRequest) -> str | None:
    """Each test runs on all stores; None is the embedded one."""
    if request.param == "sqlite":
        return None
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """A simulated upstream for this test alone."""
    async with run_upstream() as opened:
        yield opened


@pytest.fixture
def package_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the packages of clients take from the environment: proxies and trusted authorities."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # Each client reads them, and a system's hundreds take 50 ms.
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "authority.pem"))


@pytest.fixture
def open_gateway(tmp_path: Path, upstream: Upstream, store_url: str | None) -> OpenGateway:
    """Opens gateways that share one store."""

    def open_one(**sections: Any) -> AbstractAsyncContextManager[InProcess]:
        return run_gateway(
            make_settings(tmp_path / "data", upstream.base_url, store_url, **sections)
        )

    return open_one


@pytest.fixture
async def gateway(open_gateway: OpenGateway) -> AsyncIterator[InProcess]:
    """One gateway; the test runs on both stores."""
    async with open_gateway() as opened:
        yield opened


@pytest.fixture
async def embedded(tmp_path: Path, upstream: Upstream) -> AsyncIterator[InProcess]:
    """One gateway on the embedded store, for behaviour that does not depend on the store."""
    settings = make_settings(tmp_path / "embedded", upstream.base_url)
    async with run_gateway(settings) as opened:
        yield opened


@pytest.fixture
async def alice(gateway: InProcess) -> Client:
    """A key without limits at `gateway`."""
    return await gateway.client.with_key("alice")


@dataclass(frozen=True)
class Shared:
    """A gateway and its upstream for all tests of a module; each test uses its own prompts."""

    gateway: InProcess
    upstream: Upstream
    alice: Client
    """A key without limits."""

    async def sent(self, prompt: str) -> list[dict[str, Any]]:
        """The bodies that upstream received with this prompt, oldest first."""
        return [body for body in await self.upstream.bodies() if body["prompt"] == prompt]

    async def count_requests(self, key_name: str) -> int:
        """The number of image requests of a key that the gateway has answered."""
        records = await self.gateway.ledger()
        return sum(record.count or 1 for record in records if record.key == key_name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shared]:
    """For long tables. A module that uses it marks its tests `asyncio(loop_scope="module")`.

    It has no circuit breaker, so that failures of one row do not affect the next.
    """
    async with run_upstream() as upstream:
        folder = tmp_path_factory.mktemp("shared")
        settings = make_settings(folder, upstream.base_url, upstream={"breaker": {"failures": 0}})
        async with run_gateway(settings) as opened:
            # A long table of wrong keys is not refused for its length.
            opened.gateway.services.attempts._clock = lambda: 1000 * time.monotonic()
            yield Shared(opened, upstream, await opened.client.with_key("alice"))

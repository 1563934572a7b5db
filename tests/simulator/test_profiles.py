"""The simulated services: accounts with a rate each, and requests that the service would refuse.

What they answer to the gateway is in `tests/http/test_azure_upstream.py` and `test_services.py`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from pydantic import ValidationError

from gateway.catalog import parse_catalog
from gateway.simulator import SimulatorSettings, create_simulator
from tests.catalogs import SHIPPED, read_shipped
from tests.scripted_upstream import Clock

CATALOG = parse_catalog(read_shipped(), file=SHIPPED.name)
DEPLOYMENT = "/openai/deployments/gpt-image-2/images/generations"
AZURE = f"{DEPLOYMENT}?api-version=2025-04-01-preview"
PATH = "/v1/images/generations"
GPT = {"model": "gpt-image-2", "prompt": "an otter"}
GROK = {"model": "grok-imagine-image", "prompt": "an otter"}
FLUX = {"model": "black-forest-labs/FLUX.1-dev", "prompt": "an otter"}
KEY = {"Authorization": "Bearer sk-a"}


@asynccontextmanager
async def running(clock: Clock | None = None, **settings: Any) -> AsyncIterator[str]:
    """A simulated service; its URL without a path."""
    options = SimulatorSettings(latency_scale=0, small_images=True, **settings)
    given = {} if clock is None else {"clock": lambda: clock.now}
    app = create_simulator(CATALOG, options, **given)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def call(
    url: str, body: Mapping[str, Any], headers: Mapping[str, str] = KEY
) -> tuple[int, Mapping[str, str], Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=body, headers=headers) as response,
    ):
        return response.status, response.headers, await response.json()


async def test_each_account_has_a_rate_of_its_own_and_says_what_is_left() -> None:
    clock, other = Clock(), {"Authorization": "Bearer sk-b"}
    async with running(clock, images_per_minute=6, keys=("sk-a", "sk-b")) as root:
        url = root + PATH
        _, first, _ = await call(url, {**GPT, "n": 4})
        limited, headers, body = await call(url, {**GPT, "n": 3})
        unaffected, _, _ = await call(url, GPT, other)
        clock.now += 10
        again, _, _ = await call(url, {**GPT, "n": 3})
        clock.now += 60
        large, left, _ = await call(url, {**GPT, "n": 10})
        clock.now += 49
        early, wait, _ = await call(url, GPT)
        unknown, _, _ = await call(url, GPT, {"Authorization": "Bearer sk-of-nobody-at-all"})

    names = ("limit", "remaining", "reset")
    assert [first[f"x-ratelimit-{name}-images"] for name in names] == ["6", "2", "40000ms"]
    assert (limited, headers["Retry-After"], headers["retry-after-ms"]) == (429, "10", "10000")
    assert body["error"]["code"] == "rate_limit_exceeded"
    # More than a minute's worth goes when the minute is full, and is paid off afterwards.
    assert (unaffected, again, large, unknown) == (200, 200, 200, 401)
    assert left["x-ratelimit-remaining-images"] == "0"
    assert (early, wait["retry-after-ms"]) == (429, "1000")


async def test_one_account_fails_and_the_other_does_not() -> None:
    faults = {"sk-b": ("billing-limit",), "sk-c": ("status=503",)}
    async with running(keys=("sk-a", "sk-b", "sk-c"), key_faults=faults) as root:
        found = [
            (await call(root + PATH, GPT, {"Authorization": f"Bearer {key}"}))[0]
            for key in ("sk-a", "sk-b", "sk-c", "sk-d")
        ]
    assert found == [200, 400, 503, 401]


@pytest.mark.parametrize(
    ("profile", "path", "body", "headers", "status", "said"),
    [
        ("azure", DEPLOYMENT, {"prompt": "x"}, {"api-key": "k"}, 404, "Resource not found"),
        ("azure", AZURE, {"prompt": "x"}, {}, 401, "invalid subscription key"),
        ("azure", AZURE, {"prompt": "x", "model": "gpt-image-2"}, {"api-key": "k"}, 400, "model"),
        (
            *("azure", AZURE, {"prompt": "x", "output_format": "webp"}, {"api-key": "k"}, 400),
            "Supported values are: 'png' and 'jpeg'",
        ),
        ("xai", PATH, {**GROK, "size": "1024x1024"}, KEY, 400, "Argument not supported: size"),
        ("xai", PATH, {**GROK, "resolution": "4k"}, KEY, 400, "Supported values"),
        ("xai", PATH, GPT, KEY, 400, "does not exist"),
        ("together", PATH, {**FLUX, "response_format": "b64_json"}, KEY, 400, "response_format"),
        ("together", PATH, {**FLUX, "guidance": 3.5}, KEY, 400, "Unknown parameter: guidance"),
        ("openai", PATH, GROK, KEY, 400, "does not exist"),
    ],
)
async def test_a_service_refuses_what_it_does_not_know(
    profile: str,
    path: str,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    status: int,
    said: str,
) -> None:
    async with running(profile=profile, keys=("k", "sk-a")) as root:
        answered, _, error = await call(root + path, body, headers)
    assert answered == status
    assert said in json.dumps(error)


async def test_azure_makes_a_higher_quality_than_openai_if_none_is_named() -> None:
    async with running(profile="azure") as root:
        _, _, omitted = await call(root + AZURE, {"prompt": "x"})
        _, _, named = await call(root + AZURE, {"prompt": "x", "quality": "low"})
    assert (omitted["quality"], named["quality"]) == ("high", "low")
    assert {"content_filter_results", "prompt_filter_results"} <= set(named["data"][0])


def test_unknown_profiles_and_faults_of_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="known are openai, azure, xai, together"):
        SimulatorSettings(profile="acure")
    with pytest.raises(ValidationError, match="Unknown fault"):
        SimulatorSettings(key_faults={"sk-a": ("stauts=500",)})

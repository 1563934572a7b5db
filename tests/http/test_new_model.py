"""A new model needs only a row in `models.yaml`, also for the simulated upstream."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from PIL import Image

from tests.catalogs import read_shipped
from tests.forks import Fork
from tests.gateways import (
    CONFIG,
    Client,
    PolicyFile,
    Reply,
    Upstream,
    make_settings,
    run_gateway,
    run_upstream,
)
from tests.processes import kill_group

ROWS = """
heron-1:
  created: 1790000000
  owned_by: pond
  cache_epoch: 1
  prompt_max_characters: 40
  parameters:
    n: {type: integer, min: 1, max: 4, default: 1}
    quality: {type: choice, values: [draft, fine, auto], default: auto}
    size: {type: choice, values: [512x512, 768x512, auto], default: auto}
    weather: {type: choice, values: [mist, sun], default: sun}
    partial_images: {type: integer, min: 0, max: 2, default: 0}
    stream: {type: boolean, default: false}
  rules:
    - when: {weather: {equals: mist}, quality: {equals: draft}}
      error: {message: Mist needs a fine quality, param: weather}
  billing:
    by: tokens
    usd_per_million_tokens: {text_in: "1.00", image_in: "1.00", image_out: "50.00"}
    output_tokens:
      512x512: {draft: 100, fine: 700}
      768x512: {draft: 150, fine: 900}
    partial_image_tokens: 30
    dearest_size: 768x512
carp-1:
  created: 1790000001
  owned_by: pond
  cache_epoch: 1
  prompt_max_characters: 100
  parameters:
    quality: {type: choice, values: [plain, rich], default: plain}
    size: {type: choice, values: [640x640, 320x640], default: 320x640}
  billing:
    by: image
    usd_per_image:
      640x640: {plain: "0.003", rich: "0.007"}
      320x640: {plain: "0.002", rich: "0.005"}
moth-1:
  created: 1790000002
  owned_by: pond
  cache_epoch: 1
  prompt_max_characters: 100
  parameters:
    quality: {type: choice, values: [grey, bright, auto], default: auto}
    size:
      type: size
      values: [auto]
      default: auto
      example: 320x160
      divisor: 10
      max_edge: 400
      min_pixels: 100
      max_pixels: 102400
      max_ratio: 2
  billing:
    by: tokens
    usd_per_million_tokens: {text_in: "1.00", image_in: "1.00", image_out: "1000.00"}
    output_tokens_formula: {grid: {grey: 4, bright: 8}, pixels_offset: 0, pixels_divisor: 3200}
    partial_image_tokens: 0
    dearest_size: 300x300
"""
"""Models that are billed by tokens, per image, and by the tokens of a formula for any size."""


@dataclass(frozen=True)
class Pond:
    """A gateway and a simulated upstream with the new rows."""

    alice: Client
    upstream: Upstream

    async def call_upstream(self, **body: Any) -> Reply:
        """A request that bypasses the gateway."""
        direct = Client(self.upstream.root, self.upstream.session)
        return await direct.ask(**body)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shipped configuration and the new rows, which takes a second."""
    folder = tmp_path_factory.mktemp("config")
    shutil.copy(CONFIG / "gateway.yaml", folder)
    data = read_shipped()
    data["models"] |= yaml.safe_load(ROWS)
    (folder / "models.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return folder


@pytest.fixture
async def pond(config: Path, tmp_path: Path) -> AsyncIterator[Pond]:
    policy = PolicyFile(config / "models.yaml")
    async with run_upstream(policy.read_policy().catalog) as upstream:
        settings = make_settings(tmp_path / "data", upstream.base_url)
        async with run_gateway(settings, policy=policy) as gateway:
            yield Pond(await gateway.client.with_key("alice"), upstream)


def image_size(reply: Reply) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(reply.images[0]))).size


async def test_a_new_model_billed_by_tokens_is_bought_at_the_prices_of_its_row(pond: Pond) -> None:
    body = {"model": "heron-1", "prompt": "a heron", "size": "768x512", "quality": "fine", "n": 2}
    bought, hit = await pond.alice.ask(**body), await pond.alice.ask(**body)

    assert bought.status == 200, bought.body
    assert image_size(bought) == (768 // 16, 512 // 16)
    assert (bought.json["size"], bought.json["quality"]) == ("768x512", "fine")
    usage = bought.json["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (9, 2 * 900)
    assert bought.headers["x-gateway-cost-usd"] == "0.090009"
    assert hit.cache_status.startswith("hit")
    assert len(await pond.upstream.bodies()) == 1


async def test_omitted_values_become_the_first_size_and_the_most_expensive_quality(
    pond: Pond,
) -> None:
    reply = await pond.alice.ask(model="heron-1", prompt="a heron")

    assert (reply.json["size"], reply.json["quality"]) == ("512x512", "fine")
    assert reply.json["usage"]["output_tokens"] == 700
    assert await pond.upstream.bodies() == [{"model": "heron-1", "prompt": "a heron"}]


async def test_a_stream_bills_partial_images_at_the_tokens_of_the_row(pond: Pond) -> None:
    body = {"stream": True, "partial_images": 2, "quality": "draft"}
    reply = await pond.alice.ask(model="heron-1", prompt="a heron", **body)

    assert reply.body.count(b"event: image_generation.partial_image\n") == 2
    assert b'"output_tokens":160' in reply.body.replace(b" ", b"")


async def test_a_new_model_billed_per_image_costs_the_price_of_its_row(pond: Pond) -> None:
    plain = await pond.alice.ask(model="carp-1", prompt="a carp")
    rich = await pond.alice.ask(model="carp-1", prompt="a carp", size="640x640", quality="rich")

    assert image_size(plain) == (320 // 16, 640 // 16)
    assert plain.headers["x-gateway-cost-usd"] == "0.002000"
    assert rich.headers["x-gateway-cost-usd"] == "0.007000"
    assert "usage" not in rich.json


async def test_a_new_model_of_any_size_bills_the_tokens_of_its_formula(pond: Pond) -> None:
    default = await pond.alice.ask(model="moth-1", prompt="a moth")
    requested = await pond.alice.ask(
        model="moth-1", prompt="a moth", size="320x320", quality="grey"
    )

    assert (default.json["size"], default.json["quality"]) == ("320x160", "bright")
    assert default.json["usage"]["output_tokens"] == 8 * 4 * (320 * 160) // 3200
    assert requested.json["usage"]["output_tokens"] == 4 * 4 * (320 * 320) // 3200
    assert requested.headers["x-gateway-cost-usd"] == "0.512009"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"model": "heron-1", "background": "opaque"}, "unknown_parameter", "background"),
        ({"model": "heron-1", "n": 5}, "integer_above_max_value", "n"),
        ({"model": "heron-1", "size": "1024x1024"}, "invalid_value", "size"),
        ({"model": "heron-1", "weather": None}, "invalid_type", "weather"),
        ({"model": "heron-1", "weather": "mist", "quality": "draft"}, None, "weather"),
        ({"model": "heron-1", "prompt": "x" * 41}, "string_above_max_length", "prompt"),
        ({"model": "moth-1", "size": "410x400"}, "invalid_value", "size"),
        ({"model": "carp-1", "n": 1}, "unknown_parameter", "n"),
        ({"model": "carp-1", "quality": "auto"}, "invalid_value", "quality"),
    ],
)
async def test_the_simulated_upstream_refuses_values_that_the_row_does_not_allow(
    pond: Pond, body: dict[str, Any], code: str | None, param: str
) -> None:
    reply = await pond.call_upstream(**body)

    assert reply.status == 400
    assert (reply.error["code"], reply.error["param"]) == (code, param)


# ── commands ────────────────────────────────────────────────────────────────────────────────


@contextmanager
def started(folder: Path, *words: str) -> Iterator[Fork]:
    """Runs a command that serves; on exit, kills it and its children."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "GATEWAY_DATA_DIR": str(folder / "data"),
        "GATEWAY_LISTEN": "127.0.0.1:0",
    }
    with (folder / "log").open("w") as log:
        process = Fork(*words, cwd=folder, env=environment, stderr=log)
    with process.stdout:
        try:
            yield process
        finally:
            kill_group(process.pid)
            process.wait()


def read_until(process: Fork, start: str) -> str:
    """The output of a command, up to and including the line that starts with `start`."""
    printed = ""
    for line in map(bytes.decode, process.stdout):
        printed += line
        if line.startswith(start):
            return printed
    raise AssertionError(printed)


async def test_gateway_demo_serves_a_new_model(config: Path, tmp_path: Path) -> None:
    with started(tmp_path, "demo", "--config", str(config / "gateway.yaml")) as demo:
        printed = await asyncio.to_thread(read_until, demo, "Listening on ")
        secret = re.search(r"Bearer ([\w-]+)", printed)
        url = printed.split("Listening on ")[1].strip()
        assert secret is not None
        async with aiohttp.ClientSession() as session:
            reply = await Client(url, session, secret[1]).ask(model="carp-1", prompt="a carp")

    assert reply.status == 200, reply.body
    assert image_size(reply) == (320, 640)


async def test_gateway_simulate_reads_the_models_beside_its_configuration(
    config: Path, tmp_path: Path
) -> None:
    words = ("simulate", "--listen", "127.0.0.1:0", "--config", str(config / "gateway.yaml"))
    with started(tmp_path, *words) as simulator:
        printed = await asyncio.to_thread(read_until, simulator, "Simulated upstream at ")
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{printed.split(' at ')[1].strip()}/models/carp-1") as response,
        ):
            assert (await response.json())["owned_by"] == "pond"

"""The npm package `openai` with the gateway: it reads streams, and raises their errors."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gates import hold_streams
from tests.gateways import Client, InProcess
from tests.npm import install_packages

PACKAGE = "openai@7.5.0"
SCRIPT = Path(__file__).with_name("stream.mjs")
PARTIAL = "image_generation.partial_image"
COMPLETED = "image_generation.completed"


@pytest.fixture(scope="module")
def package() -> Path:
    """The folder with the installed package."""
    return install_packages(PACKAGE)


async def stream(
    package: Path, client: Client, prompt: str, *, on_first: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """The events that the package reads; calls `on_first` when the first arrives."""
    process = await asyncio.create_subprocess_exec(
        *("node", SCRIPT, f"{client.url}/v1", client.secret, prompt),
        cwd=package,
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    first = await process.stdout.readline()
    on_first()
    stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    return [json.loads(line) for line in [first, *stdout.splitlines()]]


async def test_the_package_iterates_over_three_partial_images_and_the_image(
    package: Path, embedded: InProcess
) -> None:
    """The first partial image arrives before upstream makes the second."""
    alice = await embedded.client.with_key()
    with hold_streams(after=1) as go_on:
        *partials, completed = await stream(package, alice, "an otter", on_first=go_on.open)

    assert [(p["type"], p["partial_image_index"]) for p in partials] == [
        (PARTIAL, 0),
        (PARTIAL, 1),
        (PARTIAL, 2),
    ]
    assert completed["type"] == COMPLETED
    assert completed["usage"]["output_tokens"] == 7024 + 3 * 100


@pytest.mark.parametrize("fault", ["stream-error", "truncate", "stream-no-completed"])
async def test_a_failure_in_a_stream_raises_in_the_package(
    package: Path, embedded: InProcess, fault: str
) -> None:
    alice = await embedded.client.with_key()
    events = await stream(package, alice, f"[[sim:{fault}]] an otter")

    assert events[-1]["error"] == "APIError"
    assert events[-1]["code"] in ("image_generation_failed", "upstream_error")

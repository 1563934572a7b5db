"""LiteLLM's proxy, as the client that runs in front of a gateway, or as its upstream."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.bench.processes import run_process
from tests.ports import free_port
from tests.waiting import eventually

START_SECONDS = 120
MASTER_KEY = "sk-" + secrets.token_urlsafe(32)
"""What its own clients send. LiteLLM does not start with a weak key."""


@asynccontextmanager
async def run_litellm(
    binary: Path, folder: Path, models: Mapping[str, Mapping[str, Any]]
) -> AsyncIterator[str]:
    """Runs the proxy with these models, and yields its address once it answers."""
    port, config = free_port(), folder / "litellm.yaml"
    rows = [{"model_name": name, "litellm_params": params} for name, params in models.items()]
    config.write_text(json.dumps({"model_list": rows}))  # JSON is YAML
    command = [binary, "--config", config, "--port", str(port), "--host", "127.0.0.1"]
    environ = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # its packaged price list
        "LITELLM_LOG": "ERROR",
        "LITELLM_MASTER_KEY": MASTER_KEY,
        "NO_PROXY": "127.0.0.1",
    }
    url = f"http://127.0.0.1:{port}"

    async def is_alive() -> bool:
        async with aiohttp.ClientSession() as session:
            try:
                async with session.get(f"{url}/health/liveliness") as response:
                    return response.status == 200
            except aiohttp.ClientError:
                return False

    running = run_process("litellm", command, port=port, folder=folder, environ=environ)
    await asyncio.to_thread(running.__enter__)
    try:
        await eventually(is_alive, seconds=START_SECONDS)
        yield url
    finally:
        await asyncio.to_thread(running.__exit__, None, None, None)

"""Runs the scripts of this folder, which print a line of JSON for each of their steps."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.npm import install_packages

# The newest playwright-core that runs on Node 18, which Debian 12 has.
PACKAGES = ("playwright-core@1.61.1", "axe-core@4.14.1")
FOLDER = Path(__file__).parent
MAX_SECONDS = 300.0
"""Only ends a browser that hangs."""
MAX_LINE_BYTES = 2**20

Steps = list[dict[str, Any]]


@dataclass(frozen=True)
class Scripts:
    """Runs scripts with one Chromium each."""

    packages: Path
    chromium: str
    folder: Path
    """What scripts leave: pages that failed, screenshots."""

    async def run(
        self,
        name: str,
        *,
        on: Mapping[str, Callable[[], object]] | None = None,
        max_seconds: float = MAX_SECONDS,
        **given: Any,
    ) -> Steps:
        """The steps of a script. At a step in `on`, it waits until the function there is done."""
        whole = {**given, "chromium": self.chromium, "folder": str(self.folder)}
        process = await asyncio.create_subprocess_exec(
            *("node", str(FOLDER / name), json.dumps(whole)),
            cwd=self.packages,
            env={**os.environ, "NO_PROXY": "127.0.0.1", "DBUS_SESSION_BUS_ADDRESS": "disabled:"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        problems = asyncio.create_task(process.stderr.read())
        steps: Steps = []
        try:
            async with asyncio.timeout(max_seconds):
                async for line in process.stdout:
                    steps.append(json.loads(line))
                    if (act := (on or {}).get(steps[-1]["step"])) is not None:
                        act()
                        process.stdin.write(b"\n")
                status = await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()  # playwright-core ends its browser
                await process.wait()
        done = [step["step"] for step in steps]
        assert status == 0, f"{name} failed after {done}:\n{(await problems).decode()}"
        return steps


def find_scripts(folder: Path) -> Scripts:
    """Skips the test without node, the packages or Chromium."""
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    return Scripts(install_packages(*PACKAGES), chromium, folder)


def the(steps: Steps, name: str) -> dict[str, Any]:
    """The only step of this name."""
    (found,) = [step for step in steps if step["step"] == name]
    return found

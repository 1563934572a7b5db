"""The machine of a run, and the versions of what runs on it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import redis

from tests.bench.processes import tool_path

_NAMES = ("aiohttp", "uvloop", "hiredis", "orjson", "pybase64", "Pillow")
PACKAGES = {**{name: name for name in _NAMES}, "redis-py": "redis", "ISA-L": "isal"}
"""Packages that requests run through, by name. The last one is optional."""


def describe_machine() -> dict[str, Any]:
    """Facts on which figures depend."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor_name(),
        "processors": os.cpu_count() or 1,
        "memory_bytes": memory,
        "kernel": platform.release(),
    }


def processor_name() -> str:
    """The model, or the architecture if the kernel does not tell."""
    names = re.findall(r"(?m)^model name\s*: (.+?) *$", Path("/proc/cpuinfo").read_text())
    return names[0] if names else platform.machine()


def describe_versions(redis_url: str) -> dict[str, str]:
    """Versions by name. The gateway's is followed by its commit."""
    with redis.Redis.from_url(redis_url) as client:
        store = store_version(client)
    commit = _output(["git", "describe", "--always", "--dirty"])
    return {
        "gateway": f"{version('image-gateway')} {commit}".strip(),
        "Python": platform.python_version(),
        "store": store,
        "nginx": _output(["nginx", "-v"]).rpartition("/")[2],
        "wrk": _output(["wrk", "-v"]).partition("[")[0].removeprefix("wrk").strip(),
        **_package_versions(),
    }


def _package_versions() -> dict[str, str]:
    found = {}
    for name, package in PACKAGES.items():
        with suppress(PackageNotFoundError):
            found[name] = version(package)
    return found


def store_version(client: redis.Redis) -> str:
    """Such as `Redis 7.0.15` or `Valkey 8.1.0`."""
    info = client.info("server")
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info['redis_version']}"


def _output(command: Sequence[str]) -> str:
    """The first line that a command prints; empty if there is no such command."""
    environ = {**os.environ, "PATH": tool_path()}
    try:
        done = subprocess.run(command, capture_output=True, check=False, text=True, env=environ)
    except FileNotFoundError:
        return ""
    return (done.stdout + done.stderr).strip().partition("\n")[0]

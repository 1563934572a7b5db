"""The client packages, each version installed once, in a cache outside the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest

from tests.clients.calls import Call

HERE = Path(__file__).parent
RUNNERS = HERE / "runners"
INSTALL_SECONDS = 600
_failed: set[Path] = set()
"""Folders of packages that could not be installed in this run; nothing is tried twice."""


@dataclass(frozen=True)
class Entry:
    """A client of `clients.toml`."""

    id: str
    name: str
    version: str
    packages: tuple[str, ...]
    runner: str
    flavour: str = ""
    base_url: str = "/v1"
    """What follows the gateway's address in its base URL."""
    route: str = "direct"
    needs: str = ""
    reports_usage: bool = True
    """Whether its callers see the usage."""
    gets: dict[str, str] = field(default_factory=dict)
    """What differs from the usual outcome, by call, or by validation and call."""

    def expected(self, validation: str, call: Call) -> str:
        """The outcome of a call; "any gpt-image-1.5" is about all calls for that model."""
        names = [f"{validation}: {call.name}", call.name]
        if call.key != "wrong":
            names += [f"{validation}: any {call.model}", f"any {call.model}"]
        usual = next((self.gets[name] for name in names if name in self.gets), None)
        if usual is None:
            usual = call.expected(validation)
        if call.repeats and not self.reports_usage:
            usual = usual.removesuffix(", usage").removesuffix(", usage 0")
        return usual

    @property
    def is_node(self) -> bool:
        return self.runner.endswith(".mjs")


def read_entries() -> list[Entry]:
    with (HERE / "clients.toml").open("rb") as file:
        rows = tomllib.load(file)["client"]
    return [Entry(**{**row, "packages": tuple(row["packages"])}) for row in rows]


def command_of(entry: Entry) -> list[str]:
    """The command of an entry's runner; installs what it needs, or skips the test."""
    folder = install(entry)
    if not entry.is_node:
        return [str(folder / "bin" / "python"), str(RUNNERS / entry.runner)]
    # Node finds packages beside the script that imports them.
    for name in (entry.runner, "calls.mjs"):
        shutil.copyfile(RUNNERS / name, folder / name)
    return ["node", str(folder / entry.runner)]


def install(entry: Entry) -> Path:
    """The folder with the entry's packages. Skips the test if they cannot be installed."""
    digest = hashlib.sha256(" ".join(entry.packages).encode()).hexdigest()[:8]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kind = "npm" if entry.is_node else "pip"
    folder = cache / "image-gateway-tests" / "clients" / f"{kind}-{entry.version}-{digest}"
    done = folder / "installed"
    if folder in _failed:
        _skip(entry)
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _install_into(folder, entry)
        done.touch()
    return folder


def _install_into(folder: Path, entry: Entry) -> None:
    if entry.is_node:
        if shutil.which("npm") is None or shutil.which("node") is None:
            pytest.skip(f"{entry.name} is not installable: apt-get install nodejs npm")
        options = ("--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1")
        commands = [["npm", "install", *options, "--prefix", str(folder), *entry.packages]]
    else:
        pip = (str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet")
        quiet = ("--disable-pip-version-check", "--no-input", "--retries=1")
        commands = [
            [sys.executable, "-m", "venv", str(folder)],
            [*pip, *quiet, *entry.packages],
        ]
    for command in commands:
        finished = None
        with suppress(subprocess.TimeoutExpired):
            finished = subprocess.run(
                command, capture_output=True, check=False, text=True, timeout=INSTALL_SECONDS
            )
        if finished is None or finished.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            _failed.add(folder)
            _skip(entry)


def _skip(entry: Entry) -> NoReturn:
    pytest.skip(f"{entry.name} {entry.version} is not installable here")

"""Packages of npm for tests, installed once, outside the repository.

Without node or a package registry their tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

QUIET = ("--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")


def install_packages(*packages: str) -> Path:
    """The folder with these packages, each of which is `NAME@VERSION`. Node runs there."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node is not installed: apt-get install nodejs npm")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(cache) / "image-gateway-tests" / "+".join(packages)
    if not folder.exists():
        _install(folder, packages)
    return folder


def _install(folder: Path, packages: tuple[str, ...]) -> None:
    """Installs by renaming a temporary folder, because several processes may install at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        done = subprocess.run(
            ["npm", "install", *QUIET, "--prefix", f"{temporary}/new", *packages],
            capture_output=True,
            check=False,
            text=True,
        )
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:]
            pytest.skip(f"npm cannot install {', '.join(packages)}: {reason}")
        with suppress(OSError):  # another process was first
            Path(temporary, "new").rename(folder)

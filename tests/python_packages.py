"""Python packages that some tests need, in virtual environments outside the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def install_packages(*packages: str) -> Path:
    """The virtual environment with these packages, such as `moto==5.2.5`. Made once.

    Skips the test if they cannot be installed.
    """
    digest = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:8]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "image-gateway-tests" / f"python-{digest}"
    done = folder / "installed"
    if done.exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    for command in (
        [sys.executable, "-m", "venv", folder],
        [*pip, "--disable-pip-version-check", "--no-input", "--retries=1", *packages],
    ):
        finished = subprocess.run(command, capture_output=True, check=False, text=True)
        if finished.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            reason = finished.stderr.strip()[-200:]
            pytest.skip(f"{packages[0]} cannot be installed: {reason}")
    done.touch()
    return folder

"""This machine's package index, from pip's configuration and the environment."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

_NETWORK = {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"}


def pip_environment() -> dict[str, str]:
    """The variables with which pip finds packages in an otherwise empty environment."""
    found = {name: value for name, value in os.environ.items() if name.upper() in _NETWORK}
    for name, value in _options().items():
        found.setdefault(f"PIP_{name.upper().replace('-', '_')}", value)
    return found


def pip_config_file() -> str:
    """The same settings as the text of a `pip.conf`."""
    lines = (f"{name} = {value}".replace("\n", "\n  ") for name, value in _options().items())
    return "\n".join(("[global]", *lines, ""))


def pip_paths() -> list[Path]:
    """The files and folders of this machine that pip reads with these settings."""
    words = (word for value in _options().values() for word in value.split())
    paths = (_path(word) for word in words)
    return sorted({path for path in paths if path.is_absolute() and path.exists()})


def _path(word: str) -> Path:
    """An index of packages links to files that may lie beside it, so its parent is meant."""
    path = Path(word.removeprefix("file://"))
    return path.parent if word.startswith("file://") and len(path.parts) > 2 else path


def _options() -> dict[str, str]:
    """pip's options. Those of the environment come first and win."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, check=True, text=True
    )
    found: dict[str, str] = {}
    for line in listing.stdout.splitlines():
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        if option != "config-file":
            found.setdefault(option, str(ast.literal_eval(value)))
    return found

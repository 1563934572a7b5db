"""Other gateways to compare with: `make bench PEERS=litellm,portkey`.

Each is installed once, into its own environment outside the repository. Neither can cache images,
so they are measured for purchases only.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.bench.load import Failed, Target
from tests.bench.nginx import PATH
from tests.bench.processes import run_process
from tests.bench.processor_time import Processes
from tests.ports import free_port

MODEL = "gpt-image-2"
LITELLM_KEY = "sk-" + secrets.token_urlsafe(32)
"""LiteLLM does not start with a weak key."""

PORTKEY_PACKAGE = "@portkey-ai/gateway"


def _installed_at() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "image-gateway-bench"


def check_peers(names: Sequence[str]) -> None:
    """Installs the missing ones. Raises `Failed` for one that is unknown or cannot be installed."""
    for name in names:
        if name not in PEERS:
            raise Failed(f"'{name}' is no peer; there are {', '.join(PEERS)}")
        INSTALL[name](_installed_at() / name)


def run_peer(name: str, upstream: str, folder: Path) -> AbstractContextManager[Target]:
    """Runs an installed peer in front of that upstream; its files go into `folder`."""
    return PEERS[name](upstream, folder)


def _install(name: str, home: Path, *commands: Sequence[str | Path]) -> None:
    """If a command fails, removes the folder, so that the next run tries again."""
    print(f"installing {name} into {home}, once …", file=sys.stderr)  # noqa: T201
    home.mkdir(parents=True)
    for command in commands:
        done = subprocess.run(command, cwd=home, capture_output=True, check=False, text=True)
        if done.returncode:
            shutil.rmtree(home)
            output = done.stderr.strip().splitlines() or ["no output"]
            raise Failed(f"{name} cannot be installed: {output[-1]}")


# ── LiteLLM ─────────────────────────────────────────────────────────────────────────────────


def _install_litellm(home: Path) -> None:
    if home.exists():
        return
    venv = [sys.executable, "-m", "venv", home]
    _install("litellm", home, venv, [home / "bin/pip", "install", "--quiet", "litellm[proxy]"])


@contextmanager
def _run_litellm(upstream: str, folder: Path) -> Iterator[Target]:
    """One worker. It uses its packaged price list instead of downloading one."""
    port, config = free_port(), folder / "litellm.yaml"
    params = {"model": f"openai/{MODEL}", "api_base": upstream, "api_key": "sk-upstream"}
    model = {"model_name": MODEL, "litellm_params": params}
    config.write_text(json.dumps({"model_list": [model]}))  # JSON is YAML
    command = [_installed_at() / "litellm/bin/litellm", "--config", config, "--port", str(port)]
    environ = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MASTER_KEY": LITELLM_KEY,
    }
    command += ["--host", "127.0.0.1"]
    with run_process("litellm", command, port=port, folder=folder, environ=environ) as pid:
        headers = {"Authorization": f"Bearer {LITELLM_KEY}"}
        url = f"http://127.0.0.1:{port}/{PATH}"
        yield Target("litellm", url, headers, processes=Processes((pid,)))


# ── Portkey ─────────────────────────────────────────────────────────────────────────────────


def _install_portkey(home: Path) -> None:
    if shutil.which("npm") is None:
        raise Failed("portkey needs npm: apt-get install npm")
    if not home.exists():
        _install("portkey", home, ["npm", "install", "--prefix", home, PORTKEY_PACKAGE])


@contextmanager
def _run_portkey(upstream: str, folder: Path) -> Iterator[Target]:
    port = free_port()
    server = _installed_at() / "portkey/node_modules" / PORTKEY_PACKAGE / "build/start-server.js"
    command = ["node", server, f"--port={port}", "--headless"]
    environ = {"TRUSTED_CUSTOM_HOSTS": "127.0.0.1", "NODE_ENV": "production"}
    headers = {
        "Authorization": "Bearer sk-upstream",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": upstream,
    }
    with run_process("portkey", command, port=port, folder=folder, environ=environ) as pid:
        url = f"http://127.0.0.1:{port}/{PATH}"
        yield Target("portkey", url, headers, processes=Processes((pid,)))


INSTALL: Mapping[str, Callable[[Path], None]] = {
    "litellm": _install_litellm,
    "portkey": _install_portkey,
}
PEERS: Mapping[str, Callable[[str, Path], AbstractContextManager[Target]]] = {
    "litellm": _run_litellm,
    "portkey": _run_portkey,
}

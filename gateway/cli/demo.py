"""`gateway demo`: a gateway on a store of its own, in front of a simulated upstream.

The simulated upstream runs in a child process, which ends with the demo.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

import click
import structlog
from pydantic import SecretStr

from gateway.access.key_records import KeySpec
from gateway.access.keys import Keys
from gateway.access.sign_in_links import create_sign_in_link
from gateway.assembly import create_server_tls
from gateway.catalog import Catalog, ChoiceSpec, Model
from gateway.cli.logs import configure_logs
from gateway.cli.options import command_actor, config_option, find_changing_configuration
from gateway.cli.output import errors_as_messages
from gateway.cli.serve import run_gateway
from gateway.configuration.settings import Settings, UpstreamSettings
from gateway.process.bootstrap import prepare
from gateway.process.listener import bind_listeners
from gateway.simulator import SimulatorSettings, open_simulator
from gateway.store.protocol import Store
from gateway.wiring.stores import open_store

log = structlog.get_logger(__name__)

KEY_NAME: Final = "demo"
LATENCY_SCALE: Final = 0.2
PROMPT: Final = "A cute baby sea otter"


@click.command()
@config_option
def demo(config: Path | None) -> None:
    """Serves a demo in front of a simulated upstream. Needs nothing, costs nothing."""
    configuration = find_changing_configuration(config)
    settings = configuration.read_settings()
    configure_logs(settings.log_format)
    # A port in use is reported before anything else starts.
    with errors_as_messages(), bind_listeners(settings.server.listen, settings.server.admin_listen):
        create_server_tls(settings)
    catalog = configuration.read_policy().catalog
    with run_simulator(catalog) as base_url:
        configuration = replace(configuration, adjust=partial(demo_settings, base_url))
        settings = configuration.read_settings()
        with errors_as_messages():
            prepare(settings)
            secret, link = asyncio.run(prepare_demo(settings))
        model = catalog.models[catalog.default_gpt_model]
        print_instructions(settings, secret, link, model=model)
        run_gateway(configuration)


def demo_settings(base_url: str, settings: Settings) -> Settings:
    """The same settings with the demo's own store and the simulated upstream.

    Nothing of the real upstream is kept: no proxy, header or certificate authority.
    """
    key = SecretStr("simulated")
    upstream = UpstreamSettings(base_url=base_url, api_key=key, name="simulated")
    folder = settings.store.data_dir / "demo"
    store = settings.store.model_copy(
        update={"redis_url": None, "blobs_url": None, "data_dir": folder}
    )
    cache = settings.cache.model_copy(update={"links": "serve"})
    update = {"store": store, "cache": cache, "upstream": upstream, "upstreams": ()}
    return settings.model_copy(update=update)


async def prepare_demo(settings: Settings) -> tuple[str, str]:
    """The secret of a new key, and a link to the dashboard."""
    async with open_store(settings) as (store, _):
        secret, base_url = await create_demo_key(store), settings.server.dashboard_base_url
        return secret, await create_sign_in_link(store, base_url, actor=command_actor())


async def create_demo_key(store: Store) -> str:
    """Creates a key and revokes that of an earlier start; returns the secret."""
    keys, actor = Keys(store), command_actor()
    for record in await keys.list_keys():
        # The secret of an earlier start cannot be read again.
        if record.name == KEY_NAME and record.revoked_at is None:
            await keys.revoke(record.id, actor=actor)
    _, secret = await keys.create(KeySpec(name=KEY_NAME), actor=actor)
    return secret


def print_instructions(settings: Settings, secret: str, link: str, *, model: Model) -> None:
    """Prints a link to the dashboard, and two commands to paste: an image, and a hit."""
    server = settings.server
    url = f"{server.scheme}://{server.listen.on_this_machine}/v1/images/generations"
    # The model's first quality, which is its fastest: the simulated upstream takes as long.
    quality = model.parameters.get("quality")
    fast = {"quality": quality.values[0]} if isinstance(quality, ChoiceSpec) else {}
    body = json.dumps({"model": model.id, "prompt": PROMPT, **fast})
    request = (
        f"curl -sS {url} -H {shlex.quote(f'Authorization: Bearer {secret}')} "
        f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )
    write = (
        "python3 -c \"import base64, json, sys; open('otter.png', 'wb').write("
        "base64.b64decode(json.load(sys.stdin)['data'][0]['b64_json']))\""
    )
    click.echo(
        "Image Gateway demo: a real gateway in front of a simulated upstream; nothing is paid.\n\n"
        f"The dashboard is at {server.dashboard_base_url}/dashboard. This link signs you in, once, "
        "within a minute:\n\n"
        f"  {link}\n\n"
        f"Later: GATEWAY_DATA_DIR={settings.store.data_dir} gateway open, or sign in with the key "
        "below.\n\n"
        f"An image, into otter.png:\n\n  {request} | {write}\n\n"
        f"Again, to see that it came from the cache (Cache-Status: image-gateway; hit):\n\n"
        f"  {request} -o otter.json -D -\n"
    )


# ── the simulated upstream ──────────────────────────────────────────────────────────────────


@contextmanager
def run_simulator(catalog: Catalog) -> Iterator[str]:
    """A simulated upstream in a child process, which ends with this one; yields its base URL."""
    read_end, write_end = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _run_child(catalog, write_end, parent)
    # Otherwise `readline` would not return if the child exits before it has written.
    os.close(write_end)
    try:
        with os.fdopen(read_end) as pipe:
            base_url = pipe.readline().strip()
        if not base_url:
            raise click.ClickException(
                "The simulated upstream does not start. The log has the reason: simulator_failed."
            )
        yield base_url
    finally:
        if os.getpid() == parent:  # and not a worker, which is forked inside this block
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)


def _run_child(catalog: Catalog, pipe: int, parent: int) -> NoReturn:
    # A Ctrl-C reaches this process too, but a draining gateway still needs its upstream.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = 1
    try:
        asyncio.run(_simulate_until_parent_exits(catalog, pipe, parent))
        status = 0
    except Exception:
        log.exception("simulator_failed")
    finally:
        os._exit(status)


async def _simulate_until_parent_exits(catalog: Catalog, pipe: int, parent: int) -> None:
    settings = SimulatorSettings(latency_scale=LATENCY_SCALE)
    async with open_simulator("127.0.0.1", 0, catalog=catalog, settings=settings) as base_url:
        os.write(pipe, f"{base_url}\n".encode())
        os.close(pipe)
        while os.getppid() == parent:  # noqa: ASYNC110 - nothing reports that a parent was killed
            await asyncio.sleep(1.0)

"""`gateway serve`, `gateway demo` and `gateway simulate`: everything that listens.

A demo is a gateway like any other, on a store of its own, in front of a simulated upstream that
runs in a child process.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from socket import socket
from typing import Any, Final, NoReturn

import click
import structlog
from pydantic import SecretStr

from gateway.access.key_records import KeySpec
from gateway.access.keys import Keys
from gateway.assembly import open_store
from gateway.catalog import Catalog, CatalogError
from gateway.cli.logs import configure_logs
from gateway.configuration.expand import ConfigError
from gateway.configuration.files import Configuration, find_config
from gateway.configuration.settings import Settings, UpstreamSettings
from gateway.configuration.fields import Address
from gateway.errors import GatewayError
from gateway.metrics import forget_worker
from gateway.process.bootstrap import check_store, prepare
from gateway.process.checks import Finding, check_before_serving
from gateway.process.supervisor import CannotListen, CannotStart, bind_socket, supervise
from gateway.process.worker import serve
from gateway.simulator import SimulatorSettings, open_simulator
from gateway.store.handshake import SchemaMismatch

log = structlog.get_logger(__name__)

DEMO_KEY: Final = "demo"
DEMO_LATENCY_SCALE: Final = 0.2
DEMO_PROMPT: Final = "A cute baby sea otter"


def find_configuration(config: Path | None) -> Configuration:
    """The configuration of this command; whatever is wrong with it ends the command, in words."""
    with _faults_in_words():
        configuration = Configuration(find_config(config, Path.cwd()), os.environ)
        configuration.read_settings()
        configuration.read_policy()
    return configuration


def run_gateway(configuration: Configuration) -> NoReturn:
    """Binds, prepares, and supervises the workers until the end."""
    settings = configuration.read_settings()
    address = settings.server.listen
    _raise_descriptor_limit()
    with _faults_in_words(), bind_socket(address.host, address.port) as listener:
        prepare(settings)
        asyncio.run(check_store(settings))
        _log_findings(asyncio.run(check_before_serving(settings)))
        click.echo(f"Listening on http://{Address(address.host, listener.getsockname()[1])}")
        status = supervise(
            socket=listener,
            workers=settings.workers.count,
            serve=partial(_serve_or_say_why, configuration),
            on_worker_exit=forget_worker,
        )
    sys.exit(status)


def _raise_descriptor_limit() -> None:
    """As far as this process may; a request that is bought takes two connections.

    The usual 1,024 are for programs that would not notice more; none of those runs here.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # where the system has another bound than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _log_findings(findings: Iterable[Finding]) -> None:
    """What an operator should know; it keeps nobody from serving."""
    for finding in findings:
        if finding.level != "ok":
            tell = log.error if finding.level == "fault" else log.warning
            tell("self_check", check=finding.name, words=finding.words)


def _serve_or_say_why(
    configuration: Configuration, listener: socket, ready: Callable[[], None]
) -> None:
    """In a worker, which reads all files anew: they may have changed since the parent started."""
    try:
        serve(configuration, listener, ready)
    except (ConfigError, CatalogError) as fault:
        sys.exit(str(fault))


@contextmanager
def _faults_in_words() -> Iterator[None]:
    """What keeps a gateway from starting is said in one line."""
    try:
        yield
    except (CannotListen, CannotStart, CatalogError, ConfigError, SchemaMismatch) as fault:
        raise click.ClickException(str(fault)) from None
    except GatewayError as fault:
        raise click.ClickException(fault.message) from None
    except OSError as fault:
        raise click.ClickException(
            f"{fault.filename or 'The data folder'}: {fault.strerror}."
        ) from None


def serve_command(config: Path | None) -> None:
    """What `gateway serve` does."""
    configuration = find_configuration(config)
    settings = configuration.read_settings()
    if settings.upstream.api_key is None:
        raise click.ClickException(
            "UPSTREAM_API_KEY is not set: name the team's key, or try `gateway demo`, "
            "which needs none."
        )
    configure_logs(settings.log_format)
    run_gateway(configuration)


def demo_command(config: Path | None) -> None:
    """What `gateway demo` does."""
    configuration = find_configuration(config)
    settings = configuration.read_settings()
    configure_logs(settings.log_format)
    address = settings.server.listen
    with _faults_in_words():
        bind_socket(address.host, address.port).close()
    catalog = configuration.read_policy().catalog
    with _simulator(catalog) as base_url:
        configuration = replace(configuration, adjust=partial(_demo_settings, base_url))
        settings = configuration.read_settings()
        with _faults_in_words():
            prepare(settings)
            secret = asyncio.run(_fresh_demo_key(settings))
        _print_demo(settings, secret, model=catalog.default_gpt_model)
        run_gateway(configuration)


def _demo_settings(base_url: str, settings: Settings) -> Settings:
    """The same settings on a store of the demo's own, in front of the simulated upstream.

    Nothing that belongs to the real service goes along: no proxy, no header, no authority.
    """
    folder = settings.store.data_dir / "demo"
    key = SecretStr("simulated")
    return settings.model_copy(
        update={
            "store": settings.store.model_copy(update={"redis_url": None, "data_dir": folder}),
            "upstream": UpstreamSettings(base_url=base_url, api_key=key, name="simulated"),
        }
    )


async def _fresh_demo_key(settings: Settings) -> str:
    """A new key; the one of an earlier start opens nothing any more."""
    async with open_store(settings) as (store, _):
        keys = Keys(store)
        for record in await keys.list_keys():
            if record.name == DEMO_KEY and record.revoked_at is None:
                await keys.revoke(record.id)
        _, secret = await keys.create(KeySpec(name=DEMO_KEY))
        return secret


def _print_demo(settings: Settings, secret: str, *, model: str) -> None:
    host = settings.server.listen.host
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    url = f"http://{Address(shown, settings.server.listen.port)}/v1/images/generations"
    body = json.dumps({"model": model, "prompt": DEMO_PROMPT})
    ask = (
        f"curl -sS {url} -H {shlex.quote(f'Authorization: Bearer {secret}')} "
        f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )
    write = (
        "python3 -c \"import base64, json, sys; open('otter.png', 'wb').write("
        "base64.b64decode(json.load(sys.stdin)['data'][0]['b64_json']))\""
    )
    click.echo(
        "Image Gateway demo: a real gateway in front of a simulated upstream; nothing is paid.\n\n"
        f"An image, into otter.png:\n\n  {ask} | {write}\n\n"
        f"Again, to see that it came from the cache (Cache-Status: image-gateway; hit):\n\n"
        f"  {ask} -o otter.json -D -\n"
    )


# ── the simulated upstream ──────────────────────────────────────────────────────────────────


def simulate_command(config: Path | None, listen: Address, settings: SimulatorSettings) -> None:
    """What `gateway simulate` does."""
    configure_logs(None)
    with _faults_in_words():
        # Only models.yaml is read: gateway.yaml may need variables that are not set here.
        files = find_config(config, Path.cwd())
        catalog = Configuration(files, os.environ).read_policy().catalog
    try:
        asyncio.run(_simulate(listen, catalog, settings))
    except OSError as fault:
        raise click.ClickException(
            f"Cannot listen on {listen}: {fault.strerror}. Choose another one with --listen."
        ) from None
    except KeyboardInterrupt:
        return


async def _simulate(listen: Address, catalog: Catalog, settings: SimulatorSettings) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with open_simulator(
        listen.host, listen.port, catalog=catalog, settings=settings
    ) as base_url:
        click.echo(f"Simulated upstream at {base_url}")
        await stop.wait()


@contextmanager
def _simulator(catalog: Catalog) -> Iterator[str]:
    """A simulated upstream in a child process that lives as long as this one; its base URL."""
    cache_policy, writing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(cache_policy)
        _run_simulator(catalog, writing, parent)
    os.close(writing)
    try:
        with os.fdopen(cache_policy) as pipe:
            base_url = pipe.readline().strip()
        if not base_url:
            raise click.ClickException(
                "The simulated upstream does not start. The log has the reason: simulator_failed."
            )
        yield base_url
    finally:
        if os.getpid() == parent:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)


def _run_simulator(catalog: Catalog, pipe: int, parent: int) -> NoReturn:
    """In the child: a Ctrl-C is the gateway's to count, which still needs its upstream."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = 1
    try:
        asyncio.run(_simulate_for(catalog, pipe, parent))
        status = 0
    except Exception:
        log.exception("simulator_failed")
    finally:
        os._exit(status)


async def _simulate_for(catalog: Catalog, pipe: int, parent: int) -> None:
    settings = SimulatorSettings(latency_scale=DEMO_LATENCY_SCALE)
    async with open_simulator("127.0.0.1", 0, catalog=catalog, settings=settings) as base_url:
        os.write(pipe, f"{base_url}\n".encode())
        os.close(pipe)
        while os.getppid() == parent:  # noqa: ASYNC110 - nothing tells of a parent that dies
            await asyncio.sleep(1.0)


def simulator_settings(**given: Any) -> SimulatorSettings:
    """Settings from options; an unknown fault ends the command, naming the known ones."""
    try:
        return SimulatorSettings(**given)
    except ValueError as fault:
        raise click.ClickException(str(fault)) from None

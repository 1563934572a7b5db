"""`gateway serve`: binds the port, prepares the store, and supervises the workers."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

import click
import structlog

from gateway.assembly import create_server_tls
from gateway.catalog import CatalogError
from gateway.cli.logs import configure_logs
from gateway.cli.options import config_option, find_changing_configuration
from gateway.cli.output import errors_as_messages
from gateway.cli.streams import OutputLost
from gateway.configuration.expand import ConfigError
from gateway.configuration.files import Configuration
from gateway.configuration.settings import ServerSettings
from gateway.metrics import forget_worker
from gateway.process.bootstrap import check_store, prepare
from gateway.process.checks import check_before_serving
from gateway.process.listener import Listeners, bind_listeners, bound_address
from gateway.process.supervisor import supervise
from gateway.process.upstream_check import judge_accounts
from gateway.process.worker import serve as serve_worker
from gateway.room_settings import tracing_settings

OWN_DESCRIPTORS: Final = 1024
"""For each worker beside the connections of clients: the store, files, connections to upstream."""

log = structlog.get_logger(__name__)


@click.command()
@config_option
def serve(config: Path | None) -> None:
    """Serves the team. Needs UPSTREAM_API_KEY."""
    configuration = find_changing_configuration(config)
    settings = configuration.read_settings()
    for fault in judge_accounts(settings):
        raise click.ClickException(fault)
    configure_logs(settings.log_format)
    run_gateway(configuration)


def run_gateway(configuration: Configuration) -> NoReturn:
    """Serves until a signal ends the gateway, and exits with its status."""
    settings = configuration.read_settings()
    server = settings.server
    _raise_descriptor_limit(server.max_connections)
    with errors_as_messages(), bind_listeners(server.listen, server.admin_listen) as listeners:
        # Each worker reads it again. Here a fault is reported before any of them starts.
        create_server_tls(settings)
        tracing_settings(settings, worker="")
        prepare(settings)
        asyncio.run(check_store(settings))
        for finding in asyncio.run(check_before_serving(settings)):
            write = log.error if finding.level == "fault" else log.warning
            write("self_check", check=finding.name, finding=finding.message)
        _print_addresses(server, listeners)
        status = supervise(
            listeners=listeners,
            workers=settings.workers.count,
            serve=partial(_run_worker, configuration),
            on_worker_exit=forget_worker,
        )
    sys.exit(status)


def _print_addresses(server: ServerSettings, listeners: Listeners) -> None:
    clients = bound_address(server.listen, listeners.clients)
    with suppress(OutputLost):  # a gateway serves although nothing reads its addresses
        click.echo(f"Listening on {server.scheme}://{clients}")
        if listeners.admin is not None and server.admin_listen is not None:
            admin = bound_address(server.admin_listen, listeners.admin)
            click.echo(f"Admin API on {server.scheme}://{admin}")


def _raise_descriptor_limit(max_connections: int) -> None:
    """To the hard limit: a purchase takes two connections, and the usual 1,024 are too few."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems report more than they allow
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < max_connections + OWN_DESCRIPTORS:
        log.warning(
            "descriptor_limit_low",
            limit=limit,
            max_connections=max_connections,
            fix=f"raise RLIMIT_NOFILE to {max_connections + OWN_DESCRIPTORS}, or lower "
            "server.max_connections",
        )


def _run_worker(
    configuration: Configuration, listeners: Listeners, ready: Callable[[], None]
) -> None:
    """Runs in a worker, which reads all files again: they may have changed since the start."""
    try:
        serve_worker(configuration, listeners, ready)
    except (ConfigError, CatalogError) as error:
        sys.exit(str(error))

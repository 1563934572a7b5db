"""`gateway simulate`: the simulated upstream alone."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

import click

from gateway.catalog import Catalog
from gateway.cli.options import config_option
from gateway.cli.output import errors_as_messages
from gateway.cli.streams import OutputLost
from gateway.configuration.fields import Address, parse_address
from gateway.configuration.files import Configuration, find_config
from gateway.simulator import SimulatorSettings, open_simulator
from gateway.simulator.profiles import PROFILES


class ListenType(click.ParamType[Address]):
    """An address to listen on."""

    name = "host:port"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Address:
        """Fails with what was expected."""
        try:
            return parse_address(value)
        except ValueError as error:
            self.fail(f"expected {error}", param, ctx)


@click.command()
@config_option
@click.option("--listen", type=ListenType(), default="127.0.0.1:9000", show_default=True)
@click.option("--latency-scale", type=float, default=1.0, show_default=True, help="0 for none.")
@click.option("--fault", "faults", multiple=True, help="A fault of every response.")
@click.option("--api-key", help="The only key to accept; all if not given.")
@click.option(
    "--profile",
    type=click.Choice(list(PROFILES)),
    default="openai",
    show_default=True,
    help="The service to simulate.",
)
@click.option(
    "--images-per-minute", type=click.IntRange(1), help="The rate of each account; 429 beyond it."
)
@click.option("--key", "keys", multiple=True, help="A key to accept, of an account of its own.")
@click.option(
    "--key-fault",
    "key_faults",
    type=(str, str),
    multiple=True,
    metavar="KEY FAULT",
    help="A fault of every response to this key.",
)
@click.option(
    "--deployment",
    "deployments",
    multiple=True,
    metavar="NAME=MODEL",
    help="A deployment of the profile azure; without any, they have their models' names.",
)
def simulate(
    config: Path | None,
    listen: Address,
    latency_scale: float,
    faults: tuple[str, ...],
    api_key: str | None,
    profile: str,
    images_per_minute: int | None,
    keys: tuple[str, ...],
    key_faults: tuple[tuple[str, str], ...],
    deployments: tuple[str, ...],
) -> None:
    """Serves a simulated images API, with the models of models.yaml."""
    by_key: dict[str, tuple[str, ...]] = {}
    for key, fault in key_faults:
        by_key[key] = (*by_key.get(key, ()), fault)
    named = [deployment.partition("=") for deployment in deployments]
    if not all(name and model for name, _, model in named):
        raise click.UsageError("--deployment expects NAME=MODEL, such as art=gpt-image-2.")
    try:
        settings = SimulatorSettings(
            latency_scale=latency_scale,
            faults=faults,
            api_key=api_key,
            profile=profile,
            images_per_minute=images_per_minute,
            keys=(*keys, *by_key) if keys else (),
            key_faults=by_key,
            deployments={name: model for name, _, model in named},
        )
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    with errors_as_messages():
        # Only models.yaml is read: gateway.yaml may need variables that are not set here.
        files = find_config(config, Path.cwd())
        catalog = Configuration(files, os.environ).read_policy().catalog
    try:
        asyncio.run(_simulate(listen, catalog, settings))
    except OSError as error:
        raise click.ClickException(
            f"Cannot listen on {listen}: {error.strerror}. Choose another one with --listen."
        ) from None
    except KeyboardInterrupt:
        return


async def _simulate(listen: Address, catalog: Catalog, settings: SimulatorSettings) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with open_simulator(
        listen.host, listen.port, catalog=catalog, settings=settings
    ) as base_url:
        with suppress(OutputLost):
            click.echo(f"Simulated upstream at {base_url}")
        await stop.wait()

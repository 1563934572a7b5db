"""The command line: which commands there are and which options they take."""

from __future__ import annotations

from pathlib import Path

import click

from gateway import __version__
from gateway.cli.cache import cache
from gateway.cli.doctor import doctor
from gateway.cli.keys import keys
from gateway.cli.output import config_option
from gateway.cli.serving import (
    demo_command,
    serve_command,
    simulate_command,
    simulator_settings,
)
from gateway.configuration.fields import Address, parse_address


class _Listen(click.ParamType[Address]):
    name = "host:port"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Address:
        try:
            return parse_address(value)
        except ValueError as fault:
            self.fail(f"expected {fault}", param, ctx)


@click.group()
@click.version_option(__version__, message="Image Gateway %(version)s")
def cli() -> None:
    """Image Gateway: a caching reverse proxy for OpenAI-compatible image generation."""


@cli.command()
@config_option
def serve(config: Path | None) -> None:
    """Serves the team: needs UPSTREAM_API_KEY."""
    serve_command(config)


@cli.command()
@config_option
def demo(config: Path | None) -> None:
    """Serves a demo in front of a simulated upstream; needs nothing, costs nothing."""
    demo_command(config)


@cli.command()
@config_option
@click.option("--listen", type=_Listen(), default="127.0.0.1:9000", show_default=True)
@click.option("--latency-scale", type=float, default=1.0, show_default=True, help="0 for none.")
@click.option("--fault", "faults", multiple=True, help="A fault that every call plays.")
@click.option("--api-key", help="The only key it accepts; any if not given.")
def simulate(
    config: Path | None,
    listen: Address,
    latency_scale: float,
    faults: tuple[str, ...],
    api_key: str | None,
) -> None:
    """Serves a faithful stand-in for the paid images API, with the models of models.yaml."""
    simulate_command(
        config,
        listen,
        simulator_settings(latency_scale=latency_scale, faults=faults, api_key=api_key),
    )


cli.add_command(cache)
cli.add_command(doctor)
cli.add_command(keys)

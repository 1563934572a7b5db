"""`gateway config`: checks the configuration files, and shows the settings that hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import click

from gateway.cli.options import config_option, format_option
from gateway.cli.output import errors_as_messages, show
from gateway.configuration.effective import effective_settings
from gateway.configuration.files import Configuration, find_config
from gateway.process.configuration_check import check_configuration

CHECK_COLUMNS: Final = ("check", "level", "finding")
SHOW_COLUMNS: Final = ("setting", "value", "source", "from")


@click.group()
def config() -> None:
    """The configuration: its faults, and the settings that hold."""


@config.command("check")
@config_option
@format_option
def check(config: Path | None, output_format: str) -> None:
    """Loads the files as `gateway serve` does; exit status 1 on a fault.

    Prints a line for each fault, and for what `gateway serve` would warn of. Neither the store nor
    upstream is asked; `gateway doctor` does that.
    """
    findings = check_configuration(_configuration(config))
    if output_format == "table":
        # Plain lines: a table would wrap the longer ones.
        for finding in findings:
            click.echo(f"{finding.level}: {finding.message}")
    else:
        rows = [{"check": f.name, "level": f.level, "finding": f.message} for f in findings]
        show(rows, output_format, columns=CHECK_COLUMNS)
    if any(finding.level == "fault" for finding in findings):
        raise click.exceptions.Exit(1)


@config.command("show")
@config_option
@format_option
def show_settings(config: Path | None, output_format: str) -> None:
    """Shows every setting and where it comes from; secrets are masked.

    The source is default, file, environment or secret file.
    """
    configuration = _configuration(config)
    files = configuration.files
    with errors_as_messages():
        settings, values = configuration.read_settings(), configuration.read_values()
    rows = [
        {"setting": s.key, "value": s.value, "source": s.source, "from": s.origin}
        for s in effective_settings(settings, values, file=files.gateway)
    ]
    click.echo(f"Settings: {files.gateway}, models: {files.models}", err=True)
    show(rows, output_format, columns=SHOW_COLUMNS)


def _configuration(config: Path | None) -> Configuration:
    with errors_as_messages():
        return Configuration(find_config(config, Path.cwd()), os.environ)

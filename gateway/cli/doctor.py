"""`gateway doctor`: checks everything that a gateway depends on."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

import click

from gateway.catalog import CatalogError
from gateway.cli.options import config_option, format_option
from gateway.cli.output import show
from gateway.configuration.expand import ConfigError
from gateway.configuration.files import Configuration, find_config
from gateway.process.checks import examine
from gateway.process.findings import Finding

COLUMNS: Final = ("check", "level", "finding")


@click.command()
@config_option
@format_option
def doctor(config: Path | None, output_format: str) -> None:
    """Checks store, upstream, prices and links of a running gateway; exit status 1 on a fault."""
    try:
        configuration = Configuration(find_config(config, Path.cwd()), os.environ)
        findings = asyncio.run(examine(configuration))
    except (CatalogError, ConfigError) as error:
        findings = [Finding("configuration", "fault", " ".join(str(error).split()))]
    rows = [{"check": f.name, "level": f.level, "finding": f.message} for f in findings]
    show(rows, output_format, columns=COLUMNS)
    if any(finding.level == "fault" for finding in findings):
        raise click.exceptions.Exit(1)

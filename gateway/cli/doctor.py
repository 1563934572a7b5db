"""`gateway doctor`: looks at everything a gateway stands on, and says what is wrong in words."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from gateway.catalog import CatalogError
from gateway.cli.logs import configure_logs
from gateway.cli.output import config_option, format_option, show
from gateway.configuration.expand import ConfigError
from gateway.configuration.files import Configuration, find_config
from gateway.process.checks import Finding, examine

COLUMNS: Final = ("check", "level", "finding")


@click.command()
@config_option
@format_option
def doctor(config: Path | None, form: str) -> None:
    """Checks store, upstream, prices and links of a running gateway; exit status 1 on a fault."""
    configure_logs(None)
    findings = _examine(config)
    show([_row(finding) for finding in findings], form, columns=COLUMNS)
    if any(finding.level == "fault" for finding in findings):
        raise click.exceptions.Exit(1)


def _examine(config: Path | None) -> Sequence[Finding]:
    """All findings; only one when the configuration cannot be read."""
    try:
        configuration = Configuration(find_config(config, Path.cwd()), os.environ)
        return asyncio.run(examine(configuration))
    except (CatalogError, ConfigError) as fault:
        return [Finding("configuration", "fault", " ".join(str(fault).split()))]


def _row(finding: Finding) -> dict[str, str]:
    return dict(zip(COLUMNS, asdict(finding).values(), strict=True))

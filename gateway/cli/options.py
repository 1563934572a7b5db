"""Options that commands share, and the configuration that `--config` leads to."""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path

import click

from gateway.access.audit import Actor
from gateway.cli.output import errors_as_messages
from gateway.configuration.files import Configuration, find_config

config_option = click.option(
    "--config", type=click.Path(path_type=Path), help="The gateway.yaml to use."
)
format_option = click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
)


def find_configuration(config: Path | None) -> Configuration:
    """The configuration of this command. If it is invalid, the command ends with a message."""
    with errors_as_messages():
        configuration = Configuration(find_config(config, Path.cwd()), os.environ)
        # Read here to report faults; the command reads them again.
        configuration.read_settings()
        configuration.read_policy()
    return configuration


def command_actor() -> Actor:
    """Who runs this command, for the audit: the user and the machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = f"uid {os.getuid()}"
    return Actor("cli", f"{user}@{socket.gethostname()}")

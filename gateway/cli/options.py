"""Options that commands share, and the configuration that `--config` leads to."""

from __future__ import annotations

import getpass
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import click

from gateway.access.audit import Actor
from gateway.access.policy import Policy
from gateway.cli.output import errors_as_messages
from gateway.configuration.files import Configuration, find_config
from gateway.configuration.settings import Settings

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReadOnce(Configuration):
    """The configuration when the command began: reading the files takes a tenth of a second."""

    settings: Settings
    policy: Policy

    def read_settings(self) -> Settings:
        return self.settings

    def read_policy(self) -> Policy:
        return self.policy


def find_configuration(config: Path | None) -> Configuration:
    """The configuration of this command. If it is invalid, the command ends with a message."""
    with errors_as_messages():
        found = Configuration(find_config(config, Path.cwd()), os.environ)
        return _ReadOnce(
            files=found.files,
            environ=found.environ,
            settings=found.read_settings(),
            policy=found.read_policy(),
        )


def find_changing_configuration(config: Path | None) -> Configuration:
    """As `find_configuration`, for a command that serves: each read reads the files again."""
    found = find_configuration(config)
    return Configuration(found.files, found.environ)


def command_actor() -> Actor:
    """Who runs this command, for the audit: the user and the machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = f"uid {os.getuid()}"
    return Actor("cli", f"{user}@{socket.gethostname()}")

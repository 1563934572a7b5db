"""Who runs a command, for the audit."""

from __future__ import annotations

import getpass
import socket

from gateway.access.audit import Actor


def command_actor() -> Actor:
    """The user and the machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        user = "unknown"
    return Actor("cli", f"{user}@{socket.gethostname()}")

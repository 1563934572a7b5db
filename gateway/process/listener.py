"""The listening socket, bound before any worker starts."""

from __future__ import annotations

import errno
import socket
from typing import Final

BACKLOG: Final = 1024
"""Of connections that arrive before a worker serves; workers enlarge it."""


class CannotListen(Exception):
    """The address cannot be bound. The message names it and says how to change it."""


class PortInUse(CannotListen):
    """Another process has the port."""


def bind_socket(host: str, port: int) -> socket.socket:
    """The one listening socket, which all workers share. Raises `CannotListen`.

    Connections queue from now on, also while no worker serves yet.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(host, port, error) from None
    try:
        # Otherwise a restart fails while closed connections are in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from None
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> CannotListen:
    shown = f"[{host}]" if ":" in host else host
    if error.errno == errno.EADDRINUSE:
        return PortInUse(
            f"Port {port} on {host} is in use by another process. "
            f"Choose another one: GATEWAY_LISTEN={shown}:{port % 65_535 + 1}"
        )
    return CannotListen(
        f"Cannot listen on {shown}:{port}: {error.strerror}. Set another address: GATEWAY_LISTEN."
    )

"""The listening sockets, bound before any worker starts."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from gateway.configuration.fields import Address

BACKLOG: Final = 1024
"""Of connections that arrive before a worker serves; workers enlarge it."""


class CannotListen(Exception):
    """The address cannot be bound. The message names it and says how to change it."""


class PortInUse(CannotListen):
    """Another process has the port."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """The listening sockets, which all workers share."""

    clients: socket.socket
    admin: socket.socket | None = None
    """For the admin API and /metrics; None: they are on the clients' address."""

    def close(self) -> None:
        """Closes them in this process only."""
        self.clients.close()
        if self.admin is not None:
            self.admin.close()


@contextmanager
def bind_listeners(listen: Address, admin_listen: Address | None) -> Iterator[Listeners]:
    """Binds both addresses, and closes the sockets on exit. Raises `CannotListen`."""
    with ExitStack() as stack:
        clients = stack.enter_context(bind_socket(listen.host, listen.port))
        admin = None
        if admin_listen is not None:
            admin = stack.enter_context(
                bind_socket(admin_listen.host, admin_listen.port, variable="GATEWAY_ADMIN_LISTEN")
            )
        yield Listeners(clients, admin)


def bound_address(address: Address, listener: socket.socket) -> Address:
    """The address with the port that was bound, which may have been any free one."""
    return Address(address.host, listener.getsockname()[1])


def bind_socket(host: str, port: int, *, variable: str = "GATEWAY_LISTEN") -> socket.socket:
    """A listening socket, which all workers share. Raises `CannotListen`, which names `variable`.

    Connections queue from now on, also while no worker serves yet.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(host, port, error, variable) from None
    try:
        # Otherwise a restart fails while closed connections are in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error, variable) from None
    return listener


def _cannot_listen(host: str, port: int, error: OSError, variable: str) -> CannotListen:
    shown = f"[{host}]" if ":" in host else host
    if error.errno == errno.EADDRINUSE:
        return PortInUse(
            f"Port {port} on {host} is in use by another process. "
            f"Choose another one: {variable}={shown}:{port % 65_535 + 1}"
        )
    return CannotListen(
        f"Cannot listen on {shown}:{port}: {error.strerror}. Set another address: {variable}."
    )

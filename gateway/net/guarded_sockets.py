"""Sockets that connect only to addresses that `net.guard` allows.

Links of upstream and webhooks are fetched through them. A session needs one for each address
policy, because a pooled connection is reused without a check.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from gateway.net.guard import AddressPolicy, AllowList

AddressInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, Any]
"""As `getaddrinfo` returns it."""


class AddressBlocked(OSError):
    """The address policy blocks the address. As for any `OSError`, aiohttp tries the next one."""


def socket_factory(
    allow_list: AllowList, address_policy: AddressPolicy
) -> Callable[[AddressInfo], socket.socket]:
    """Checks each address just before the connection, with or without a look-up of its name."""

    def open_socket(info: AddressInfo) -> socket.socket:
        family, kind, protocol, _, address = info
        # The address of the connection itself: DNS cannot answer differently after this check.
        if not allow_list.allows_numeric(str(address[0]), address_policy):
            raise AddressBlocked("the address policy blocks this address")
        return socket.socket(family, kind, protocol)

    return open_socket

"""A port that a test expects to be closed stays closed, whatever other tests start meanwhile."""

import socket
from pathlib import Path

import pytest

from tests.ports import closed_port, free_port

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_a_closed_port_refuses_connections_and_no_server_gets_it() -> None:
    with closed_port() as port:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", port))


def test_a_free_port_is_none_that_the_system_gives_away() -> None:
    first, last = map(int, EPHEMERAL.read_text().split())
    assert not first <= free_port() <= last

"""Ports of this machine on which a test expects a server, or expects none."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

_BELOW_EPHEMERAL = range(20_000, 32_768)
"""Linux assigns none of these ports to an outgoing connection or to a server that binds port 0."""


def free_port() -> int:
    """A free port. Until the test binds it, only another call of this function may take it."""
    while True:
        port = secrets.choice(_BELOW_EPHEMERAL)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


@contextmanager
def closed_port() -> Iterator[int]:
    """A port that refuses every connection: it is taken, so no server of another test gets it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]

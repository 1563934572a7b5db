"""Ports of this machine on which a test expects a server, or expects none."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

_BELOW_EPHEMERAL = range(20_000, 32_768)
"""Linux takes no port of these for an outgoing connection or for a server that asks for port 0."""


def free_port() -> int:
    """A port that is free right now, and that only a caller of this function may soon take."""
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

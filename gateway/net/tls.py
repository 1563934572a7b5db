"""TLS contexts of outgoing connections."""

from __future__ import annotations

import ssl
from pathlib import Path


def create_tls(ca_file: Path | None) -> ssl.SSLContext | bool:
    """The TLS context that trusts the system's authorities and those of `ca_file`.

    True is aiohttp's default context, with the system's alone. Reads files, so call it in a thread.
    Raises `OSError` for a file that cannot be read or is not PEM.
    """
    if ca_file is None:
        return True
    context = ssl.create_default_context()
    context.load_verify_locations(ca_file)
    # As aiohttp's default context does: aiohttp speaks HTTP/1.1 only.
    context.set_alpn_protocols(["http/1.1"])
    return context

"""TLS contexts of outgoing connections."""

from __future__ import annotations

import ssl
from pathlib import Path


def create_tls(*ca_files: Path | None) -> ssl.SSLContext | bool:
    """The TLS context that trusts the system's authorities and those of the files.

    True is aiohttp's default context, with the system's alone. Reads files, so call it in a thread.
    Raises `OSError` for a file that cannot be read or is not PEM.
    """
    given = [file for file in ca_files if file is not None]
    if not given:
        return True
    context = ssl.create_default_context()
    for file in given:
        context.load_verify_locations(file)
    # As aiohttp's default context does: aiohttp speaks HTTP/1.1 only.
    context.set_alpn_protocols(["http/1.1"])
    return context

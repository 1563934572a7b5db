"""TLS contexts of connections. Those with the same options share one.

redis-py makes one for each connection. That reads the system's authorities, which takes 70 ms on
the event loop. A gateway behind three sentinels connects a dozen times at its start.
"""

from __future__ import annotations

import ssl
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

MAX_CONTEXTS: Final = 8

_FILES: Final = ("keyfile", "certfile", "ca_certs", "ca_path")

_OPTIONS: Final = (
    *_FILES,
    *("cert_reqs", "include_verify_flags", "exclude_verify_flags", "ca_data", "check_hostname"),
    *("min_version", "ciphers", "password"),
)

_contexts: OrderedDict[object, ssl.SSLContext] = OrderedDict()
_lock: Final = threading.Lock()


def load_context(options: Any) -> None:
    """Gives the `ssl_context` of a connection the context that others with its options have.

    Reads files, so it is for a thread. Files that have changed are read again. Raises `OSError`.
    """
    given = (repr(getattr(options, name)) for name in _OPTIONS)
    key = (*given, *(_state_of(getattr(options, name)) for name in _FILES))
    with _lock:
        context = _contexts.pop(key, None)
        if context is None:
            options.context = None
            context = options.get()
        _contexts[key] = context
        if len(_contexts) > MAX_CONTEXTS:
            _contexts.popitem(last=False)
    options.context = context


def _state_of(path: str | None) -> object:
    with suppress(OSError):
        found = Path(path).stat() if path else None
        return found and (found.st_mtime_ns, found.st_size, found.st_ino)
    return None

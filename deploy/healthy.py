#!/usr/bin/env python3
"""Health check of the gateway in this container: exit status 0 if `/healthz` answers 200.

The image has no curl. The request goes to `GATEWAY_LISTEN`, without any proxy of the environment.
"""

import http.client
import os
import sys

WILDCARDS = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}
TIMEOUT_SECONDS = 3


def is_healthy(listen: str) -> bool:
    """Whether the gateway answers; an unreachable one is not healthy."""
    host, _, port = listen.rpartition(":")
    connection = http.client.HTTPConnection(
        WILDCARDS.get(host, host), int(port), timeout=TIMEOUT_SECONDS
    )
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False


if __name__ == "__main__":
    sys.exit(not is_healthy(os.environ.get("GATEWAY_LISTEN", "127.0.0.1:8080")))

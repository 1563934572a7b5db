#!/usr/bin/env python3
"""Health check of the gateway in this container: exit status 0 if `/healthz` answers 200.

The image has no curl. The request goes to `GATEWAY_LISTEN`, without any proxy of the environment.
A gateway with `server.tls` closes a plain connection without an answer; then TLS is used.
"""

import http.client
import os
import ssl
import sys

WILDCARDS = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}
TIMEOUT_SECONDS = 2


def is_healthy(listen: str) -> bool:
    """Whether the gateway answers; an unreachable one is not healthy."""
    host, _, port = listen.rpartition(":")
    address, port = WILDCARDS.get(host, host), int(port)
    try:
        try:
            return answers(http.client.HTTPConnection(address, port, timeout=TIMEOUT_SECONDS))
        except ConnectionResetError:  # RemoteDisconnected is one
            # The certificate is that of the name that clients use, not of this address.
            tls = ssl.create_default_context()
            tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
            return answers(
                http.client.HTTPSConnection(address, port, timeout=TIMEOUT_SECONDS, context=tls)
            )
    except (OSError, http.client.HTTPException):
        return False


def answers(connection: http.client.HTTPConnection) -> bool:
    """Whether the status is 200."""
    connection.request("GET", "/healthz")
    return connection.getresponse().status == http.client.OK


if __name__ == "__main__":
    sys.exit(not is_healthy(os.environ.get("GATEWAY_LISTEN", "127.0.0.1:8080")))

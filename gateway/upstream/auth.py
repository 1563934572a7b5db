"""How a service expects its key: in which header, and after which word."""

from __future__ import annotations

from typing import Final, NamedTuple


class Auth(NamedTuple):
    """The header that carries the key, and the scheme before the key; empty for the key alone."""

    header: str
    scheme: str = ""

    def value(self, key: str) -> str:
        """The header's value."""
        return f"{self.scheme} {key}" if self.scheme else key


BEARER: Final = Auth("Authorization", "Bearer")


def in_header(name: str) -> Auth:
    """The usual way for a header that an operator has named: a Bearer token, or the key alone."""
    return BEARER if name.lower() == BEARER.header.lower() else Auth(name)

"""Who signs in, and which views there are for them. `views.mjs` fails if the page has others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.gateways import ADMIN_TOKEN

ADMIN_VIEWS: Final = (
    *("overview", "spend", "keys", "teams", "images"),
    *("playground", "requests", "events", "settings"),
)
HOLDER_VIEWS: Final = ("share", "images", "playground")


@dataclass(frozen=True)
class Session:
    """A sign-in by the form."""

    name: str
    token: str
    views: tuple[str, ...]

    def given(self) -> Mapping[str, Any]:
        """For a script."""
        return {"name": self.name, "token": self.token, "views": self.views}


def admin() -> Session:
    return Session("admin", ADMIN_TOKEN, ADMIN_VIEWS)


def holder(secret: str) -> Session:
    """Of the holder of a key."""
    return Session("holder", secret, HOLDER_VIEWS)

"""Who signs in, the views that there are for them, and the dialogs that a view opens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from tests.gateways import ADMIN_TOKEN

Dialogs: TypeAlias = Sequence[Sequence[str]]
"""Each by the names of the buttons that lead to it."""

_MENU: Final = "Actions for "

ADMIN_VIEWS: Final[Mapping[str, Dialogs]] = {
    "overview": (),
    "spend": (),
    "keys": (
        ["Make a key"],
        [_MENU, "Raise a limit"],
        [_MENU, "Edit"],
        [_MENU, "Rotate"],
        [_MENU, "Revoke"],
    ),
    "teams": (["Make a team"], [_MENU, "Edit"], [_MENU, "Remove"]),
    "images": ([".gallery-item"], [".gallery-item", "> Take down"], [".gallery-item", "> Purge"]),
    "playground": (),
    "requests": (),
    "events": (),
    "settings": (["Purge"], ["Rotate"]),
}
HOLDER_VIEWS: Final[Mapping[str, Dialogs]] = {
    "share": (["Ask for more"],),
    "images": ([".gallery-item"],),
    "playground": (),
}


@dataclass(frozen=True)
class Session:
    """A sign-in by the form."""

    name: str
    token: str
    views: Mapping[str, Dialogs]

    def given(self) -> Mapping[str, Any]:
        """For a script."""
        views = [{"view": view, "dialogs": dialogs} for view, dialogs in self.views.items()]
        return {"name": self.name, "token": self.token, "views": views}


def admin(*more_views: str) -> Session:
    """Of an admin. `more_views` are views with a query, such as the page of a key."""
    views = {**ADMIN_VIEWS, **dict.fromkeys(more_views, ())}
    return Session("admin", ADMIN_TOKEN, views)


def holder(secret: str) -> Session:
    """Of the holder of a key."""
    return Session("holder", secret, HOLDER_VIEWS)

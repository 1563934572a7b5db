"""Links that sign an admin in to the dashboard once: `docs/reference/dashboard.md#one-time-links`.

The store has the hash of a link's secret, for as long as the link is valid. The secret is in the
fragment of the link, which browsers send to no server; the page posts it.
"""

from __future__ import annotations

import secrets
from typing import Final

from gateway.access.audit import Actor, Audit
from gateway.access.key_spaces import hash_secret
from gateway.store.batch import execute
from gateway.store.commands import SetValue
from gateway.store.protocol import Store

LINK_SECONDS: Final = 60.0
LINKS: Final = "sign_in_links"
MAX_SECRET: Final = 128

_UNUSED: Final = b"unused"
_USED: Final = b"used"


async def create_sign_in_link(store: Store, base_url: str, *, actor: Actor) -> str:
    """A link to the dashboard of an admin, valid for a minute, with its event in the audit.

    Raises `StoreUnavailable`.
    """
    secret = secrets.token_urlsafe(32)
    await execute(store, SetValue(LINKS, hash_secret(secret), _UNUSED, LINK_SECONDS))
    await Audit(store).note(actor, "sign_in_link.create", "dashboard", None)
    return f"{base_url}/dashboard#link={secret}"


async def use_sign_in_link(store: Store, secret: str) -> bool:
    """Whether this is the secret of an unused link. Raises `StoreUnavailable`."""
    if len(secret) > MAX_SECRET:
        return False
    # One command, so that of two requests at once only one signs in. The mark of a used link
    # expires with it, or later, when its secret is unknown.
    use = SetValue(LINKS, hash_secret(secret), _USED, LINK_SECONDS, expected=(_UNUSED,))
    return await execute(store, use)

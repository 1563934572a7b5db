"""The dashboard's page in a browser, as far as its API sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from http.cookies import SimpleCookie
from typing import Any, Final

from gateway.access.audit import Actor
from gateway.access.sign_in_links import create_sign_in_link
from gateway.store.protocol import Store
from tests.gateways import ADMIN_TOKEN, Client, Reply

API: Final = "/dashboard/api"
SESSION: Final = f"{API}/session"
OF_THE_PAGE: Final = {"Sec-Fetch-Site": "same-origin"}


@dataclass(frozen=True)
class Browser:
    """A browser at one gateway. Signing in returns another one, which has the cookie."""

    client: Client
    cookie: str = ""
    """`name=value`."""

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] = OF_THE_PAGE,
    ) -> Reply:
        """Sends a request without a key, with the cookie if there is one."""
        cookie = {"Cookie": self.cookie} if self.cookie else {}
        given = {} if body is None else {"json": body}
        return await self.client.send(
            method, path, headers={"Authorization": "", **cookie, **headers}, **given
        )

    async def get(self, path: str) -> Any:
        """The JSON of a path below `/dashboard/api`."""
        reply = await self.send("GET", API + path)
        assert reply.status == 200, reply.body
        return reply.json

    async def sign_in(self, **given: str) -> Browser:
        """Signs in with `token=` or `link=`."""
        reply = await self.send("POST", SESSION, given)
        assert reply.status == 201, reply.body
        return replace(self, cookie=cookie_of(reply))

    async def is_signed_in(self) -> bool:
        reply = await self.send("GET", SESSION)
        assert reply.status in (200, 401), reply.body
        return reply.status == 200

    def at(self, client: Client) -> Browser:
        """The same browser at another gateway or worker."""
        return replace(self, client=client)


async def sign_in_as_admin(client: Client) -> Browser:
    return await Browser(client).sign_in(token=ADMIN_TOKEN)


async def new_link_secret(store: Store) -> str:
    """The secret of a new one-time link."""
    link = await create_sign_in_link(store, "http://x", actor=Actor("cli", "a test"))
    return link.partition("#link=")[2]


def cookie_of(reply: Reply) -> str:
    """The cookie that an answer sets."""
    (morsel,) = SimpleCookie(reply.headers["Set-Cookie"]).values()
    return f"{morsel.key}={morsel.value}"

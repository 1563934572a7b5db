"""`/dashboard`: the page, sign-in, sessions, and the API below it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from http.cookies import SimpleCookie
from typing import Any

from tests.gateways import ADMIN_TOKEN, Client, Reply

SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}
SESSION = "/dashboard/api/session"


@dataclass(frozen=True)
class Browser:
    """The dashboard's page in a browser: its cookie, and the headers of its requests."""

    client: Client
    cookie: str = ""

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] = SAME_ORIGIN,
    ) -> Reply:
        sent = {"Authorization": "", **headers}
        if self.cookie:
            sent["Cookie"] = self.cookie
        given = {} if body is None else {"json": body}
        return await self.client.send(method, path, headers=sent, **given)

    async def sign_in(self, **given: str) -> Browser:
        reply = await self.send("POST", SESSION, given)
        assert reply.status == 201, reply.body
        return replace(self, cookie=cookie_of(reply))


def cookie_of(reply: Reply) -> str:
    (morsel,) = SimpleCookie(reply.headers["Set-Cookie"]).values()
    return f"{morsel.key}={morsel.value}"


async def test_an_admin_signs_in_and_calls_the_admin_api(gateway: Any) -> None:
    browser = await Browser(gateway.client).sign_in(token=ADMIN_TOKEN)

    shown = await browser.send("GET", SESSION)
    assert shown.status == 200
    assert shown.json["kind"] == "admin"
    assert shown.json["key"] is None

    made = await browser.send("POST", "/dashboard/api/admin/keys", {"name": "alice"})
    assert made.status == 201, made.body
    listed = await browser.send("GET", "/dashboard/api/admin/keys")
    assert [row["name"] for row in listed.json["data"]] == ["alice"]
    bought = await browser.send(
        "POST",
        f"/dashboard/api/admin/keys/{made.json['id']}/images/generations",
        {"prompt": "an otter"},
    )
    assert bought.status == 200, bought.body
    audit = await browser.send("GET", "/dashboard/api/admin/audit")
    assert {event["via"] for event in audit.json["data"]} == {"dashboard"}
    page = await browser.send("GET", "/dashboard/keys")
    assert page.status == 200
    models = await browser.send("GET", "/dashboard/api/models")
    alice = await Browser(gateway.client).sign_in(token=made.json["key"])
    hit = await alice.send("POST", "/dashboard/api/images/generations", {"prompt": "an otter"})
    assert hit.status == 200
    assert hit.cache_status.startswith("hit"), hit.headers
    assert (await alice.send("DELETE", SESSION)).status == 204
    assert (await alice.send("GET", SESSION)).status == 401

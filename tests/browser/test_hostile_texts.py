"""Stored attacks: texts that would run if the page took them for HTML."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.hostile_upstream import PAYLOAD, run_hostile_upstream
from tests.browser.running import Scripts
from tests.browser.sessions import admin, holder
from tests.gateways import Client, InProcess, make_settings, run_gateway

HOSTILE_NAME = "javascript:owned//x"
"""Names of keys, teams and tags have no other characters than these."""


async def leave_texts(here: InProcess) -> tuple[Client, str]:
    """Fills each field that a key's holder or upstream controls. Returns the holder, a request."""
    labels = {"note": PAYLOAD}
    limits = {"usd_per_month": 5, "requests_per_minute": 100}
    mallory = await here.client.with_key(
        HOSTILE_NAME, team=HOSTILE_NAME, labels=labels, limits=limits
    )
    hostile = {"model": "dall-e-3", "user": PAYLOAD, "response_format": "b64_json"}
    headers = {"X-Gateway-Tags": "javascript:owned", "X-Client-Request-Id": PAYLOAD}
    bought = await mallory.ask(f"{PAYLOAD} an otter", headers=headers, **hostile)
    assert bought.status == 200, bought.body
    for prompt in ("refused", "broken", "svg"):
        refused = await mallory.ask(f"{prompt} {PAYLOAD}", **hostile)
        assert refused.status >= 400
    assert (await mallory.ask("a", model=PAYLOAD)).status == 400
    assert (await mallory.ask("a", size=PAYLOAD)).status == 400
    more = {"limit": "usd_per_month", "reason": PAYLOAD}
    asked = await mallory.send("POST", "/v1/usage/ask-for-more", json=more)
    assert asked.status == 200, asked.body
    return mallory, bought.headers["x-request-id"]


@pytest.mark.timeout(360)
async def test_texts_of_clients_and_upstream_are_shown_and_never_run(
    tmp_path: Path, scripts: Scripts
) -> None:
    """Neither the policy nor Trusted Types have anything to report: nothing tries to run."""
    async with run_hostile_upstream() as upstream:
        settings = make_settings(tmp_path / "data", upstream, cache={"store_prompts": True})
        async with run_gateway(settings) as here:
            mallory, request_id = await leave_texts(here)
            sessions = [
                {**admin().given(), "views": admin_views(request_id)},
                {**holder(mallory.secret).given(), "views": HOLDER_VIEWS},
            ]
            steps = await scripts.run(
                "hostile.mjs",
                url=here.client.url,
                sessions=sessions,
                openers=OPENERS,
                prompts=PROMPTS,
            )

    for step in steps:
        if step["step"] == "session":
            assert step["faults"] == []
            assert not step["owned"]
        else:
            assert step["strangers"] == [], step["view"]
            assert "49" not in step["title"]
    shown = {f"{s['session']} {s['view']}": s["text"] for s in steps if s["step"] == "view"}
    for view in SHOWN:
        assert any(PAYLOAD in text for name, text in shown.items() if name.startswith(view)), view


def admin_views(request_id: str) -> list[str]:
    return [
        *("overview", "spend?by=user", "spend?by=label:note", "keys", "teams", "images"),
        *("requests", f"requests?id={request_id}", "events", "events?tab=audit", "settings"),
    ]


HOLDER_VIEWS = ["share", "images", "playground"]
OPENERS = {"images": ".gallery-item"}
"""What opens details, by view."""

PROMPTS = [PAYLOAD, f"refused {PAYLOAD}"]
"""Of the playground."""

SHOWN = (
    *("admin spend", "admin images", "admin requests", "admin events"),
    *("holder images", "holder playground"),
)
"""The views in which a person reads such a text."""

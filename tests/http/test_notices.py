"""`x-gateway-notice` in the messages of errors: few clients show headers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.http.conftest import Shared

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    ("key", "headers", "code", "notice"),
    [
        (
            {"reuse": "never", "limits": {"images_per_day": 0}},
            {},
            "insufficient_quota",
            "no-cache was applied, as the key's reuse setting says.",
        ),
        (
            {"reuse": "within:1h", "limits": {"images_per_day": 0}},
            {},
            "insufficient_quota",
            "max-age=3600 was applied, as the key's reuse setting says.",
        ),
        (
            {},
            {"Cache-Control": "only-if-cached, max-age=1"},
            "only_if_cached",
            "max-age=1 was applied.",
        ),
        (
            {"allow_no_cache": False},
            {"Cache-Control": "only-if-cached, no-cache"},
            "only_if_cached",
            "no-cache was ignored: this key may not ask for new images.",
        ),
        (
            {},
            {"Cache-Control": "no-cache", "X-Gateway-Max-Cost-USD": "0"},
            "max_cost_exceeded",
            "no-cache was applied.",
        ),
    ],
    ids=str,
)
async def test_an_error_of_the_gateway_ends_with_the_notice(
    shared: Shared, key: dict[str, Any], headers: dict[str, str], code: str, notice: str
) -> None:
    client = await shared.gateway.client.with_key(f"noticed {code} {len(notice)}", **key)
    reply = await client.ask(f"a noticed otter {code}", headers=headers)

    assert reply.error["code"] == code
    assert reply.headers["x-gateway-notice"] == notice
    assert reply.error["message"].endswith(f" Note: {notice}")
    assert not reply.error["message"].startswith("Note")


async def test_an_error_of_upstream_is_relayed_without_the_notice(shared: Shared) -> None:
    headers = {"Cache-Control": "no-cache"}
    reply = await shared.alice.ask("an otter [[sim:moderation]]", headers=headers)

    assert reply.error["code"] == "moderation_blocked"
    assert reply.headers["x-gateway-notice"] == "no-cache was applied."
    assert "Note:" not in reply.error["message"]

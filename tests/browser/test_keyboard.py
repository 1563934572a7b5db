"""What an admin and the holder of a key do on the page, by keyboard alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.running import Scripts, the
from tests.gateways import ADMIN_TOKEN, make_settings, run_gateway, run_upstream


@pytest.mark.timeout(360)
async def test_all_of_it_is_done_by_keyboard_with_a_focus_that_is_seen_and_returns(
    tmp_path: Path, scripts: Scripts
) -> None:
    async with (
        run_upstream() as upstream,
        run_gateway(make_settings(tmp_path / "data", upstream.base_url)) as here,
    ):
        steps = await scripts.run("by_keyboard.mjs", url=here.client.url, token=ADMIN_TOKEN)
        (event,) = [
            event
            for event in (await here.client.admin("GET", "/admin/events")).json["data"]
            if event["kind"] == "asked_for_more"
        ]
        audit = (await here.client.admin("GET", "/admin/audit")).json["data"]

    assert "typist" in event["text"]
    actions = [event["action"] for event in audit if "typist" in event["object"]]
    assert actions == ["key.revoke", "key.rotate", "limits.raise", "key.create"]
    assert the(steps, "chose themes")["themes"] == ["light", "dark"]
    assert the(steps, "end")["faults"] == []

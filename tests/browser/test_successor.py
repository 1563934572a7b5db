"""One tab, and two holders of keys after each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.running import Scripts, the
from tests.gateways import make_settings, run_gateway, run_upstream


@pytest.mark.timeout(300)
async def test_the_next_holder_sees_nothing_of_the_one_before(
    tmp_path: Path, scripts: Scripts
) -> None:
    async with (
        run_upstream() as upstream,
        run_gateway(
            make_settings(tmp_path / "data", upstream.base_url, cache={"store_prompts": True})
        ) as here,
    ):
        alice, bob = await here.client.with_key("alice"), await here.client.with_key("bob")
        await alice.ask("the secret of alice")
        await bob.ask("an otter of bob")
        steps = await scripts.run(
            "successor.mjs", url=here.client.url, first=alice.secret, second=bob.secret
        )
    assert the(steps, "first")["images"] == ["the secret of alice"]
    assert the(steps, "second")["images"] == ["an otter of bob"]
    assert the(steps, "end")["faults"] == []
    assert "still signed in" in the(steps, "no answer")["said"]

"""What an admin and the holder of a key do on the page, with a mouse."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.access.sign_in_links import create_sign_in_link
from gateway.wiring.stores import open_store
from tests.browser.running import Scripts, the
from tests.gates import hold_streams
from tests.gateways import run_processes, run_upstream


@pytest.mark.timeout(180)
async def test_an_admin_makes_a_key_and_an_image_and_its_holder_sees_only_their_own(
    tmp_path: Path, scripts: Scripts
) -> None:
    """Two workers: each request of the page may meet another one than the last."""
    async with (
        run_upstream() as upstream,
        run_processes(tmp_path / "gateway", upstream.base_url, workers=2) as (processes, client),
    ):
        bob = await client.with_key("bob")
        await bob.ask("another image")
        async with open_store(processes.settings) as (store, _):
            link = await create_sign_in_link(store, client.url)
        with hold_streams(after=1) as stream:
            on = {"saw a partial image": stream.open}
            steps = await scripts.run("story.mjs", on=on, url=client.url, link=link)

    assert the(steps, "signed in")["address"] == f"{client.url}/dashboard/overview"
    assert the(steps, "made a key")["bar"].split() == ["Dollars", "per", "month", "$0", "of", "$2"]
    assert the(steps, "saw a partial image")["width"] > 0
    image = the(steps, "saw the image")
    assert image["width"] > 0
    assert image["handling"] == "Bought"
    cost = image["cost"]
    assert any(cost in row for row in the(steps, "saw the spend")["rows"])
    assert cost in the(steps, "saw the bar")["bar"]
    assert len(the(steps, "saw the gallery")["images"]) == 2
    assert "$5" in the(steps, "raised")["bar"]
    assert the(steps, "rotated")["secret"] != the(steps, "made a key")["secret"]
    assert the(steps, "signed in as holder")["views"] == ["My share", "Images", "Playground"]
    assert "bob" not in the(steps, "signed in as holder")["text"]
    assert len(the(steps, "saw own images")["images"]) == 1
    assert "session has ended" in the(steps, "revoked")["said"]
    assert the(steps, "end")["faults"] == []

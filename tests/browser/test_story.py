"""What an admin and the holder of a key do on the page, with a mouse."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.browser.running import Scripts, the
from tests.gates import hold_streams
from tests.gateways import run_processes, run_upstream


@pytest.mark.timeout(360)
async def test_an_admin_makes_a_key_and_an_image_and_its_holder_sees_only_their_own(
    tmp_path: Path, scripts: Scripts
) -> None:
    """Two workers: each request of the page may meet another one than the last."""
    async with (
        run_upstream() as upstream,
        run_processes(tmp_path / "gateway", upstream.base_url, workers=2) as (processes, client),
    ):
        bob = await client.with_key("bob")
        others_cost = float((await bob.ask("another image")).headers["x-gateway-cost-usd"])
        opened = await processes.run("open", "--no-browser", "--url", client.url)
        link = opened.stdout.strip()
        with hold_streams(after=1) as stream:
            on = {"saw a partial image": stream.open}
            steps = await scripts.run("story.mjs", on=on, url=client.url, link=link)

    assert the(steps, "signed in")["address"] == f"{client.url}/dashboard/overview"
    made = the(steps, "made a key")
    assert made["bar"].endswith("$0.00 of $2.00")
    assert made["csv"]["name"] == "keys.csv"
    assert [row["name"] for row in rows_of(made["csv"])] == ["bob", "studio"]
    assert made["secret"] not in made["csv"]["text"]
    found = rows_of(the(steps, "found a setting")["csv"])
    assert [row["key"] for row in found] == ["cache.store_prompts"]
    partial, image = the(steps, "saw a partial image"), the(steps, "saw the image")
    assert partial["width"] > 0
    assert image["width"] > 0
    assert image["handling"] == "Bought"
    assert partial["axe"] == image["axe"] == []
    cost = image["cost"]
    spent = the(steps, "saw the spend")["rows"][-1]
    both = float(cost.removeprefix("$")) + others_cost
    assert float(spent.rpartition("$")[2]) == pytest.approx(both, abs=1e-4)
    assert the(steps, "saw the bar")["bar"].endswith(f"{cost} of $2.00")
    assert len(the(steps, "saw the gallery")["images"]) == 2
    assert the(steps, "raised")["bar"].endswith(f"{cost} of $5.00")
    assert the(steps, "rotated")["secret"] != made["secret"]
    assert the(steps, "signed in as holder")["views"] == ["Your share", "Images", "Playground"]
    assert "bob" not in the(steps, "signed in as holder")["text"]
    assert len(the(steps, "saw own images")["images"]) == 1
    assert "session has ended" in the(steps, "revoked")["said"]
    assert the(steps, "end")["faults"] == []


def rows_of(saved: Mapping[str, str]) -> list[dict[str, str]]:
    return list(csv.DictReader(saved["text"].splitlines()))

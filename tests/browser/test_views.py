"""Every view and dialog fits a telephone, stands still while it loads, and shuts nobody out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser import seeds
from tests.browser.problems import problems
from tests.browser.running import Scripts
from tests.browser.sessions import admin, holder
from tests.gateways import make_settings, run_gateway, run_processes, run_upstream


@pytest.mark.timeout(360)
@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.long)])
async def test_each_view_fits_stands_still_and_has_no_finding_of_axe(
    tmp_path: Path, scripts: Scripts, theme: str
) -> None:
    async with run_upstream() as upstream:
        async with run_gateway(make_settings(tmp_path / "data", upstream.base_url)) as first:
            clients = await seeds.seed(first, seeds.SMALL)
        # Only a gateway of its own process has settings to show.
        async with run_processes(tmp_path, upstream.base_url, workers=1) as (_, client):
            pages = f"keys?key={clients[0].key_id}", "teams?team=art", "events?tab=audit"
            sessions = [admin(*pages), holder(clients[0].secret)]
            steps = await scripts.run(
                "views.mjs",
                on={"signed in": lambda: None},
                url=client.url,
                sessions=[session.given() for session in sessions],
                themes=[theme],
                widths=[360],
                dialogs=True,
                axe=True,
            )

    found = list(problems(steps))
    assert not found, "\n".join(found)
    for session in sessions:
        navigation = [s for s in steps if s["step"] == "navigation" and s["name"] == session.name]
        assert navigation[0]["views"] == [
            f"/dashboard/{view}" for view in session.views if "?" not in view
        ]

"""Stored attacks: texts that would run if the page took them for HTML."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.browser.hostile_upstream import PAYLOAD, run_hostile_upstream
from tests.browser.running import Scripts
from tests.browser.sessions import admin, holder
from tests.catalogs import read_shipped
from tests.gateways import Client, InProcess, PolicyFile, make_settings, run_gateway

HOSTILE_NAME = "javascript:owned//x"
"""Names of keys, teams and tags have no other characters than these."""


VECTORS = "vectors-1"
ROW = """
created: 1790000000
owned_by: pond
cache_epoch: 1
prompt_max_characters: 1000
parameters:
  quality: {type: choice, values: [plain], default: plain}
  size: {type: choice, values: [1024x1024], default: 1024x1024}
  output_format: {type: choice, values: [png, svg], default: png}
  response_format: {type: choice, values: [b64_json, url], default: b64_json}
billing: {by: image, usd_per_image: {1024x1024: {plain: "0.01"}}}
"""
"""A model that makes SVG, which may contain script."""


def with_vectors(folder: Path) -> PolicyFile:
    """The shipped policy and the model that makes SVG."""
    data = read_shipped()
    data["models"][VECTORS] = yaml.safe_load(ROW)
    (folder / "models.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return PolicyFile(folder / "models.yaml")


async def leave_texts(here: InProcess) -> tuple[Client, str, str]:
    """Fills each field that a key's holder or upstream controls.

    Returns the holder, the id of a request, and the link of an SVG with script.
    """
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
    vector = await mallory.ask("svg", model=VECTORS, output_format="svg", response_format="url")
    assert vector.status == 200, vector.body
    assert (await mallory.ask("a", model=PAYLOAD)).status == 400
    assert (await mallory.ask("a", size=PAYLOAD)).status == 400
    more = {"limit": "usd_per_month", "reason": PAYLOAD}
    asked = await mallory.send("POST", "/v1/usage/ask-for-more", json=more)
    assert asked.status == 200, asked.body
    return mallory, bought.headers["x-request-id"], vector.json["data"][0]["url"]


@pytest.mark.timeout(360)
async def test_texts_of_clients_and_upstream_are_shown_and_never_run(
    tmp_path: Path, scripts: Scripts
) -> None:
    """Neither the policy nor Trusted Types have anything to report: nothing tries to run."""
    async with run_hostile_upstream() as upstream:
        settings = make_settings(tmp_path / "data", upstream, cache={"store_prompts": True})
        async with run_gateway(settings, policy=with_vectors(tmp_path)) as here:
            mallory, request_id, link = await leave_texts(here)
            vector = link.rpartition("img-")[2].removesuffix(".svg")
            sessions = [
                {
                    **admin().given(),
                    "views": admin_views(request_id),
                    "files": [link, f"{here.client.url}/dashboard/api/admin/images/{vector}/file"],
                },
                {
                    **holder(mallory.secret).given(),
                    "views": HOLDER_VIEWS,
                    "files": [link, f"{here.client.url}/dashboard/api/images/{vector}/file"],
                },
            ]
            steps = await scripts.run(
                "hostile.mjs",
                url=here.client.url,
                sessions=sessions,
                openers=OPENERS,
                prompts=PROMPTS,
                vectors=VECTORS,
            )

    for step in steps:
        if step["step"] == "session":
            assert step["faults"] == []
            assert not step["owned"]
        elif step["step"] == "file":
            # A browser saves it: it opens nothing in which script could run.
            assert step["saved"] == f"img-{vector}.svg"
        elif step["step"] == "vectors":
            assert (step["drawn"], step["placeholders"], step["again"]) == (0, 1, True)
            assert step["saved"] == "svg-in-the-playground-0.svg"
        else:
            assert step["strangers"] == [], step["view"]
            assert "49" not in step["title"]
    shown = {f"{s['session']} {s['view']}": s["text"] for s in steps if s["step"] == "view"}
    for view in SHOWN:
        assert any(PAYLOAD in text for name, text in shown.items() if name.startswith(view)), view
    for session in ("admin", "holder"):
        assert re.search(r"Active content\s+script", shown[f"{session} images"])


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

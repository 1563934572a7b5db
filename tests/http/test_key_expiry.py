"""`expires_at` of a key: Unix seconds, or a duration from now."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.gateways import Upstream, make_settings, run_gateway


async def test_expires_at_is_unix_seconds_or_a_duration_in_post_and_patch(
    tmp_path: Path, upstream: Upstream
) -> None:
    async with run_gateway(make_settings(tmp_path, upstream.base_url)) as gateway:
        admin = gateway.client.admin
        now = int(time.time())
        forms: dict[Any, int] = {
            now + 50: 50,
            str(now + 50): 50,
            "30d": 30 * 86_400,
            "12h": 12 * 3_600,
            "1.5m": 90,
            " 90 s ": 90,
            "1500ms": 2,
        }
        made = (await admin("POST", "/admin/keys", {"name": "patched"})).json
        for i, (written, seconds) in enumerate(forms.items()):
            reply = await admin("POST", "/admin/keys", {"name": f"k{i}", "expires_at": written})
            assert reply.status == 201, reply.json
            patch = await admin("PATCH", f"/admin/keys/{made['id']}", {"expires_at": written})
            for at in (reply.json["expires_at"], patch.json["expires_at"]):
                assert isinstance(at, int)
                assert at - now in range(seconds, seconds + 60), written
        lifted = await admin("PATCH", f"/admin/keys/{made['id']}", {"expires_at": None})
        assert "expires_at" not in lifted.json
        for wrong in (
            "3600",
            "soon",
            "",
            "30",
            "-30d",
            "0d",
            "2026-12-31",
            "30 d d",
            "٣٠d",
            "1e3d",
        ):
            reply = await admin("POST", "/admin/keys", {"name": "wrong", "expires_at": wrong})
            error = reply.json["error"]
            assert (reply.status, error["param"]) == (400, "expires_at"), wrong
            assert "Unix seconds such as 1798761600, or a duration" in error["message"]
            assert repr(wrong) in error["message"]

"""Limits of teams and of everyone, set as an administrator sets them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.gateways import Client


async def set_limits(client: Client, scope: str, limits: Mapping[str, Any]) -> None:
    """Sets limits of `team:NAME`, which may be a new team, or of `everyone`."""
    team = scope.removeprefix("team:")
    if team != scope and (await client.admin("GET", f"/admin/teams/{team}")).status == 404:
        assert (await client.admin("POST", "/admin/teams", {"name": team})).status == 201
    changed = await client.admin("PATCH", "/admin/limits", {"scope": scope, "limits": limits})
    assert changed.status == 200, changed.body

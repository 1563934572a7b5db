"""The commands of `commands.server` for Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.store import commands
from gateway.store.redis.commands.call import SECOND, Call, _call, call_for
from gateway.store.redis.keys import Keys

# ── the server itself ───────────────────────────────────────────────────────────────────────


@call_for.register
def _inspect(_verb: commands.Inspect, _keys: Keys) -> Call:
    def read(reply: Sequence[Any]) -> commands.StoreFacts:
        now, info = reply
        said = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
        return commands.StoreFacts(
            "redis",
            now / SECOND,
            eviction_policy=said["maxmemory_policy"],
            maxmemory_bytes=int(said["maxmemory"]) or None,
            is_durable=said["aof_enabled"] == "1",
        )

    return _call("inspect", (), (), read=read)

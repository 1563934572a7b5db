"""Encoder of `commands.server.Inspect`; that of `Sweep` is in `lru_index`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.store import commands
from gateway.store.redis.commands.encoding import SECOND, RedisCommand, encode, script_command
from gateway.store.redis.keys import Keys


@encode.register
def _inspect(_command: commands.Inspect, _keys: Keys) -> RedisCommand:
    def read(reply: Sequence[Any]) -> commands.StoreFacts:
        now, info, refusal = reply
        if refusal:
            return commands.StoreFacts(
                "redis", now / SECOND, None, None, is_durable=False, is_known=False
            )
        facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
        return commands.StoreFacts(
            "redis",
            now / SECOND,
            eviction_policy=facts["maxmemory_policy"],
            maxmemory_bytes=int(facts["maxmemory"]) or None,
            is_durable=facts["aof_enabled"] == "1",
        )

    return script_command("inspect", (), (), read=read)

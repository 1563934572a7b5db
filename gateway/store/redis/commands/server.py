"""Encoders of `commands.server`; that of `Sweep` is in `lru_index`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.store import commands
from gateway.store.redis.commands.encoding import SECOND, RedisCommand, encode, script_command
from gateway.store.redis.keys import Keys

MAX_BYTES: Final = 1 << 60


@encode.register
def _inspect(_command: commands.Inspect, _keys: Keys) -> RedisCommand:
    def read(reply: Sequence[Any]) -> commands.StoreFacts:
        now, info, refusal = reply
        if refusal:
            return commands.StoreFacts(
                "redis", now / SECOND, None, None, is_durable=False, is_known=False
            )
        facts = _read_info(info)
        return commands.StoreFacts(
            "redis",
            now / SECOND,
            eviction_policy=facts["maxmemory_policy"],
            maxmemory_bytes=int(facts["maxmemory"]) or None,
            is_durable=facts["aof_enabled"] == "1",
        )

    return script_command("inspect", (), (), read=read)


@encode.register
def _measure_store(_command: commands.MeasureStore, _keys: Keys) -> RedisCommand:
    def read(reply: bytes) -> commands.StoreUse:
        # Without the right to INFO nothing is known; `Inspect` says so.
        facts = _read_info(reply)
        capacity = int(facts.get("maxmemory", 0)) or int(facts.get("total_system_memory", 0))
        used = int(facts.get("used_memory", 0))
        # A hosted server may hide its machine's memory; then it has no limit that could be low.
        return commands.StoreUse("memory", used, capacity or MAX_BYTES)

    return script_command("measure", (), (), read=read)


def _read_info(info: bytes) -> Mapping[str, str]:
    return dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)

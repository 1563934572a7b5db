"""Encoders of `commands.server`; that of `Sweep` is in `lru_index`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
            # Redis writes this line only if both settings of `min-replicas-…` are above 0.
            needs_replica="min_slaves_good_slaves" in facts,
        )

    return script_command("inspect", (), (), read=read, merge=_merge_facts)


def _merge_facts(of_nodes: Sequence[commands.StoreFacts]) -> commands.StoreFacts:
    """What holds for all nodes: a cluster is as safe as its least safe one."""
    bounds = [facts.maxmemory_bytes for facts in of_nodes if facts.maxmemory_bytes is not None]
    policies = [facts.eviction_policy for facts in of_nodes if facts.is_known]
    evicting = [policy for policy in policies if policy != "noeviction"]
    return replace(
        of_nodes[0],
        eviction_policy=next(iter(evicting or policies), None),
        maxmemory_bytes=sum(bounds) if len(bounds) == len(of_nodes) else None,
        is_durable=all(facts.is_durable for facts in of_nodes),
        is_known=all(facts.is_known for facts in of_nodes),
        needs_replica=all(facts.needs_replica for facts in of_nodes),
    )


@encode.register
def _measure_store(_command: commands.MeasureStore, _keys: Keys) -> RedisCommand:
    def read(reply: bytes) -> commands.StoreUse:
        # Without the right to INFO nothing is known; `Inspect` says so.
        facts = _read_info(reply)
        capacity = int(facts.get("maxmemory", 0)) or int(facts.get("total_system_memory", 0))
        used = int(facts.get("used_memory", 0))
        # A hosted server may hide its machine's memory; then it has no limit that could be low.
        return commands.StoreUse("memory", used, capacity or MAX_BYTES)

    return script_command("measure", (), (), read=read, merge=_merge_use)


def _merge_use(of_nodes: Sequence[commands.StoreUse]) -> commands.StoreUse:
    """All capacity, used as far as that of the fullest node: the books are on one node alone."""
    capacity = sum(use.capacity_bytes for use in of_nodes)
    fullest = max(use.used_bytes / max(1, use.capacity_bytes) for use in of_nodes)
    return commands.StoreUse("memory", int(fullest * capacity), min(capacity, MAX_BYTES))


def _read_info(info: bytes) -> Mapping[str, str]:
    return dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)

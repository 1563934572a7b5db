"""The commands, keys and channels that the gateway's Redis user needs.

An ACL that refuses one of them is noticed at the start, not at the first purchase.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from redis import exceptions as redis_errors

from gateway.store.redis.connection import PipelinedConnection, RawCommand
from gateway.store.redis.faults import (
    Fault,
    is_about_command,
    missing_rights,
    unknown_commands,
)
from gateway.store.redis.keys import Keys
from gateway.store.redis.scripts import SCRIPTS

CONNECTION_COMMANDS: Final = ("EVAL", "PING", "ROLE", "SUBSCRIBE", "UNSUBSCRIBE")
"""Of every connection. `ROLE` is needed only behind sentinels, and `SELECT` too if the URL names
another database than 0."""

OPTIONAL_COMMANDS: Final = ("CLIENT|TRACKING", "INFO", "WAIT")
"""Without `INFO`, `maxmemory`, the eviction policy and persistence cannot be checked. Without
`CLIENT|TRACKING`, no worker keeps what it has read (`tracking`). Without `WAIT`, purchases do not
wait for replicas (`replication`)."""

BLOB_COMMANDS: Final = ("DEL", "EXISTS", "GET", "PEXPIRE", "SCAN", "SET", "STRLEN", "UNLINK")
"""Of a server that has only images; with `EVAL`, for the handshake."""

_PLAIN: Final = ("GET", "HGET", "HMGET", "HSCAN", "LRANGE", "PUBLISH", "SISMEMBER")
"""Commands of the store that are no scripts. None of them writes."""

_CALL: Final = re.compile(r"(?:redis\.(?:call|pcall|write)|write_many)\(\s*['\"](\w+)['\"]")

CLUSTER_COMMANDS: Final = ("ASKING", "CLUSTER|NODES", "CLUSTER|SLOTS")
"""Of a node of a Redis Cluster."""

SCRIPT_COMMANDS: Final = ("EVALSHA", "SCRIPT|LOAD")
"""Of a store, for its scripts."""

STORE_COMMANDS: Final = tuple(
    sorted(
        {
            *BLOB_COMMANDS,
            *_PLAIN,
            *(name for script in SCRIPTS.values() for name in _CALL.findall(script.source)),
        }
        - {*OPTIONAL_COMMANDS}
    )
)
"""Of a store, whose server usually has the images too."""

_VERSION: Final = re.compile(rb"^(?:redis|valkey)_version:([\w.]+)", re.MULTILINE)

_SCRIPT: Final = (
    resources.files("gateway.store.redis").joinpath("find_missing_rights.lua").read_text("utf-8")
)


def acl_rule(
    user: str = "gateway",
    password: str = "PASSWORD",  # noqa: S107 - a placeholder
    *,
    is_cluster: bool = False,
) -> str:
    """The smallest rule with which every part of the gateway works."""
    needed = {*CONNECTION_COMMANDS, *SCRIPT_COMMANDS, *STORE_COMMANDS, *OPTIONAL_COMMANDS}
    names = sorted(needed | {*CLUSTER_COMMANDS} if is_cluster else needed)
    commands = " ".join(f"+{name.lower()}" for name in names)
    return f"ACL SETUSER {user} reset on >{password} ~igw:* &igw:events:* {commands}"


@dataclass(frozen=True, slots=True)
class MissingRights:
    """Commands that cannot be used, each with Redis' error."""

    errors: Mapping[str, redis_errors.RedisError]
    version: str
    """Of the server; empty if it does not say."""

    def as_fault(self, user: str, prefix: str) -> Fault:
        """All that is missing in one sentence, so that one change of the ACL is enough."""
        texts = {name: str(error) for name, error in self.errors.items()}
        if unknown := [name for name, text in texts.items() if "unknown" in text.lower()]:
            return Fault(unknown_commands(unknown, version=self.version), lasts=True)
        commands = [name for name, text in texts.items() if is_about_command(text)]
        others = [text for name, text in texts.items() if name not in commands]
        text = missing_rights(
            commands,
            needs_keys=any("channel" not in text for text in others),
            needs_channels=any("channel" in text for text in others),
            user=user,
            prefix=prefix,
        )
        return Fault(text, lasts=True)


async def find_missing_rights(
    pipeline: PipelinedConnection,
    names: Sequence[str],
    *,
    keys: Keys,
    deadline: float,
    probe: str | None = None,
) -> MissingRights | None:
    """Tries the commands `names`, the keys and the channels, and leaves no change.

    `probe` is the key to try commands with; a node of a cluster needs one in a slot of its own.
    """
    channel, key = keys.channel("probe"), probe or keys.probe
    areas = (keys.books, f"{keys.prefix}{{lru}}:", keys.entry(""), keys.leases(""), keys.events(""))
    values = (keys.value("", ""), keys.set("", ""), keys.bounded_set("", ""), keys.blob(""))
    plain: list[tuple[str, RawCommand]] = [
        ("EVALSHA", (b"EVALSHA", b"0" * 40, b"0")),
        ("SCRIPT|LOAD", (b"SCRIPT", b"LOAD", b"return 1")),
        ("DEL", (b"DEL", key)),
        *(("UNLINK", (b"UNLINK", f"{area}probe")) for area in (*areas, *values)),
        ("ASKING", (b"ASKING",)),
        ("CLUSTER|NODES", (b"CLUSTER", b"NODES")),
        ("CLUSTER|SLOTS", (b"CLUSTER", b"SLOTS")),
        ("WAIT", (b"WAIT", b"0", b"0")),  # for no replica, so it returns at once
    ]
    plain_names = {name for name, _ in plain} - {"UNLINK"}
    script = (
        b"EVAL",
        _SCRIPT,
        b"1",
        key,
        channel,
        "DEL",
        *(n for n in names if n not in plain_names),
    )
    tried, info, *replies = await pipeline.execute(
        [script, (b"INFO", b"server"), *(command for _, command in plain)], deadline=deadline
    )
    found: dict[str, redis_errors.RedisError] = {}
    if isinstance(tried, redis_errors.NoPermissionError):
        found["EVAL"] = tried
    elif isinstance(tried, redis_errors.RedisError):
        raise tried
    else:
        for name, text in tried:
            found[name.decode()] = redis_errors.ResponseError(text.decode())
    for (name, _), reply in zip(plain, replies, strict=True):
        if name in names and _is_refused(reply):
            found.setdefault(name, reply)
    version = _VERSION.search(info) if isinstance(info, bytes) else None
    return MissingRights(found, version[1].decode() if version else "") if found else None


def _is_refused(reply: Any) -> bool:
    """Whether the user may not use the command, or the server does not have it."""
    if isinstance(reply, redis_errors.NoPermissionError):
        return True
    return isinstance(reply, redis_errors.ResponseError) and "unknown command" in str(reply).lower()

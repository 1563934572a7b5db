"""Encoder of `commands.blobs`."""

from __future__ import annotations

from gateway.store import commands
from gateway.store.redis.commands.encoding import (
    RedisCommand,
    encode,
    milliseconds,
    no_result,
    script_command,
)
from gateway.store.redis.keys import Keys


@encode.register
def _put_blob(command: commands.PutBlob, keys: Keys) -> RedisCommand:
    arguments = (command.data, milliseconds(command.ttl_seconds))
    return script_command("put_blob", [keys.blob(command.digest)], arguments, read=no_result)

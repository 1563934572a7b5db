"""The commands of `commands.blobs` for Redis."""

from __future__ import annotations

import math

from gateway.store import commands
from gateway.store.redis.commands.call import Call, _call, _nothing, call_for
from gateway.store.redis.keys import Keys


@call_for.register
def _put_blob(command: commands.PutBlob, keys: Keys) -> Call:
    arguments = (command.data, math.ceil(command.ttl_seconds * 1000))
    return _call("put_blob", [keys.bytes_of("blob", command.digest)], arguments, read=_nothing)

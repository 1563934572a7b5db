"""The command that stores a small blob as part of a batch."""

from __future__ import annotations

from gateway.frozen import frozen
from gateway.store.protocol import Command


@frozen
class PutBlob(Command[None]):
    """Stores bytes for at least `ttl_seconds`; putting them again can only extend that.

    It never raises `StoreFull`: a full store still finds room for a few bytes, so no later command
    of the batch is executed without them. Those commands raise `StoreFull` themselves. Create it
    with `BlobStore.put_command`, which knows whether the store holds the bytes too.
    """

    digest: str
    data: bytes
    ttl_seconds: float

"""The idempotency key of a purchase, from its reservation to its settlement.

These functions add commands to the batches of reservations and settlements, so that the key is
kept, and its result stored, as durably as the purchase itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gateway.cache import idempotency_keys as keys
from gateway.cache.idempotency_results import (
    IdempotentRequest,
    decode_result,
    encode_failure,
    encode_images,
    encode_lock,
)
from gateway.errors import UpstreamFailure
from gateway.images import Image
from gateway.store.batch import Batch, execute
from gateway.store.commands import DeleteValue, GetValue, SetValue
from gateway.store.protocol import Store


async def keep_for_purchase(store: Store, idempotent: IdempotentRequest, purchase: str) -> bool:
    """Keeps the key for a purchase until it is settled, even if its worker dies.

    To be called once the purchase is reserved, and before anything is sent. False if the request
    has lost the key: its lock has expired. Raises `StoreUnavailable`.
    """
    # Only if there is a value: a call that timed out may run after the purchase was cancelled.
    kept = encode_lock(idempotent, purchase=purchase)
    expected = (encode_lock(idempotent), kept)
    keep = SetValue(keys.SPACE, idempotent.name, kept, keys.RESULT_SECONDS, expected=expected)
    if await execute(store, keep):
        return True
    # An earlier purchase of the same request may have kept the key, or stored its result.
    found = await execute(store, GetValue(keys.SPACE, idempotent.name))
    if found is None or not keys.is_of(found, idempotent):
        return False
    return await execute(store, replace(keep, expected=(found,)))


async def find_key(store: Store, idempotent: IdempotentRequest) -> bytes | None:
    """The value of the key before a settlement, which may replace it. Raises `StoreUnavailable`.

    Read and compared by what it means: another version of the gateway may have written it.
    """
    return await execute(store, GetValue(keys.SPACE, idempotent.name))


def store_purchased(
    batch: Batch, idempotent: IdempotentRequest, images: Sequence[Image], *, found: bytes | None
) -> None:
    """Stores the images of a purchase as the result; belongs before its settlement."""
    # Also in place of a failure: another worker has taken this one for dead.
    if _may_replace(found, idempotent, failures=True):
        keys.set_result(batch, idempotent, encode_images(idempotent, images), found=found)


def store_failed(
    batch: Batch, idempotent: IdempotentRequest, failure: UpstreamFailure, *, found: bytes | None
) -> None:
    """Ends the key's lock by the failure of a purchase; belongs before its settlement.

    A failure that was, or may have been, charged is the result. After any other one the request has
    the key for some seconds, in which it releases it.
    """
    if not _may_replace(found, idempotent, failures=False):
        return
    if failure.is_charged:
        keys.set_result(batch, idempotent, encode_failure(idempotent, failure), found=found)
    elif found is not None:
        lock = encode_lock(idempotent)
        batch.add(SetValue(keys.SPACE, idempotent.name, lock, keys.LOCK_SECONDS, expected=(found,)))


def _may_replace(found: bytes | None, idempotent: IdempotentRequest, *, failures: bool) -> bool:
    """Whether the key has no value, a lock of this very request or, with `failures`, its failure.

    A settlement that is repeated finds its own result.
    """
    if found is None:
        return True
    result = decode_result(found)
    if result is None or result.lock != idempotent.lock:
        return False
    return result.encoded is None or (failures and result.failure is not None)


def release_cancelled(batch: Batch, idempotent: IdempotentRequest, purchase: str) -> None:
    """Releases the key of a purchase that was cancelled before anything was sent."""
    # First the request's lock: without it, a lock of the purchase that is on its way is not set.
    for lock in (encode_lock(idempotent), encode_lock(idempotent, purchase=purchase)):
        batch.add(DeleteValue(keys.SPACE, idempotent.name, lock))
    keys.notify(batch, idempotent)
